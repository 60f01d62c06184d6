"""No output takes the place of a file that the command reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bitsmith.cli.inputs import overwritten, reading
from bitsmith.model.presets import make_recipe

#: Only the weights have a name that --out takes.
PAIRS = [("--out", "--weights")] + [
    (output, option)
    for output in ("--json", "--report", "--checkpoint")
    for option in ("--weights", "--data", "--recipe")
]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def inputs(tmp_path, weights) -> dict[str, Path]:
    """Everything that quantize reads, with names that suit every output."""
    x = np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "d.npz", x_train=x, x_test=x)
    (tmp_path / "r.json").write_text(json.dumps(make_recipe("W8A8").to_json()))
    own = Path(shutil.copy(weights, tmp_path / "w.onnx"))
    return {"--weights": own, "--data": tmp_path / "d.npz", "--recipe": tmp_path / "r.json"}


@pytest.mark.parametrize(("output", "option"), PAIRS)
def test_quantize_keeps_what_it_reads(run, small_model, inputs, tmp_path, output, option):
    before = contents(tmp_path)
    target = inputs[option]
    given = inputs | {"--out": tmp_path / "q.onnx"}
    if output == "--checkpoint":
        given |= {"--effort": "medium"}
    given[output] = target
    ran = run("quantize", small_model, *(part for pair in given.items() for part in pair))
    assert ran.code == 2
    if output != "--checkpoint":  # that one is refused because it is no folder
        assert f"reads {target}" in ran.err
    assert contents(tmp_path) == before


def test_train_keeps_its_weights_from_its_checkpoint(run, small_model, inputs, tmp_path):
    before = contents(tmp_path)
    given = ["--weights", inputs["--weights"], "--data", "digits", "--recipe", "W8A8"]
    given += ["--epochs", 1, "--checkpoint", inputs["--weights"], "--out", tmp_path / "q.onnx"]
    ran = run("train", small_model, *given)
    assert ran.code == 2
    assert f"reads {inputs['--weights']}" in ran.err
    assert contents(tmp_path) == before


def test_a_packed_model_keeps_what_it_reads(run, small_model, inputs, tmp_path):
    before = contents(tmp_path)
    given = ["--weights", inputs["--weights"], "--recipe", "W8", "--out", tmp_path / "m.bitsmith"]
    ran = run("quantize", small_model, *given, "--json", inputs["--weights"])
    assert ran.code == 2
    assert "this command reads" in ran.err
    assert contents(tmp_path) == before


@pytest.fixture
def copied(artefact, tmp_path) -> Path:
    shutil.copytree(f"{artefact}.bitsmith", tmp_path / "q.onnx.bitsmith")
    return Path(shutil.copy(artefact, tmp_path / "q.onnx"))


@pytest.mark.parametrize("inside", ["", ".bitsmith/graph.json", ".bitsmith/new.json"])
@pytest.mark.parametrize("command", [["verify"], ["evaluate", "--simulate"], ["evaluate"]])
def test_an_artefact_keeps_its_file_and_its_folder(run, copied, tmp_path, command, inside):
    before = contents(tmp_path)
    target = f"{copied}{inside}"
    ran = run(command[0], copied, *command[1:], "--data", "digits", "--json", target)
    assert ran.code == 2
    assert "this command reads" in ran.err
    assert contents(tmp_path) == before


def test_a_reference_and_a_plot_are_looked_at_too(run, small_model, copied, weights, tmp_path):
    own = shutil.copy(weights, tmp_path / "w.svg")
    before = contents(tmp_path)
    given = [small_model, "--data", "digits", "--weights", own]
    for arguments in (
        ["evaluate", *given, "--reference", copied, "--json", copied],
        ["inspect", *given, "--plot", own],
    ):
        ran = run(*arguments)
        assert ran.code == 2
        assert "this command reads" in ran.err
    assert contents(tmp_path) == before


def test_links_and_detours_are_seen_through(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "w.safetensors"
    file.write_text("w")
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(file)
    for named in (file, tmp_path / "sub" / ".." / file.name, tmp_path / "folder" / file.name):
        with reading({"weights": named}):
            assert overwritten(file) == named
            assert overwritten(tmp_path / "folder" / file.name) == named
    with reading({"weights": tmp_path / "link"}):
        assert overwritten(file)
        assert overwritten(tmp_path / "link")
    with reading({"weights": file}):  # a link is replaced, not what it leads to
        assert overwritten(tmp_path / "link") is None


def test_what_is_not_read_may_be_replaced(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    for name in ("formats", "d.npz", "w.pt2.bitsmith"):
        (tmp_path / name).write_text("older")
    assert run("list", "formats", "--json", "formats").code == 0
    assert run("list", "formats", "--json", "formats").code == 0
    assert run("list", "formats", "--json", "d.npz").code == 0
    (tmp_path / "w.pt2").write_text("a program")
    with reading({"model": "w.pt2", "json": "q.json", "out": "w.pt2.bitsmith", "data": None}):
        assert overwritten(Path("w.pt2")) == Path("w.pt2")
        assert overwritten(Path("w.pt2.bitsmith")) is None
        assert overwritten(Path("q.json")) is None
    assert overwritten(Path("w.pt2")) is None


def test_a_folder_that_is_replaced_must_not_hold_an_input(tmp_path):
    folder = tmp_path / "m.bitsmith"
    folder.mkdir()
    (folder / "weights.safetensors").write_text("w")
    with reading({"weights": folder / "weights.safetensors"}):
        assert overwritten(folder)
        assert overwritten(tmp_path) is None  # a checkpoint's folder is added to, not replaced
