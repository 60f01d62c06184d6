"""The three forms of a model's specification."""

import contextlib
import hashlib
import io
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim

from bitsmith.errors import BitsmithError, InputError, WeightsError
from bitsmith.model.graph import capture
from bitsmith.zoo import load_model
from bitsmith.zoo.models.mnist_cnn import Cnn

FOREIGN = """
from torch import nn

constant = 3
instance = nn.Linear(2, 2)

class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)

class Makers:
    net = Net

def number():
    return 5

def needs(argument):
    return Net()
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "bitsmith_test_foreign"
    (tmp_path / f"{name}.py").write_text(FOREIGN)
    (tmp_path / f"{name}_broken.py").write_text("import bitsmith_no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    model = Cnn().eval()
    example = (torch.randn(2, 1, 28, 28),)
    exported = torch.export.export(model, example, dynamic_shapes=({0: Dim.DYNAMIC},))
    torch.export.save(exported, tmp_path / "net.pt2")
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    return tmp_path / "net.pt2"


def test_zoo_name_with_weights(program: Path) -> None:
    path = program.with_suffix(".safetensors")
    loaded = load_model("mnist-cnn", path)
    assert (loaded.name, loaded.dataset, loaded.input_shape) == ("mnist-cnn", "mnist", (1, 28, 28))
    assert loaded.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(part.training for part in loaded.module.modules())


def test_callable(foreign: str, tmp_path: Path) -> None:
    for spec in (f"{foreign}:Net", f"{foreign}:Makers.net"):
        loaded = load_model(spec)
        assert (loaded.name, loaded.dataset, loaded.input_shape) == (spec, None, None)
        assert loaded.weights_sha256 is None
        assert not loaded.module.training
    save_file({"weight": torch.ones(2, 4), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    loaded = load_model(f"{foreign}:Net", tmp_path / "w.safetensors")
    assert torch.equal(loaded.module(torch.ones(1, 4)), torch.full((1, 2), 4.0))
    assert loaded.weights_sha256 is not None


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (":", "needs a module before the colon"),
        (":Nut", "has no attribute 'Nut'"),
        (":constant", "is a int"),
        (":instance", "is a Linear; it must be a callable without arguments"),
        (":number", "returned a int"),
        (":needs", r"calling needs\(\) failed: TypeError"),
        ("_broken:Net", "ModuleNotFoundError: No module named 'bitsmith_no_such_dependency'"),
        ("_absent:Net", "ModuleNotFoundError"),
    ],
)
def test_callable_that_is_wrong(foreign: str, tail: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(foreign + tail)


def test_program(program: Path) -> None:
    loaded = load_model(str(program))
    assert (loaded.name, loaded.dataset, loaded.input_shape) == ("net", None, (1, 28, 28))
    assert loaded.weights_sha256 == hashlib.sha256(program.read_bytes()).hexdigest()
    reference = load_model("mnist-cnn", program.with_suffix(".safetensors")).module
    x = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(loaded.module.eval()(x), reference(x))


def test_program_with_other_weights(program: Path, tmp_path: Path) -> None:
    other = Cnn().eval()
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    loaded = load_model(str(program), tmp_path / "other.safetensors")
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(loaded.module(x), other(x))


def test_program_exported_in_training_mode(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    exported = torch.export.export(model, (torch.randn(3, 4),))
    torch.export.save(exported, tmp_path / "train.pt2")
    with pytest.raises(InputError, match=r"training mode .*dropout.*model\.eval\(\)"):
        load_model(str(tmp_path / "train.pt2"))


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_damaged_program(program: Path, keep: int) -> None:
    program.write_bytes(program.read_bytes()[:keep])
    with pytest.raises(InputError, match=re.escape(str(program))):
        load_model(str(program))


def test_absent_program(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_model(str(tmp_path / "absent.pt2"))


def test_program_with_pickled_objects_is_refused(program: Path) -> None:
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("net/data/constants/opaque_obj_0", b"whatever")
    with pytest.raises(WeightsError, match=r"opaque_obj_0; allow them \(--allow-pickle\)"):
        load_model(str(program))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_program_never_runs_code_unless_allowed(program: Path, tmp_path: Path) -> None:
    """The example inputs are a pickle that PyTorch reads without restriction by itself."""
    mark = tmp_path / "ran"
    trap = tmp_path / "trap.pt2"
    replaced = []
    with zipfile.ZipFile(program) as original, zipfile.ZipFile(trap, "w") as changed:
        for name in original.namelist():
            content = original.read(name)
            if "sample_inputs" in name:
                buffer = io.BytesIO()
                torch.save(Touch(mark), buffer)
                content, _ = buffer.getvalue(), replaced.append(name)
            changed.writestr(name, content)
    assert replaced
    with pytest.raises(InputError, match=re.escape(str(trap))):
        load_model(str(trap))
    assert not mark.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    with contextlib.suppress(InputError):
        load_model(str(trap), allow_pickle=True)
    assert mark.exists()  # the file was a real trap


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("q.onnx", "bitsmith evaluate runs .onnx files"),
        ("q.onnx.bitsmith", "bitsmith evaluate runs .onnx files"),
        ("z.gguf", "the folder beside it, .*z.gguf.bitsmith"),
        ("w.safetensors", "weights go to --weights"),
        ("w.pth", "weights go to --weights"),
        ("net.py", "package.module:callable"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{name} is no model: a model is .*{message}"):
        load_model(str(tmp_path / name))


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_a_program_of_one_batch_size_is_to_be_exported_again(tmp_path: Path, batch: int) -> None:
    model, x = nn.Linear(4, 4).eval(), torch.randn(batch, 4)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "fixed.pt2")
    loaded = load_model(str(tmp_path / "fixed.pt2")).module
    assert loaded(x).shape == (batch, 4)
    with pytest.raises(BitsmithError, match=r"exported for .*\n?.*export it again.*dynamic_shapes"):
        capture(loaded, torch.randn(2, 4))
