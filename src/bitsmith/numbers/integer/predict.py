"""What a runtime will output for one layer, and how many of its sums saturate on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.integer.accumulate import conv_accumulate, linear_accumulate
from bitsmith.numbers.integer.dyadic import dyadic_multiplier, requantize_dyadic
from bitsmith.numbers.integer.fixed_point import fixed_point_multiplier, requantize_fixed_point
from bitsmith.numbers.integer.requantize import dequantize_accumulator, multiplier, requantize
from bitsmith.numbers.integer.saturate import (
    conv_accumulate_saturating,
    linear_accumulate_saturating,
)

__all__ = ["Accumulator", "IntegerOperator", "Prediction", "Requantization"]

Accumulator = Literal["int32", "int16_pairs"]
Requantization = Literal["float32", "fixed_point", "fixed_point_single", "dyadic"]


@final
@dataclass(frozen=True, eq=False)
class Prediction:
    """What one layer computes from given codes.

    Attributes:
        output: codes of the output encoding, or float32 where the layer has none.
        sums: int32 accumulators, bias included, the shape of ``output``.
        saturated_pairs: pairs of products that left int16; 0 with exact accumulators.
        wrong_sums: accumulators that saturated pairs made different from the exact sum.
        clipped_outputs: outputs whose real value lies more than half a step outside the range
            of the output encoding.
    """

    output: Tensor
    sums: Tensor
    saturated_pairs: int
    wrong_sums: int
    clipped_outputs: int


@final
@dataclass(frozen=True, eq=False)
class IntegerOperator:
    """A convolution or linear layer in integers, as a runtime holds it.

    Attributes:
        weight: int8 codes with zero point 0: ``[O, K]`` of a linear layer, ``[O, I/groups, *k]``
            of a convolution with one or two spatial axes.
        weight_scale: float32 ``[]`` or ``[O]``.
        x: encoding of the input, 8 bits.
        y: encoding of the output; None where the runtime leaves the output in float.
        bias: int32 ``[O]`` in steps of ``x.scale · weight_scale``, or None.
        stride, padding, dilation, groups: of a convolution; one number, or one per spatial axis.

    Raises:
        DataError: types or shapes do not fit; every one is listed.

    255 · 127 summed 256 times, on a machine with VNNI and on one without, whose pairs of products
    saturate in 16 bits:

    >>> from bitsmith.numbers.formats.integer import uint8
    >>> weight = torch.full((1, 256), 127, dtype=torch.int8)
    >>> x, y = Encoding(1.0, 0, uint8), Encoding(65536.0, 0, uint8)
    >>> layer = IntegerOperator(weight, torch.tensor(1.0), x, y)
    >>> codes = torch.full((1, 256), 255, dtype=torch.uint8)
    >>> exact = layer.predict(codes)
    >>> exact.sums.item(), exact.output.item(), exact.saturated_pairs
    (8290560, 127, 0)
    >>> old = layer.predict(codes, accumulator="int16_pairs")
    >>> old.sums.item(), old.output.item(), old.saturated_pairs
    (4194176, 64, 128)
    """

    weight: Tensor
    weight_scale: Tensor
    x: Encoding
    y: Encoding | None = None
    bias: Tensor | None = None
    stride: Sequence[int] = (1,)
    padding: Sequence[int] = (0,)
    dilation: Sequence[int] = (1,)
    groups: int = 1

    def __post_init__(self) -> None:
        wrong = self._wrong_weight() + self._wrong_geometry()
        for name, e in (("x", self.x), ("y", self.y)):
            if e is not None and e.format.bits != 8:
                wrong.append(f"{name} is encoded in 8 bits, not {e.format}")
        if wrong:
            raise DataError(f"not a layer in integers: {'; '.join(wrong)}")

    @property
    def linear(self) -> bool:
        """Whether this is a linear layer, not a convolution."""
        return self.weight.ndim == 2

    def predict(
        self,
        codes: Tensor,
        accumulator: Accumulator = "int32",
        requantization: Requantization = "float32",
    ) -> Prediction:
        """Return what the layer outputs for ``codes``.

        ``accumulator="int32"`` is exact: VNNI, Arm, TFLite and CMSIS-NN. ``"int16_pairs"`` is
        ONNX Runtime on x86 without VNNI, which saturates pairs of products
        (:mod:`~bitsmith.numbers.integer.saturate`); it acts on uint8 input only, since the
        runtime's int8×int8 kernels are exact.

        ``requantization="float32"`` is ONNX Runtime's, ``"fixed_point"`` that of TFLite and
        CMSIS-NN, ``"fixed_point_single"`` theirs with a single rounding, ``"dyadic"`` HAWQ-V3's
        with a multiplier of 16 bits. The last three round ``s_x · s_w / s_y`` from float64, the
        first computes it in float32, each as its runtime does.

        Args:
            codes: of the input encoding; ``[..., K]`` of a linear layer, ``[N, I, *in]`` of a
                convolution.
            accumulator: how products are summed.
            requantization: how sums become output codes.

        Raises:
            DataError: an unknown name; ``codes`` do not fit; int16 pairs of int8 codes; a float
                output asked for in another way than float32.
        """
        self._check_call(codes, accumulator, requantization)
        sums = self._sum(codes)
        pairs = wrong = 0
        if accumulator == "int16_pairs":
            exact = sums
            sums, pairs = self._sum_saturating(codes)
            wrong = int((sums != exact).sum())
        if self.y is None:
            scale = torch.tensor(self.x.scale, dtype=torch.float32) * self.weight_scale
            output = dequantize_accumulator(sums, scale, self._channel_axis(sums))
            return Prediction(output, sums, pairs, wrong, 0)
        output = self._requantize(sums, self.y, requantization)
        return Prediction(output, sums, pairs, wrong, self._clipped(sums, self.y))

    def _sum(self, codes: Tensor) -> Tensor:
        if self.linear:
            return linear_accumulate(codes, self.x.zero_point, self.weight, self.bias)
        steps = (self.stride, self.padding, self.dilation, self.groups)
        return conv_accumulate(codes, self.x.zero_point, self.weight, self.bias, *steps)

    def _sum_saturating(self, codes: Tensor) -> tuple[Tensor, int]:
        if self.linear:
            return linear_accumulate_saturating(codes, self.x.zero_point, self.weight, self.bias)
        steps = (self.stride, self.padding, self.dilation, self.groups)
        return conv_accumulate_saturating(codes, self.x.zero_point, self.weight, self.bias, *steps)

    def _requantize(self, sums: Tensor, y: Encoding, way: Requantization) -> Tensor:
        axis = self._channel_axis(sums)
        if way == "float32":
            ratio = multiplier(self.x.scale, self.weight_scale, y.scale)
            return requantize(sums, ratio, y, axis)
        ratio = self._exact_ratio(y)
        if way == "dyadic":
            return requantize_dyadic(sums, *dyadic_multiplier(ratio), y, axis)
        rounding: Literal["double", "single"] = "double" if way == "fixed_point" else "single"
        return requantize_fixed_point(sums, *fixed_point_multiplier(ratio), y, axis, rounding)

    def _exact_ratio(self, y: Encoding) -> Tensor:
        return self.weight_scale.double() * self.x.scale / y.scale

    def _clipped(self, sums: Tensor, y: Encoding) -> int:
        shape = [1] * sums.ndim
        shape[self._channel_axis(sums)] = -1
        real = sums.double() * self._exact_ratio(y).reshape(shape)
        low, high = y.format.code_min - y.zero_point, y.format.code_max - y.zero_point
        return int(((real < low - 0.5) | (real > high + 0.5)).sum())

    def _channel_axis(self, sums: Tensor) -> int:
        return sums.ndim - 1 if self.linear else 1

    def _wrong_weight(self) -> list[str]:
        wrong = []
        shape = list(self.weight.shape)
        if self.weight.dtype != torch.int8 or self.weight.ndim not in (2, 3, 4):
            wrong.append(
                "weight is int8 [O, K] or [O, I, *kernel] with 1 or 2 spatial axes, not "
                f"{self.weight.dtype} {shape}"
            )
        scale = self.weight_scale
        if scale.dtype != torch.float32 or list(scale.shape) not in ([], [1], shape[:1]):
            wrong.append(
                f"weight_scale is float32 [] or {shape[:1]}, not {scale.dtype} {list(scale.shape)}"
            )
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            wrong.append("weight_scale is positive and finite")
        bias = self.bias
        if bias is not None and (bias.dtype != torch.int32 or list(bias.shape) != shape[:1]):
            wrong.append(f"bias is int32 {shape[:1]}, not {bias.dtype} {list(bias.shape)}")
        return wrong

    def _wrong_geometry(self) -> list[str]:
        steps = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        if self.linear:
            defaults = {"stride": (1,), "padding": (0,), "dilation": (1,)}
            given = [name for name, value in steps.items() if tuple(value) != defaults[name]]
            given += ["groups"] if self.groups != 1 else []
            return [f"a linear layer has no {', '.join(given)}"] if given else []
        wrong = []
        for name, value in steps.items():
            lowest = 0 if name == "padding" else 1
            if len(value) not in (1, self.weight.ndim - 2) or min(value) < lowest:
                wrong.append(
                    f"{name} is one number from {lowest}, or one per spatial axis, not {value}"
                )
        if self.groups < 1 or (self.weight.ndim and self.weight.shape[0] % self.groups):
            wrong.append(f"groups divide the outputs of {list(self.weight.shape)}: {self.groups}")
        return wrong

    def _check_call(self, codes: Tensor, accumulator: str, requantization: str) -> None:
        wrong = []
        if accumulator not in get_args(Accumulator):
            known = ", ".join(get_args(Accumulator))
            wrong.append(f"accumulator is one of {known}, not {accumulator!r}")
        if requantization not in get_args(Requantization):
            known = ", ".join(get_args(Requantization))
            wrong.append(f"requantization is one of {known}, not {requantization!r}")
        elif self.y is None and requantization != "float32":
            wrong.append(f"{requantization} needs y; a float output is sums · scale in float32")
        if accumulator == "int16_pairs" and self.x.format.signed:
            wrong.append("int16_pairs are of uint8 codes; the kernels for int8 codes are exact")
        axis = -1 if self.linear else 1
        inputs = self.weight.shape[1] * self.groups
        ranks = codes.ndim >= 1 if self.linear else codes.ndim == self.weight.ndim
        if codes.dtype != self.x.format.dtype or not ranks or codes.shape[axis] != inputs:
            layout = f"[..., {inputs}]" if self.linear else f"[N, {inputs}, *in]"
            wrong.append(
                f"codes are {self.x.format.dtype} {layout}, not {codes.dtype} {list(codes.shape)}"
            )
        if wrong:
            raise DataError(f"cannot predict: {'; '.join(wrong)}")
