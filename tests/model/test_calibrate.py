"""Calibration: one pass in bounded memory, checked data, ranges that operators demand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.errors import DataError
from bitsmith.model.calibrate import as_inputs, encodings, gather
from bitsmith.model.graph import Graph, capture, simplify
from bitsmith.model.place import Placement, place
from bitsmith.model.presets import make_recipe
from bitsmith.model.targets import make_target
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.encoding import Encoding

RECIPE = make_recipe("W8A8")
TARGET = make_target("onnxruntime")
MINMAX = make_calibrator("minmax")


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        for layer in (self.first, self.last):  # exact in every order of summation
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def prepared(function: Callable[[Tensor], Tensor] = torch.relu) -> tuple[Graph, Placement]:
    graph = simplify(capture(Net(function), torch.randn(2, 2, 4, 4)))
    return graph, place(graph, TARGET, RECIPE)


def ramp(n: int = 8, low: float = -2.0, high: float = 3.0) -> Tensor:
    """Images whose values run evenly from ``low`` to ``high``."""
    return torch.linspace(low, high, n * 32).reshape(n, 2, 4, 4)


def found(function: Callable[[Tensor], Tensor], data: object = None) -> dict[str, Encoding]:
    _, placement = prepared(function)
    batches = [ramp()] if data is None else data
    statistics = gather(placement, MINMAX, batches)
    return encodings(placement, TARGET, MINMAX, statistics)


def test_ranges_of_input_and_activations():
    e = found(lambda x: x * 1.0)
    assert (e["x"].low, e["x"].high) == pytest.approx((-2, 3), abs=0.02)
    assert (e["first"].low, e["first"].high) == pytest.approx((-2, 3), abs=0.02)


def test_a_fused_relu_starts_at_zero_and_relu6_ends_at_six():
    e = found(torch.relu)["first"]
    assert (e.zero_point, e.high) == (0, pytest.approx(3.0))
    e = found(F.relu6, [ramp(high=40.0)])["first"]
    assert e.zero_point == 0
    assert e.high <= 6.0 + 1e-6
    e = found(F.relu6, [ramp(high=2.0)])["first"]
    assert e.high == pytest.approx(2.0)


def test_softmax_has_the_range_its_kernel_demands():
    assert found(lambda x: x.softmax(1))["softmax"] == Encoding(
        1 / 256, 0, RECIPE.activation.integer
    )


def test_the_value_of_a_pad_is_inside_the_range():
    e = found(lambda x: F.pad(x, (1, 1), value=9.0))
    assert e["pad"] == e["first"]
    assert e["first"].high == pytest.approx(9.0, abs=0.05)


def test_constants_need_no_data():
    e = found(lambda x: x * 0.5)
    scalar = next(v for k, v in e.items() if "scalar" in k)
    assert scalar.high == pytest.approx(0.5)
    assert scalar.zero_point == 0


def test_parts_merge_to_the_whole():
    _, placement = prepared()
    whole = gather(placement, MINMAX, [ramp(16)])
    parts = [gather(placement, MINMAX, [p]) for p in ramp(16).split(8)]
    for name, statistic in whole.items():
        merged = parts[0][name].merge(parts[1][name]) or parts[0][name]
        limits = [MINMAX.limits(s, RECIPE.activation) for s in (statistic, merged)]
        assert torch.equal(torch.stack(limits[0]), torch.stack(limits[1]))


def test_progress_counts_samples():
    _, placement = prepared()
    seen: list[int] = []
    gather(placement, MINMAX, ramp(16).split(5), advance=seen.append)
    assert seen == [5, 5, 5, 1]


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(2, 3),
        (torch.ones(2, 3), torch.tensor([1, 2])),
        [torch.ones(2, 3), torch.tensor([1, 2])],
        np.ones((2, 3)),
        (np.ones((2, 3), np.float32), np.array([1, 2])),
        (torch.ones(2, 3, dtype=torch.float16), None),
    ],
)
def test_batches_in_every_form(batch):
    (x,) = as_inputs(batch)
    assert x.dtype == torch.float32
    assert x.shape == (2, 3)


def test_batches_without_floats():
    with pytest.raises(DataError, match=r"not torch\.int64, torch\.int64"):
        as_inputs((torch.tensor([1]), torch.tensor([2])))
    with pytest.raises(DataError, match="not nothing"):
        as_inputs(())


BAD: dict[str, tuple[list[object], str]] = {
    "none": ([], "at least 8 samples, and the data gave 0; an exhausted generator"),
    "too few": ([ramp(7)], "at least 8 samples, and the data gave 7$"),
    "channels": ([torch.ones(8, 3, 4, 4)], r"shape \[8, 3, 4, 4\]; .* \[batch, 2, 4, 4\]"),
    "axes": ([torch.ones(8, 32)], r"shape \[8, 32\]"),
    "inputs": ([[ramp(), ramp()]], "takes 1 inputs, a batch has 2"),
    "nan": ([ramp() / 0 * 0], "input x: 256 of 256 values are NaN or infinite"),
    "infinite": ([ramp(), ramp().masked_fill(ramp() > 2.9, torch.inf)], "are NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(name):
    _, placement = prepared()
    data, message = BAD[name]
    with pytest.raises(DataError, match=message):
        gather(placement, MINMAX, data)


def test_activations_that_overflow_name_their_layer():
    with pytest.raises(DataError, match="the activations of mul cannot be calibrated"):
        found(lambda x: x * 3e38 * 10.0)


def test_memory_does_not_grow_with_the_data():
    _, placement = prepared()
    calibrator = make_calibrator("mse")

    def size(batches: int) -> int:
        statistics = gather(placement, calibrator, (ramp() * (i + 1) for i in range(batches)))
        return sum(
            v.numel()
            for s in statistics.values()
            for v in vars(s).values()
            if isinstance(v, Tensor)
        )

    assert 0 < size(64) <= size(4) + 16
