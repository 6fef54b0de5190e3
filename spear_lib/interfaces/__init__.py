"""Encoders as the tools of others want them: one geometry (``aligned``), s3prl, HEAR and X-ARES on it."""

from spear_lib.interfaces.aligned import AlignedEncoder, AlignedOutput
from spear_lib.interfaces.upstreams import load_upstream, upstream_id

__all__ = ["AlignedEncoder", "AlignedOutput", "load_upstream", "upstream_id"]
