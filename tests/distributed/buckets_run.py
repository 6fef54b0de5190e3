"""One rank of test_buckets.py, started by torchrun: gradients of three steps of two batches, with and without
working copies of the weights, in the file that is given."""

import sys
from types import SimpleNamespace

import torch
from torch import nn

from spear_lib.kernels import choice
from spear_lib.kernels.weights import NAME, on_working_copies
from spear_lib.runtime.devices import plan_for_accelerator
from spear_lib.runtime.world import world
from spear_lib.training import distributed


class Model(nn.Module):
    """Two parts on copies, and parameters beside them; one is frozen."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 9), nn.PReLU(9), nn.Linear(9, 9))
        self.second = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 4))
        self.scale = nn.Parameter(torch.ones(9))
        self.second[1].weight.requires_grad_(False)

    def forward(self, x):
        return on_working_copies(self.second, on_working_copies(self.first, x) * self.scale)


def gradients(processes, kernels):
    torch.manual_seed(1)
    model = Model()
    task = SimpleNamespace(
        model=model, own_state=(), compute=lambda batch: model(batch).float().square().sum()
    )
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    generator = torch.Generator().manual_seed(processes.rank)
    found = []
    with choice.running(kernels), plan_for_accelerator(bool(kernels)):
        module = distributed.wrap(task, processes)
        for _ in range(3):
            distributed.clear_gradients(module, optimizer)
            for micro in range(2):
                with distributed.no_gradient_sync(module, micro < 1):
                    with torch.autocast("cpu", torch.bfloat16):
                        loss = module(torch.randn(5, 6, generator=generator))
                    loss.backward()
            found += [each.grad.clone() for each in trained]
            buckets = {each.grad.untyped_storage().data_ptr() for each in trained}
            optimizer.step()
    return found, len(buckets)


def main() -> None:
    with world("cpu") as processes:
        torch.save(
            {"eager": gradients(processes, []), "copies": gradients(processes, [NAME])},
            f"{sys.argv[1]}.{processes.rank}",
        )


if __name__ == "__main__":
    main()
