"""Schemes that others have named: the OCP Microscaling formats, NVFP4, super-blocks, GGUF.

>>> named_scheme("mxfp4").granularity
PerGroup(size=32, axis=-1)
>>> sorted(NAMED_SCHEMES)[:3]
['mxfp4', 'mxfp6_e2m3', 'mxfp6_e3m2']
"""

from __future__ import annotations

from dataclasses import replace

from bitsmith.errors import UnknownNameError
from bitsmith.numbers.formats.integer import (
    int3,
    int4,
    int5,
    int6,
    int8,
    uint2,
    uint4,
    uint5,
    uint6,
)
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

__all__ = ["GGUF_SCHEMES", "NAMED_SCHEMES", "named_scheme"]

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

# Levels of GGUF's super-blocks of 256: integers times one fp16.
_UINT4 = Scheme(uint4, False, PerGroup(16), scale_format=fp16)
_UINT6 = Scheme(uint6, False, PerGroup(8), scale_format=fp16)

GGUF_SCHEMES = {
    "Q8_0": Scheme(int8, True, PerGroup(32), narrow_range=False, scale_format=fp16),
    "Q4_0": Scheme(int4, True, PerGroup(32), scale_format=fp16),
    "Q4_1": Scheme(uint4, False, PerGroup(32), scale_format=fp16, offset_format=fp16),
    "Q5_0": Scheme(int5, True, PerGroup(32), scale_format=fp16),
    "Q5_1": Scheme(uint5, False, PerGroup(32), scale_format=fp16, offset_format=fp16),
    "Q2_K": Scheme(uint2, False, PerGroup(16), scale_format=_UINT4, offset_format=_UINT4),
    "Q3_K": Scheme(
        int3,
        granularity=PerGroup(16),
        scale_format=Scheme(int6, granularity=PerGroup(16), scale_format=fp16),
    ),
    "Q4_K": Scheme(uint4, False, PerGroup(32), scale_format=_UINT6, offset_format=_UINT6),
    "Q5_K": Scheme(uint5, False, PerGroup(32), scale_format=_UINT6, offset_format=_UINT6),
    "Q6_K": Scheme(
        int6,
        granularity=PerGroup(16),
        scale_format=Scheme(int8, granularity=PerGroup(16), narrow_range=False, scale_format=fp16),
    ),
}
"""The block types of GGUF files, name → scheme: the values are those of their definition in ggml,
``d · q``, ``d · q + m`` and ``d · sc · q − dmin · m`` in float32, bit for bit."""


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
    Q8_0              int8       32      fp16                         8.5
    Q4_0, Q5_0        int4, 5    32      fp16                         4.5, 5.5
    Q4_1, Q5_1        uint4, 5   32      fp16, and an fp16 offset     5, 6
    Q2_K              uint2      16      uint4 twice, fp16 twice      2.625
    Q3_K              int3       16      int6, fp16 for 256 weights   3.4375
    Q4_K, Q5_K        uint4, 5   32      uint6 twice, fp16 twice      4.5, 5.5
    Q6_K              int6       16      int8, fp16 for 256 weights   6.5625
    ================  =========  ======  ===========================  ===============

    "Twice" is a scale and an offset: ``scale · code − offset``.

    Raises:
        UnknownNameError: no scheme has that name.
    """
    known = NAMED_SCHEMES | GGUF_SCHEMES
    if name not in known:
        raise UnknownNameError("scheme", name, known)
    return _along(known[name], axis)


def _along(scheme: Scheme, axis: int) -> Scheme:
    """Return the scheme with the groups of all its levels along ``axis``."""
    scales, offsets, granularity = scheme.scale_format, scheme.offset_format, scheme.granularity
    return replace(
        scheme,
        granularity=(
            replace(granularity, axis=axis) if isinstance(granularity, PerGroup) else granularity
        ),
        scale_format=_along(scales, axis) if isinstance(scales, Scheme) else scales,
        offset_format=_along(offsets, axis) if isinstance(offsets, Scheme) else offsets,
    )
