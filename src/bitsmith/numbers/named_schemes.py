"""Schemes that others have named: the OCP Microscaling formats, NVFP4, super-blocks.

>>> named_scheme("mxfp4").granularity
PerGroup(size=32, axis=-1)
>>> sorted(NAMED_SCHEMES)[:3]
['mxfp4', 'mxfp6_e2m3', 'mxfp6_e3m2']
"""

from __future__ import annotations

from dataclasses import replace

from bitsmith.errors import UnknownNameError
from bitsmith.numbers.formats.integer import int4, int6, int8
from bitsmith.numbers.formats.minifloat import (
    e8m0,
    fp4_e2m1fn,
    fp6_e2m3fn,
    fp6_e3m2fn,
    fp8_e4m3fn,
    fp8_e5m2,
    fp16,
)
from bitsmith.numbers.granularity import PerGroup
from bitsmith.numbers.scheme import Scheme

__all__ = ["NAMED_SCHEMES", "named_scheme"]

_MX = PerGroup(32)

NAMED_SCHEMES = {
    # OCP Microscaling Formats 1.0, section 5.2: blocks of 32 with a power of two. MXINT8 reads
    # its integers in 64ths; here the 64 is part of the scale, which is 2^6 lower.
    "mxfp8_e4m3": Scheme(fp8_e4m3fn, granularity=_MX, scale_format=e8m0),
    "mxfp8_e5m2": Scheme(fp8_e5m2, granularity=_MX, scale_format=e8m0),
    "mxfp6_e2m3": Scheme(fp6_e2m3fn, granularity=_MX, scale_format=e8m0),
    "mxfp6_e3m2": Scheme(fp6_e3m2fn, granularity=_MX, scale_format=e8m0),
    "mxfp4": Scheme(fp4_e2m1fn, granularity=_MX, scale_format=e8m0),
    "mxint8": Scheme(int8, granularity=_MX, scale_format=e8m0),
    # arXiv 2509.25149: blocks of 16, scales in fp8, one float32 scale for all of them.
    "nvfp4": Scheme(fp4_e2m1fn, granularity=PerGroup(16), scale_format=Scheme(fp8_e4m3fn)),
    # The layout of GGUF's Q6_K: 16 blocks of 16 share one fp16, each with an int8 scale.
    "superblock_int6": Scheme(
        int6,
        granularity=PerGroup(16),
        scale_format=Scheme(int8, granularity=PerGroup(16), scale_format=fp16),
    ),
    "superblock_int4": Scheme(
        int4,
        granularity=PerGroup(32),
        scale_format=Scheme(int8, granularity=PerGroup(8), scale_format=fp16),
    ),
}
"""Name → scheme, blocks along the last axis."""


def named_scheme(name: str, axis: int = -1) -> Scheme:
    """Return the scheme of that name with its blocks along ``axis``.

    ================  =========  ======  ===========================  ===============
    name              elements   block   scale                        bits per weight
    ================  =========  ======  ===========================  ===============
    mxfp8_e4m3        fp8 e4m3   32      e8m0                         8.25
    mxfp8_e5m2        fp8 e5m2   32      e8m0                         8.25
    mxfp6_e2m3        fp6 e2m3   32      e8m0                         6.25
    mxfp6_e3m2        fp6 e3m2   32      e8m0                         6.25
    mxfp4             fp4 e2m1   32      e8m0                         4.25
    mxint8            int8       32      e8m0                         8.25
    nvfp4             fp4 e2m1   16      fp8 e4m3, float32 a tensor   4.5
    superblock_int6   int6       16      int8, fp16 for 256 weights   6.5625
    superblock_int4   int4       32      int8, fp16 for 256 weights   4.3125
    ================  =========  ======  ===========================  ===============

    Raises:
        UnknownNameError: no scheme has that name.
    """
    if name not in NAMED_SCHEMES:
        raise UnknownNameError("scheme", name, NAMED_SCHEMES)
    scheme = NAMED_SCHEMES[name]
    granularity, inner = scheme.granularity, scheme.scale_format
    assert isinstance(granularity, PerGroup)
    if isinstance(inner, Scheme) and isinstance(inner.granularity, PerGroup):
        inner = replace(inner, granularity=replace(inner.granularity, axis=axis))
    return replace(scheme, granularity=replace(granularity, axis=axis), scale_format=inner)
