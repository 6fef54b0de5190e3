"""The quantiser against the reference's stored numbers, a direct search in D-space, and brute force."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spear_lib.quantization import Quantizer, search
from spear_lib.quantization.code_table import candidates_kept
from spear_lib.quantization.storage import pack_codes, unpack_codes
from spear_lib.tokens import checking

GOLDEN = Path(__file__).parents[1] / "golden" / "mvq.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def state_of(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in golden.items() if name.startswith(prefix)}


def reference(golden: dict[str, Tensor], name: str) -> Quantizer:
    return Quantizer.from_reference(state_of(golden, f"{name}.state."))


@pytest.mark.parametrize("name", ["cb8", "cb1", "cb16"])
@pytest.mark.parametrize("refine_iters", [0, 1, 2, 5])
def test_codes_decoding_and_losses_are_the_references(golden, name, refine_iters):
    quantizer, x = reference(golden, name), golden[f"{name}.x"]
    codes = quantizer.encode(x, refine_iters)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes, golden[f"{name}.encode.refine{refine_iters}"])
    decoded = quantizer.decode(codes[:64])
    torch.testing.assert_close(decoded, golden[f"{name}.decode.refine{refine_iters}"], atol=1e-5, rtol=1e-5)
    losses = torch.stack(list(quantizer.loss(x, refine_iters)))
    torch.testing.assert_close(losses, golden[f"{name}.loss.refine{refine_iters}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["cb8", "cb1", "cb16"])
def test_gradients_and_diagnostics_are_the_references(golden, name):
    quantizer, x = reference(golden, name), golden[f"{name}.x"]
    loss = quantizer.loss(x, 1).total
    torch.testing.assert_close(loss, golden[f"{name}.train_loss_refine1"], atol=1e-5, rtol=1e-5)
    loss.backward()
    gradients = {
        "centers": quantizer.centers.grad[:, :4],
        "to_logits.weight": quantizer.to_logits.weight.grad[::37],
        "to_logits.bias": quantizer.to_logits.bias.grad,
        "centers_scale": quantizer.centers_scale.grad,
        "logits_scale": quantizer.logits_scale.grad,
    }
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, golden[f"{name}.grad.{key}"], atol=1e-5, rtol=1e-4)
    logits = quantizer.logits(x[:4]).flatten(1)
    torch.testing.assert_close(logits, golden[f"{name}.logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(quantizer.data_mean(), golden[f"{name}.data_mean"], atol=1e-4, rtol=1e-4)
    expected = golden[f"{name}.codebook_correlations"]
    torch.testing.assert_close(quantizer.codebook_correlations(), expected, atol=1e-4, rtol=1e-4)
    batched = quantizer.encode(x.view(2, -1, x.shape[1]))
    assert torch.equal(batched, golden[f"{name}.encode.refine5_3d"])


def test_product_quantizer_and_packing_are_the_references(golden):
    small = Quantizer.from_reference(state_of(golden, "product.in."))
    product, x = small.product(), golden["product.x"]
    expected = Quantizer.from_reference(state_of(golden, "product.out."))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(product.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    for refine_iters in (0, 3):
        codes = small.encode(x, refine_iters)
        assert torch.equal(codes.long(), golden[f"product.in_encode_idx.refine{refine_iters}"])
        packed = pack_codes(codes, 16)
        assert torch.equal(packed, golden[f"product.in_encode_bytes.refine{refine_iters}"])
        assert torch.equal(unpack_codes(packed, 16, 4), codes.long())
        assert torch.equal(
            product.encode(x, refine_iters), golden[f"product.out_encode.refine{refine_iters}"]
        )


def test_packing_keeps_every_code():
    for size, width in ((2, 8), (4, 4), (16, 6), (256, 3), (4, 3)):
        codes = torch.randint(size, (50, width))
        assert torch.equal(unpack_codes(pack_codes(codes, size), size, width), codes)


def direct_round(centers: Tensor, x: Tensor, codes: Tensor) -> Tensor:
    """One refinement of one frame x (D,) in D-space, as the specification words it (float64)."""
    num_codebooks, size, _ = centers.shape
    current = [centers[n, codes[n]] for n in range(num_codebooks)]
    error = sum(current) - x
    groups = []
    for n in range(num_codebooks):
        changes = centers[n] - current[n]
        groups.append(([[k] for k in range(size)], changes, (error + changes).square().sum(1)))

    def cut(group, limit):
        order = group[2].argsort()[:limit]
        return [group[0][i] for i in order], group[1][order], group[2][order]

    base = error.square().sum()
    while len(groups) > 1 or len(groups[0][0]) > 1:
        limits = [candidates_kept(len(group[0][0]), size) for group in groups]
        if len(groups) == 1:
            groups = [cut(groups[0], 1)]
            continue
        groups = [cut(g, limit) if len(g[0]) > limit else g for g, limit in zip(groups, limits)]
        merged = []
        for a, b in zip(groups[0::2], groups[1::2]):
            cost = a[2][:, None] + b[2][None, :] - base + 2 * a[1] @ b[1].T
            changes = (a[1][:, None] + b[1][None, :]).flatten(0, 1)
            merged.append(([i + j for i in a[0] for j in b[0]], changes, cost.flatten()))
        groups = merged + groups[2 * len(merged) :]
    return torch.tensor(groups[0][0][0])


@pytest.mark.parametrize(
    "num_codebooks, size, dim",
    [(8, 16, 24), (4, 256, 20), (8, 256, 16), (1, 256, 8), (3, 16, 12), (5, 32, 16), (6, 4, 8), (32, 16, 24)],
)
def test_gram_search_is_the_direct_search(num_codebooks, size, dim):
    generator = torch.Generator().manual_seed(num_codebooks * 1000 + size)
    quantizer = Quantizer(dim, num_codebooks, size)
    with torch.no_grad():
        quantizer.centers.copy_(torch.randn(num_codebooks, size, dim, generator=generator))
    x = 2 * torch.randn(6, dim, generator=generator) + 1
    start = torch.randint(size, (6, num_codebooks), generator=generator)
    table = quantizer.code_table()
    for iterations in (1, 2):
        found = search.refine(table, table.project(x), start, iterations)
        for frame in range(len(x)):
            expected = start[frame]
            for _ in range(iterations):
                expected = direct_round(quantizer.centers.detach().double(), x[frame].double(), expected)
            assert torch.equal(found[frame], expected)


def test_search_of_two_small_codebooks_is_exhaustive():
    quantizer = Quantizer(3, 2, 8)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    codes = quantizer.encode(x, 1).long()
    pairs = torch.tensor(list(itertools.product(range(8), range(8))))
    errors = (quantizer.decode(pairs)[None] - x[:, None]).square().sum(-1)
    found = (quantizer.decode(codes) - x).square().sum(-1)
    torch.testing.assert_close(found, errors.min(dim=1).values)


def test_best_search_is_never_worse_than_start_or_plain():
    torch.manual_seed(3)
    quantizer, x = Quantizer(16, 8, 256), torch.randn(64, 16)
    keeping = Quantizer(16, 8, 256, search="best")
    keeping.load_state_dict(quantizer.state_dict())
    assert keeping.id != quantizer.id  # other tokens, another identity

    def error(codes: Tensor) -> Tensor:
        return (quantizer.decode(codes) - x).square().sum(-1)

    best = error(keeping.encode(x, 3))
    for refine_iters in range(4):
        assert (best <= error(quantizer.encode(x, refine_iters)) + 1e-5).all()
    # The untrained search is not monotone, so that keeping the best must have mattered somewhere.
    assert (best < error(quantizer.encode(x, 3)) - 1e-5).any()


def test_error_of_is_the_decoded_error():
    torch.manual_seed(4)
    quantizer, x = Quantizer(10, 3, 16), torch.randn(20, 10)
    codes, table = quantizer.encode(x), quantizer.code_table()
    error = search.error_of(table, table.project(x), codes.long()) + x.square().sum(1)
    torch.testing.assert_close(error, (quantizer.decode(codes) - x).square().sum(1), atol=1e-4, rtol=1e-4)


def test_a_frames_tokens_do_not_depend_on_its_batch():
    torch.manual_seed(5)
    quantizer, x = Quantizer(24, 4, 64), torch.randn(700, 24)
    whole = quantizer.encode(x)
    assert torch.equal(whole, quantizer.encode(x, memory_budget_mb=1))
    assert torch.equal(whole, torch.cat([quantizer.encode(part) for part in x.split(13)]))


def test_code_table_follows_the_code_vectors():
    torch.manual_seed(6)
    quantizer, x = Quantizer(8, 2, 16), torch.randn(50, 8)
    before = quantizer.encode(x)
    with torch.no_grad():
        quantizer.centers.copy_(quantizer.centers.flip(1))
    fresh = Quantizer(8, 2, 16)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh.encode(x), quantizer.encode(x))
    assert not torch.equal(before, quantizer.encode(x))


def test_normalisation_is_applied_once_and_undone():
    torch.manual_seed(7)
    plain, x = Quantizer(12, 4, 16), torch.randn(30, 12)
    scaled = Quantizer(12, 4, 16)
    scaled.load_state_dict(plain.state_dict())
    mean, std = torch.randn(12), torch.rand(12) + 0.5
    std[0] = 0.0  # a dead channel must not make NaN
    scaled.set_normalisation(mean, std)
    shifted = x * (std + 1e-5) + mean
    # Almost: (x * std + mean - mean) / std rounds.
    same = (plain.encode(x) == scaled.encode(shifted)).float().mean()
    assert same > 0.95
    codes = plain.encode(x)
    torch.testing.assert_close(scaled.decode(codes), plain.decode(codes) * (std + 1e-5) + mean)


def test_more_than_the_references_codebooks():
    torch.manual_seed(8)
    for num_codebooks, size in ((64, 16), (7, 256), (2, 2)):
        quantizer, x = Quantizer(16, num_codebooks, size), torch.randn(3, 2, 16)
        codes = quantizer.encode(x, 2)
        assert codes.shape == (3, 2, num_codebooks) and int(codes.max()) < size
        assert quantizer.decode(codes).shape == x.shape


def test_file_keeps_everything_and_its_bytes(tmp_path):
    torch.manual_seed(9)
    quantizer, x = Quantizer(6, 2, 16, search="best"), torch.randn(20, 6)
    quantizer.set_normalisation(torch.randn(6), torch.rand(6) + 1)
    quantizer.provenance = {"teacher": {"teacher_id": "t"}, "seed": 1}
    path = quantizer.save(tmp_path / "one")
    again = Quantizer.load(tmp_path / "one")
    assert (again.id, again.provenance) == (quantizer.id, quantizer.provenance)
    assert again.search == "best"
    assert torch.equal(again.encode(x), quantizer.encode(x))
    assert again.save(tmp_path / "two.safetensors").read_bytes() == path.read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))
    with torch.no_grad():
        again.mean[0] += 1e-3
    assert again.id != quantizer.id and len(again.id) == 16


def test_files_of_others_are_refused_with_a_reason(tmp_path):
    with pytest.raises(ValueError, match="no quantiser at .*train_quantizer"):
        Quantizer.load(tmp_path)
    broken = tmp_path / "quantizer.safetensors"
    broken.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Quantizer.load(tmp_path)
    with pytest.raises(ValueError, match="not a quantiser of this library"):
        Quantizer.load(GOLDEN)
    path = Quantizer(4, 1, 4).save(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="changed or damaged"):
        Quantizer.load(path)


def test_reference_files_with_half_precision_statistics(golden, tmp_path):
    state = state_of(golden, "cb1.state.")
    mean, std = torch.randn(24).half(), (torch.rand(24) + 0.5).half()
    path = tmp_path / "reference.pt"
    torch.save({"quantizer": state, "mean": mean, "std": std}, path)
    quantizer = Quantizer.from_reference(path)
    assert quantizer.mean.dtype == torch.float32
    assert torch.equal(quantizer.std, std.float())
    assert quantizer.provenance["reference_id"] == bytes(state["id_buf"].tolist()).decode()
    exported = quantizer.to_reference()
    assert set(exported["quantizer"]) == set(state)
    assert Quantizer.from_reference(exported).id == quantizer.id
    with pytest.raises(ValueError, match="not a reference quantiser"):
        Quantizer.from_reference({"centers": state["centers"]})
    with pytest.raises(ValueError, match="not positive"):
        Quantizer.from_reference({"quantizer": state, "mean": None, "std": torch.zeros(24)})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Quantizer(4, 0), "num_codebooks is 0: it must be in 1..64"),
        (lambda: Quantizer(4, 2, 4, "exact"), "search is 'exact': use one of best, reference"),
        (lambda: Quantizer(4, 65), "num_codebooks is 65"),
        (lambda: Quantizer(4, 2, 257), "codebook_size is 257"),
        (lambda: Quantizer(0, 2), "dim is 0"),
        (
            lambda: Quantizer(4, 2, 4).encode(torch.zeros(3, 5)),
            "5 channels but the quantiser was trained for 4",
        ),
        (lambda: Quantizer(4, 2, 4).encode(torch.full((1, 4), torch.nan)), "NaN or infinity"),
        (lambda: Quantizer(4, 2, 4).encode(torch.zeros(1, 4), -1), "refine_iters is -1"),
        (lambda: Quantizer(4, 2, 4).decode(torch.zeros(1, 3)), "3 codebooks but the quantiser has 2"),
        (lambda: Quantizer(4, 3, 16).product(), "even number of codebooks"),
    ],
)
def test_errors_say_what_and_how_much(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_tokens_of_another_quantiser_are_refused(tmp_path):
    quantizer = Quantizer(4, 2, 4)
    quantizer.save(tmp_path / "quantizer")
    path = str(tmp_path / "quantizer")
    checking.check_quantizer(path, "tokens", quantizer.id)
    with pytest.raises(
        ValueError, match=f"tokens holds tokens of quantiser 0123, but .* is {quantizer.id}; del"
    ):
        checking.check_quantizer(path, "tokens", "0123")
