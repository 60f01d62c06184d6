"""Verification finds what is equal, and says why when something is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import bitsmith
from bitsmith.deploy.verify import Verification
from bitsmith.errors import DataError, InputError
from bitsmith.model.quantized import QuantizedModel
from emulate import machine as emulate


class Small(nn.Module):
    """Two convolutions, a residual add, a pool and a classifier."""

    def __init__(self, island: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.island = nn.Hardswish() if island else nn.Identity()
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = torch.relu(self.island(self.second(x)) + x)
        return self.head(x.mean((2, 3)))


def batches(n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 12, 12, generator=generator) for _ in range(n)]


@pytest.fixture(scope="module")
def quantized() -> QuantizedModel:
    return bitsmith.ptq(Small(), "W8A8", batches())


@pytest.fixture(scope="module")
def file(quantized: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitsmith.export(quantized, tmp_path_factory.mktemp("files") / "small.onnx")


def test_a_faithful_file_passes_with_no_difference(quantized: QuantizedModel, file: Path) -> None:
    found = bitsmith.verify(quantized, file, batches())
    assert found.passed, found.failures
    assert found.samples == 48
    assert found.planned_integer == found.executed_integer > 0
    assert sum(t.differing + t.isolated_differing for t in found.tensors) == 0
    assert found.output_max_difference == 0
    assert {t.tensor for t in found.tensors} == {"x", *(n.name for n in quantized.program.graph)}
    assert [w.saturated for w in found.worst_cases] == [0, 0, 0]
    assert found.operators["QLinearConv"] == 2


def test_float_island_is_compared_isolated(tmp_path: Path) -> None:
    model = bitsmith.ptq(Small(island=True), "W8A8", batches())
    found = bitsmith.verify(model, bitsmith.export(model, tmp_path / "m.onnx"), batches())
    assert found.passed, found.failures
    island = next(t for t in found.tensors if t.op == "hardswish")
    assert island.outcome == "float"
    assert island.isolated_max_lsb <= 1
    assert "no integer HardSwish" in island.kernel


def test_openvino_runs_the_same_file(quantized: QuantizedModel, file: Path) -> None:
    pytest.importorskip("openvino")
    found = bitsmith.verify(quantized, file, batches(), runtime="openvino")
    assert not found.exact
    assert found.executed_integer is None  # its graph does not say which operator is which
    assert "does not name them" in found.in_integers
    assert found.passed, found.failures
    assert all(t.isolated_max_lsb <= 1 for t in found.tensors if t.magnitude is None)


def _changed(
    file: Path, tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> Path:
    proto = onnx.load(str(file))
    for initializer in proto.graph.initializer:
        if initializer.name == name:
            array = numpy_helper.to_array(initializer).copy()
            initializer.CopyFrom(numpy_helper.from_array(change(array), name))
    path = tmp_path / "changed.onnx"
    onnx.save(proto, str(path))
    return path


def test_one_changed_weight_is_found(quantized: QuantizedModel, file: Path, tmp_path: Path) -> None:
    def bump(array: np.ndarray) -> np.ndarray:
        array.flat[5] += 1
        return array

    changed = _changed(file, tmp_path, "second.weight_codes", bump)
    found = bitsmith.verify(quantized, changed, batches())
    assert not found.passed
    row = next(t for t in found.tensors if t.tensor == "second")
    assert row.isolated_differing > 0
    assert any(f.startswith("second:") for f in found.failures)
    after = next(t for t in found.tensors if t.tensor == "head")
    assert after.isolated_differing == 0
    assert after.cause == "upstream"


def test_a_difference_outside_the_isolated_samples_is_no_pass(
    quantized: QuantizedModel, file: Path, tmp_path: Path
) -> None:
    def bump(array: np.ndarray) -> np.ndarray:
        array.flat[5] += 1
        return array

    changed = _changed(file, tmp_path, "second.weight_codes", bump)
    found = bitsmith.verify(quantized, changed, batches(), isolated_samples=0)
    row = next(t for t in found.tensors if t.tensor == "second")
    assert row.differing > 0
    assert row.isolated_n == 0
    assert row.cause == "not isolated"
    assert any(f.startswith("second:") and "nothing before it" in f for f in found.failures)


def test_an_unfused_region_is_named(quantized: QuantizedModel, file: Path, tmp_path: Path) -> None:
    # A bias scale that is not s_x · s_w makes ONNX Runtime leave the convolution in float.
    changed = _changed(file, tmp_path, "second.bias_scale", lambda array: array * 4)
    found = bitsmith.verify(quantized, changed, batches())
    assert found.not_integer == ("second",)
    assert found.executed_integer == found.planned_integer - 1
    assert any("executed in float: second" in f for f in found.failures)


def quantized_other() -> QuantizedModel:
    return bitsmith.ptq(nn.Sequential(nn.Conv2d(3, 4, 3)), "W8A8", batches())


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    other = bitsmith.ptq(Small(island=True), "W8A8", batches())
    path = bitsmith.export(other, tmp_path / "other.onnx")
    with pytest.raises(InputError, match="not the file this simulation"):
        bitsmith.verify(
            bitsmith.ptq(nn.Sequential(nn.Conv2d(3, 4, 3)), "W8A8", batches()), path, batches()
        )


def test_no_data_and_no_file_are_errors(
    quantized: QuantizedModel, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="gave no batch"):
        bitsmith.verify(quantized, file, [])
    (tmp_path / "bad.onnx").write_bytes(b"\x00not onnx")
    with pytest.raises(InputError, match="not a readable ONNX"):
        bitsmith.verify(quantized, tmp_path / "bad.onnx", batches())


def test_a_claim_that_the_codes_do_not_keep_fails_on_every_machine(tmp_path: Path) -> None:
    names: dict[str, object] = {}
    exec(NETWORKS, names)
    wide, images = names["wide"](), names["batches"]()  # type: ignore[operator]  # of the source text
    made = bitsmith.ptq(wide, "W8A8", images, machine="vnni")
    claimed = QuantizedModel(made.program, made.recipe, made.target, "any", made.provenance)
    found = bitsmith.verify(claimed, bitsmith.export(claimed, tmp_path / "m.onnx"), images)
    assert not found.passed
    assert any("pair sums saturate without VNNI, and the file is said" in f for f in found.failures)


SCRIPT = """
import sys, torch, bitsmith
sys.path.insert(0, sys.argv[2])
from test_verify_networks import wide, batches
model = bitsmith.ptq(wide(), "W8A8", batches(), machine=sys.argv[3])
path = bitsmith.export(model, sys.argv[1])
found = bitsmith.verify(model, path, batches())
print(int(found.passed), sum(w.saturated for w in found.worst_cases),
      sum(w.differing for w in found.worst_cases), *{t.cause for t in found.tensors if t.cause})
