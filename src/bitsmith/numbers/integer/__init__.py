"""The bit-exact integer reference: what ONNX Runtime computes on a CPU for quantized operators.

Pure functions on code tensors. ``accumulate`` makes exact int32 sums, ``saturate`` those of
machines without VNNI, ``requantize`` turns them into codes, and ``elementwise``, ``pooling`` and
``tables`` are the operators that have no accumulator. ``fixed_point`` and ``dyadic`` requantize as
TFLite, CMSIS-NN and HAWQ-V3 do, and ``predict`` puts one whole layer together.
"""

from bitsmith.numbers.integer.accumulate import (
    conv_accumulate,
    linear_accumulate,
    matmul_accumulate,
)
from bitsmith.numbers.integer.dyadic import dyadic_multiplier, requantize_dyadic
from bitsmith.numbers.integer.elementwise import add, mul
from bitsmith.numbers.integer.fixed_point import (
    fixed_point_multiplier,
    requantize_fixed_point,
    rounding_divide_by_power_of_two,
    saturating_rounding_doubling_high_multiply,
)
from bitsmith.numbers.integer.pooling import average_pool, global_average_pool
from bitsmith.numbers.integer.predict import IntegerOperator, Prediction
from bitsmith.numbers.integer.requantize import dequantize_accumulator, multiplier, requantize
from bitsmith.numbers.integer.saturate import (
    conv_accumulate_saturating,
    linear_accumulate_saturating,
    max_pair_sum,
)
from bitsmith.numbers.integer.tables import concat, leaky_relu, logistic, lookup, softmax

__all__ = [
    "IntegerOperator",
    "Prediction",
    "add",
    "average_pool",
    "concat",
    "conv_accumulate",
    "conv_accumulate_saturating",
    "dequantize_accumulator",
    "dyadic_multiplier",
    "fixed_point_multiplier",
    "global_average_pool",
    "leaky_relu",
    "linear_accumulate",
    "linear_accumulate_saturating",
    "logistic",
    "lookup",
    "matmul_accumulate",
    "max_pair_sum",
    "mul",
    "multiplier",
    "requantize",
    "requantize_dyadic",
    "requantize_fixed_point",
    "rounding_divide_by_power_of_two",
    "saturating_rounding_doubling_high_multiply",
    "softmax",
]
