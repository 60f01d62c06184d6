"""ATen operators that bitsmith does not write itself: translated, or refused with all reasons."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from bitsmith.deploy.export import export
from bitsmith.errors import ExportError
from bitsmith.model.ptq import ptq
from bitsmith.model.quantized import QuantizedModel

SHAPE = (8, 9, 10)


class Between(nn.Module):
    """conv → ``inside`` → conv."""

    def __init__(self, inside: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inside, self.last = nn.Conv2d(8, 8, 1), inside, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inside(self.first(x)))


def quantized(inside: Callable[[Tensor], Tensor]) -> QuantizedModel:
    torch.manual_seed(0)
    return ptq(Between(inside), "W8A8", [torch.randn(16, *SHAPE)])


class Ends(nn.Module):
    """conv → ``last``, which need not give floats."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(8, 4, 1), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x))


def run(path: object, x: Tensor) -> list[Tensor]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [torch.from_numpy(v) for v in found]


def test_unknown_operators_are_simulated_and_listed_as_float():
    model = quantized(lambda x: x.cumsum(1))
    row = next(r for r in model.coverage if r.op == "aten")
    assert (row.outcome, row.reason) == ("float", "aten.cumsum.default has no integer form")
    assert model(torch.randn(3, *SHAPE)).shape == (3, 4, 9, 10)


@pytest.mark.parametrize("batch", [1, 5])
def test_outputs_that_are_not_floats(batch, tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = ptq(Ends(lambda y: y.argmax(1)), "W8A8", [torch.randn(16, *SHAPE)])
    x = torch.randn(batch, *SHAPE)
    (found,) = run(export(model, tmp_path / "m.onnx"), x)
    assert found.dtype == torch.int64
    assert torch.equal(found, model(x))


def test_own_parameters_of_a_call_are_written(tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    activation = nn.PReLU(4)
    activation.weight.data = torch.tensor([0.1, -0.5, 2.0, 0.0])
    net = nn.Sequential(nn.Conv2d(8, 4, 1), activation)
    model = ptq(net, "W8A8", [torch.randn(16, *SHAPE)])
    x = torch.randn(3, *SHAPE)
    (found,) = run(export(model, tmp_path / "m.onnx"), x)
    torch.testing.assert_close(found, model(x))


def test_several_results_of_one_call(tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = Ends(lambda y: (lambda v, i: v * (i + 1.0))(*y.max(1)))
    model = ptq(net, "W8A8", [torch.randn(16, *SHAPE)])
    x = torch.randn(3, *SHAPE)
    (found,) = run(export(model, tmp_path / "m.onnx"), x)
    torch.testing.assert_close(found, model(x))


def test_what_has_no_onnx_form_is_listed_with_its_line(tmp_path):
    pytest.importorskip("onnxscript")
    model = quantized(lambda x: torch.special.bessel_j0(x) + torch.special.i1e(x))
    with pytest.raises(ExportError) as caught:
        export(model, tmp_path / "m.onnx")
    message = str(caught.value)
    assert message.startswith(".onnx cannot represent:\n")
    for name in ("special_bessel_j0", "special_i1e"):
        assert f"aten.{name}.default at test_foreign.py:" in message
    assert list(tmp_path.iterdir()) == []


def test_without_onnxscript_the_error_names_the_extra(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "onnxscript" else found(name, *a),
    )
    model = quantized(lambda x: x.cumsum(1).flip(2))
    with pytest.raises(ExportError) as caught:
        export(model, tmp_path / "m.onnx")
    message = str(caught.value)
    assert message.count("pip install 'bitsmith[torch-onnx]'") == 2
    assert "aten.cumsum.default at test_foreign.py:" in message
    assert "aten.flip.default at test_foreign.py:" in message
    assert list(tmp_path.iterdir()) == []


def test_plain_models_never_ask_for_onnxscript(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *a: None)
    assert export(quantized(torch.relu), tmp_path / "m.onnx").exists()
