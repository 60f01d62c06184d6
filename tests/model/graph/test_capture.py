"""Capture: what is named how, memory that is changed in place, and the module left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.errors import CaptureError
from bitsmith.model.graph import capture, from_exported, run_float


class Net(nn.Module):
    """A function over one linear layer and a buffer."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def agrees(model: nn.Module, *shape: int) -> list[str]:
    """Capture, run on another batch size, compare; returns the operators."""
    graph = capture(model, torch.randn(2, *(shape or (4,))))
    x = torch.randn(5, *(shape or (4,)))
    with torch.no_grad():
        torch.testing.assert_close(run_float(graph, [x])[0], model.eval()(x.clone()))
    return [n.op for n in graph if n.op != "constant"]


def test_names_and_sources():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)))
    graph = capture(model, torch.randn(2, 3, 8, 8))
    assert [(n.name, n.layer) for n in graph] == [
        ("0", "0"),
        ("1.0.relu", "1.0"),
        ("1.1", "1.1"),
    ]
    assert graph.inputs[0].shape == (-1, 3, 8, 8)
    assert graph.outputs == ("1.1",)
    assert set(graph.params) == {"0.weight", "0.bias", "1.1.weight", "1.1.bias"}


def test_a_batch_of_one_stays_dynamic():
    graph = capture(nn.Flatten(), torch.randn(1, 3, 2))
    assert run_float(graph, [torch.ones(7, 3, 2)])[0].shape == (7, 6)


def test_shared_weights_are_one_parameter():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    graph = capture(Twice(), torch.randn(2, 4, 3, 3))
    assert len({n.params["weight"] for n in graph}) == 1
    assert [n.name for n in graph] == ["a", "b"]
    assert len(graph.params) == 3


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a + b, a * b

    graph = capture(Two(), [torch.randn(2, 3), torch.randn(2, 3)])
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    total, product = run_float(graph, [a, b])
    assert torch.equal(total, a + b)
    assert torch.equal(product, a * b)


def test_exported_programs_can_be_read():
    model = nn.Linear(4, 3).eval()
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (torch.randn(2, 4),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 4)
    torch.testing.assert_close(run_float(from_exported(program), [x])[0], model(x))


def test_the_module_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    capture(model, torch.randn(6, 4))
    assert [m.training for m in model.modules()] == modes == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(CaptureError):
        capture(Net(lambda net, x: {"y": x}).train(), torch.randn(6, 4))
    assert modes == [m.training for m in model.modules()]


def test_the_example_is_not_changed():
    x = torch.randn(2, 4)
    before = x.clone()
    graph = capture(Net(lambda net, x: net.linear(x.relu_())), x)
    run_float(graph, [x])
    assert torch.equal(x, before)


def slot(net: Net, x: Tensor) -> Tensor:
    y = net.linear(x)
    z = y.view(-1, 4)
    z.relu_()
    return z + 1


IN_PLACE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "result": lambda net, x: net.linear(x).add_(1.0).relu_(),
    "read before": lambda net, x: (y := net.linear(x)) * 2 + y.relu_(),
    "read after": lambda net, x: _after(net.linear(x)),
    "clone": lambda net, x: (y := net.linear(x)).clone().mul_(3.0) + y,
    "alias": lambda net, x: _through_alias(net.linear(x)),
    "view that nothing else reads": slot,
    "through dropout": lambda net, x: F.dropout(net.linear(x), 0.5, False).relu_(),
    "carried": lambda net, x: net.linear(x).floor_(),
    "filled": lambda net, x: net.linear(x).zero_() + x,
}


def _after(y: Tensor) -> Tensor:
    y.relu_()
    return y * 2 + y


def _through_alias(y: Tensor) -> Tensor:
    z = y.detach()
    z.mul_(-1.0)
    return y


@pytest.mark.parametrize("name", IN_PLACE)
def test_changes_in_place(name):
    agrees(Net(IN_PLACE[name]))


def test_parametrized_weights_stay_float_and_are_right():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    assert agrees(layer, 4, 5, 5)[-1] == "aten"


def test_attention_modules():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    assert agrees(layer, 5, 8).count("matmul") == 2
