"""An encoder as an upstream of s3prl (SUPERB), by the rules of its upstream/*/expert.py and hubconf.py.

    import spear_lib.interfaces.s3prl_upstream as spear
    spear.register()                      # before s3prl's main: s3prl.hub.spear_local is there
    S3PRLUpstream("spear_local", path_or_url="exp/pretrain/encoder")

Or copy nothing and name this file where s3prl wants a hubconf: it holds the function ``spear_local``.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spear_lib.interfaces.aligned import HIDDEN_RATE, AlignedEncoder
from spear_lib.interfaces.upstreams import load_upstream

NAME = "spear_local"


class UpstreamExpert(nn.Module):
    """All states at 50 Hz, ceil(samples / 320) frames each, so that both of s3prl's featurizers take them as
    they are. Frozen or fine-tuned is s3prl's choice: gradients reach the encoder.

    Args:
      ckpt: what ``load_upstream`` reads.
      options: whatever else s3prl hands over (model_config, refresh, ...); ignored.
    """

    def __init__(self, ckpt: str, *_: Any, **options: Any) -> None:
        super().__init__()
        self.model = AlignedEncoder(load_upstream(ckpt), layers="all")

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples per frame."""
        return 16000 // HIDDEN_RATE

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """wavs: 1-D tensors of unequal lengths -> hidden_states, a tuple of (B, T, D)."""
        states = self.model(list(wavs)).states
        return {"hidden_states": tuple(states), "last_hidden_state": states[-1]}


def spear_local(ckpt: str, *args: Any, **kwargs: Any) -> UpstreamExpert:
    """The entry that s3prl.hub calls."""
    return UpstreamExpert(ckpt, *args, **kwargs)


def register(name: str = NAME) -> None:
    """Make the upstream known to s3prl in this process."""
    try:
        import s3prl.hub
    except ImportError as error:
        raise RuntimeError("s3prl is not installed: tools/clients.sh superb makes its environment") from error
    setattr(s3prl.hub, name, spear_local)
