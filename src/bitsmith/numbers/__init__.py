"""What a number is: formats, schemes, quantized tensors, and the statistics that choose ranges.

Reading order: :mod:`formats`, :mod:`granularity`, :mod:`scheme`, :mod:`packing`,
:mod:`qtensor`, :mod:`ranges`, :mod:`affine`, :mod:`encoding`, :mod:`integer`,
:mod:`statistics`, :mod:`calibrators`; each builds on those before it.
"""

from bitsmith.numbers.affine import (
    dequantize,
    fake_quantize,
    quantize,
    quantize_codes,
    scale_zero_point,
)
from bitsmith.numbers.calibrators import Calibrator, make_calibrator
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.integer import (
    IntegerFormat,
    int1,
    int2,
    int3,
    int4,
    int5,
    int6,
    int7,
    int8,
    integer_format,
    uint1,
    uint2,
    uint3,
    uint4,
    uint5,
    uint6,
    uint7,
    uint8,
)
from bitsmith.numbers.granularity import Granularity, PerChannel, PerTensor
from bitsmith.numbers.packing import pack, unpack
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Extrema, Histogram, Statistic

__all__ = [
    "Calibrator",
    "Encoding",
    "Extrema",
    "Granularity",
    "Histogram",
    "IntegerFormat",
    "NumberFormat",
    "PerChannel",
    "PerTensor",
    "QTensor",
    "Scheme",
    "Statistic",
    "dequantize",
    "fake_quantize",
    "int1",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "int8",
    "integer_format",
    "make_calibrator",
    "pack",
    "quantize",
    "quantize_codes",
    "scale_zero_point",
    "uint1",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint7",
    "uint8",
    "unpack",
]