"""


@pytest.mark.parametrize(
    ("machine", "passes"), [("any", True), ("any-order", True), ("vnni", False)]
)
def test_saturation_on_a_machine_without_vnni(machine: str, passes: bool, tmp_path: Path) -> None:
    """The worst cases show it where random data would not."""
    reason = emulate.emulation_available()
    if reason is not None:
        pytest.skip(reason)
    (tmp_path / "test_verify_networks.py").write_text(NETWORKS)
    done = emulate.run_as(
        "avx2",
        [sys.executable, "-c", SCRIPT, str(tmp_path / "m.onnx"), str(tmp_path), machine],
    )
    assert done.returncode == 0, done.stderr
    passed, saturated, differing, *causes = done.stdout.split()
    assert bool(int(passed)) == passes
    assert (int(saturated) == 0) == passes
    assert (int(differing) == 0) == passes
    if not passes:
        assert "saturation" in causes


NETWORKS = """
import torch
from torch import nn

def wide():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.sign(conv.weight) * (0.9 + 0.1 * torch.rand_like(conv.weight)))
        conv.weight[:, :2] = conv.weight[:, :2].abs()
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))

def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(16, 4, 8, 8, generator=generator) for _ in range(2)]
"""


def test_result_is_plain_data(quantized: QuantizedModel, file: Path) -> None:
    found = bitsmith.verify(quantized, file, batches(1), samples=5)
    assert isinstance(found, Verification)
    assert found.samples == 5
    assert found.runtime_version.count(".") >= 1
    assert found.failures == []
