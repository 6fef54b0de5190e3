"""Pruned RNN-T: losses (k2's names and semantics in plain torch), stateless decoder, joiner."""

from spear_lib.transducer.backend import LossBackend, select_backend
from spear_lib.transducer.losses import (
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)
from spear_lib.transducer.modules import Joiner, StatelessDecoder
from spear_lib.transducer.pruning import do_rnnt_pruning, get_rnnt_prune_ranges

__all__ = [
    "Joiner",
    "LossBackend",
    "StatelessDecoder",
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
    "select_backend",
]
