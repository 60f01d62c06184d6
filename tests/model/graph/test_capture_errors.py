"""What cannot be captured says so: which line of the user's code, and what can be done."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitsmith.errors import CaptureError, DataError
from bitsmith.model.graph import capture


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1))


class Branch(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # here
            return x
        return self.linear(x)


class Item(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * float(x.max())  # here


class Numpy(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = np.tanh(x.numpy())  # here
        return self.linear(torch.from_numpy(y))


class FixedSum(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.zeros(3, 4)  # here


class FixedShape(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).reshape(3, -1)  # here


class Dictionary(Base):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # here
        return {"y": self.linear(x)}


class Scalar(Base):
    def forward(self, x: Tensor) -> Tensor:  # here
        return self.linear(x).mean()


class Number(Base):
    def forward(self, x: Tensor) -> float:  # here
        return 3.0


class Counter(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1  # here
        return self.linear(x) * self.count


class Slot(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y[:, 0] = 0  # here
        return y


class StaleView(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        z = y[:, :2]
        y.relu_()  # here
        return z * 2


CASES = {
    Branch: "control flow depends on a tensor's values; use torch.where",
    Item: "control flow depends on a tensor's values",
    Numpy: "rewrite that line with PyTorch operators only",
    FixedSum: "use x.shape[0], flatten or -1 instead of a number",
    FixedShape: "use x.shape[0], flatten or -1 instead of a number",
    Dictionary: "returns dict\n  what to do: return a tensor",
    Scalar: "returns Tensor of no axes",
    Number: "returns float",
    Counter: "changes a parameter or buffer of the model in place",
    Slot: "another view is read later, as an output",
    StaleView: "another view is read later, at test_capture_errors.py:",
}


def marked_line(kind: type[nn.Module]) -> int:
    lines, first = inspect.getsourcelines(kind)
    return first + next(i for i, line in enumerate(lines) if "# here" in line)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_message_names_the_line_and_the_remedy(kind):
    with pytest.raises(CaptureError) as caught:
        capture(kind(), torch.randn(3, 4))
    message = str(caught.value)
    assert CASES[kind] in message
    assert re.search(rf"test_capture_errors\.py:{marked_line(kind)}\b", message), message


def test_random_models_are_refused():
    class Random(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + torch.rand_like(x)

    with pytest.raises(CaptureError, match="may be random or keep state"):
        capture(Random(), torch.randn(3, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(CaptureError, match=rf"weight \({name}\).*\n.*call model.float\(\)"):
        capture(nn.Linear(4, 4).to(dtype), torch.randn(3, 4))


def test_an_example_that_does_not_fit():
    with pytest.raises(DataError, match=r"does not accept input of shape \[3, 5\]"):
        capture(nn.Linear(4, 4), torch.randn(3, 5))
