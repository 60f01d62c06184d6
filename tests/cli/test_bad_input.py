"""Every bad input: exit code 2, one clear message, and no file left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitsmith.data import load_dataset


@pytest.fixture
def refused(run, small_model, weights, tmp_path):
    """Run ``quantize`` with changes; return the message after checking all that must hold."""

    def command(model=small_model, weights=weights, data="digits", out=None, extra=(), code=2):
        out = out or tmp_path / "m.onnx"
        before = sorted(tmp_path.rglob("*"))
        given = ["--weights", weights] if weights else []
        ran = run("quantize", model, *given, "--data", data, "--out", out, *extra)
        assert ran.code == code
        assert "error: " in ran.err
        assert ran.err.startswith("error: ")
        assert "Traceback" not in ran.err
        assert sorted(tmp_path.rglob("*")) == before, "files were left behind"
        return ran.err

    return command


def npz(path: Path, x, y=None) -> Path:
    np.savez(path, x_train=x, y_train=np.zeros(len(x), np.int64) if y is None else y)
    return path


def test_calibration_set_that_is_empty(refused, tmp_path):
    assert "empty" in refused(data=npz(tmp_path / "d.npz", np.zeros((0, 1, 8, 8), np.float32)))
    assert "0 batches" in refused(data="odd_data:empty")


def test_calibration_set_that_is_too_small(refused, tmp_path):
    message = refused(data=npz(tmp_path / "d.npz", np.zeros((5, 1, 8, 8), np.float32)))
    assert "5 samples" in message
    assert "at least 8" in message
    assert "at least 8" in refused(extra=["--calibration-samples", 7])
    assert "--calibration-samples 1257" in refused(extra=["--calibration-samples", 2000])


def test_data_that_is_not_finite(refused, tmp_path):
    x = np.zeros((300, 1, 8, 8), np.float32)
    x[4, 0, 1, 1], x[5, 0, 0, 0] = np.nan, np.inf
    assert "2 values that are NaN or infinite" in refused(data=npz(tmp_path / "d.npz", x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refused, weights, tmp_path, bad):
    state = load_file(weights)
    state["third.0.weight"][0, 0, 0, 0] = bad
    state["linear.bias"][1] = bad
    save_file(state, tmp_path / "bad.safetensors")
    message = refused(weights=tmp_path / "bad.safetensors")
    assert "not finite (2)" in message
    assert "third.0.weight" in message
    assert "linear.bias" in message


def test_activations_that_overflow(refused, weights, tmp_path):
    state = load_file(weights)
    for layer in ("stem", "first", "second"):
        state[f"{layer}.0.weight"] *= 1e30
    save_file(state, tmp_path / "huge.safetensors")
    message = refused(weights=tmp_path / "huge.safetensors")
    assert "nan" in message.lower() or "inf" in message


def test_weights_that_do_not_fit(refused, weights, tmp_path):
    state = load_file(weights)
    del state["linear.bias"], state["stem.0.weight"]
    state["fc.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "bad.safetensors")
    message = refused(weights=tmp_path / "bad.safetensors")
    assert "missing in the file (2): stem.0.weight, linear.bias" in message
    assert "not in the model (1): fc.bias" in message


def test_weights_file_that_is_damaged(refused, weights, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in refused(weights=tmp_path / "cut.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights in here")
    assert "is not a safetensors file" in refused(weights=tmp_path / "text.safetensors")
    assert "No such file" in refused(weights=tmp_path / "none.safetensors")


def test_pickled_weights_are_refused_unless_allowed(refused, run, digits, weights, tmp_path):
    torch.save(load_file(weights), tmp_path / "w.pth")
    message = refused(weights=tmp_path / "w.pth")
    assert "pickle" in message
    assert "--allow-pickle" in message
    allowed = [digits[0], "--weights", tmp_path / "w.pth", "--allow-pickle", "--data", "digits"]
    assert run("quantize", *allowed, "--out", tmp_path / "m.onnx").code == 0


def test_unknown_names_suggest_the_nearest(refused):
    assert "did you mean 'W8A8'?" in refused(extra=["--recipe", "W8B8"])
    assert "did you mean 'onnxruntime'?" in refused(extra=["--target", "onnxruntim"])
    assert "did you mean 'digits'?" in refused(data="digit")
    message = refused(data="nosuch")
    assert all(name in message for name in ("digits", "stsb", "tinystories", "synthetic"))
    assert "did you mean 'digits-cnn'?" in refused(model="digit-cnn")
    assert "did you mean 'mse'?" in refused(extra=["--calibrator", "mze"])
    assert "did you mean 'vnni'?" in refused(extra=["--machine", "vni"])
    assert "did you mean 'low'?" in refused(extra=["--effort", "lo"])


def test_weight_only_recipes_that_cannot_be(refused, tmp_path):
    message = refused(extra=["--recipe", "W4G64"])
    assert "group_size must divide" in message
    assert "ragged='pad'" in message
    assert "--ragged pad" in message
    assert "ends in .bitsmith" in refused(extra=["--recipe", "W8"], out=tmp_path / "m.txt")
    assert "--ragged is error, pad or float" in refused(extra=["--recipe", "W8", "--ragged", "x"])


def test_remedies_are_options_of_the_command_line(run, small_model, weights, tmp_path):
    given = [small_model, "--weights", weights, "--out", tmp_path / "m.bitsmith", "--recipe", "W8"]
    ran = run("quantize", *given, "--transform", "smoothquant")
    assert ran.code == 2
    assert "(--data DATA)" in ran.err
    ran = run("quantize", "digits-cnn", "--out", tmp_path / "m.onnx")
    assert ran.code == 2
    assert "--weights FILE" in ran.err


def test_data_of_the_wrong_shape(refused):
    assert "shape" in refused(data="moons")
    message = refused(model="cifar-resnet20", weights=None) if _has_resnet() else "[3, 32, 32]"
    assert "[3, 32, 32]" in message


def _has_resnet() -> bool:
    folder = os.environ.get("BITSMITH_DATA")
    return bool(folder) and (Path(folder) / "cifar10-resnet20.safetensors").is_file()


def test_calibration_on_the_test_split(refused):
    message = refused(extra=["--split", "test"])
    assert "train split only" in message


def test_output_that_cannot_be_written(refused, tmp_path):
    assert "does not exist; create it first" in refused(out=tmp_path / "none" / "m.onnx")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(out=tmp_path / "file" / "m.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "it is a folder" in refused(out=tmp_path / "folder.onnx")
    (tmp_path / "k.onnx.bitsmith").mkdir()
    (tmp_path / "k.onnx.bitsmith" / "mine.txt").write_text("keep")
    assert "not a folder that bitsmith wrote" in refused(out=tmp_path / "k.onnx")
    assert ".onnx" in refused(out=tmp_path / "m.pb")
    extra = ["--json", tmp_path / "none" / "q.json", "--report", tmp_path / "none" / "r.html"]
    message = refused(extra=extra)
    assert "only --json writes to standard output" in refused(extra=["--report", "-"])
    assert "q.json" in message
    assert "r.html" in message


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a place that root cannot write")
def test_output_in_a_place_that_refuses_even_root(refused):
    assert "cannot be written" in refused(out=Path("/proc/self/m.onnx"))


def test_usage(run):
    ran = run("quantize", "digits-cnn")
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert "--out" in ran.err
    assert run("quantise").code == 2
    assert run("verify", "a.onnx", "--samples", "x").code == 2


def test_keyboard_interrupt(refused):
    assert "interrupted" in refused(data="odd_data:interrupted", code=130)


@pytest.mark.parametrize("name", ["bitsmith.deploy.export.export", "bitsmith.model.store.save"])
def test_interrupt_while_writing_keeps_the_older_file(
    run, digits, artefact, tmp_path, monkeypatch, name
):
    out = tmp_path / "m.onnx"
    assert run("quantize", *digits, "--out", out, "--recipe", "W4A8").code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(name, interrupted)
    ran = run("quantize", *digits, "--out", out)
    assert ran.code == 130
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signal_in_the_middle_of_the_work(tmp_path, modules):
    """A real process, a real interrupt, while samples are being fetched.

    Nothing here waits for a time to pass: the process says that it is there; it handles the
    signal even if it inherits that interrupts are ignored, as jobs in the background do; and it
    works in short steps, because a signal just before one long sleep would not end that.
    """
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n\n\n"
        "def data(split):\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    print('reached', flush=True)\n"
        "    parent = os.getppid()\n"
        "    while os.getppid() == parent:\n"
        "        time.sleep(0.01)\n"
    )
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-m", "bitsmith", "quantize", "small_digits:net"]
    command += ["--data", "slow:data", "--out", str(place / "m.onnx")]
    environment = {**os.environ, "PYTHONPATH": str(modules)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            reached = process.stdout.readline()  # empty if the process ended before
            during = list(place.iterdir())
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        finally:
            process.kill()
    assert reached == b"reached\n", err.decode()
    assert during, "the temporary folders exist while it works"
    assert process.returncode == 130
    assert err.decode().startswith("error: interrupted")
    assert not list(place.iterdir())


def test_bad_input_of_the_other_commands(run, artefact, tmp_path):
    for name in ("z.gguf", "z.onnx"):
        (tmp_path / name).touch()
    cases = [
        (["verify", tmp_path / "none.onnx", "--data", "digits"], "does not exist"),
        (["verify", tmp_path], "is a folder; verify takes an .onnx file"),
        (["verify", "."], ". is a folder; verify takes an .onnx file"),
        (["verify", f"{artefact}.bitsmith"], f"beside it: {artefact}"),
        (["verify", tmp_path / "z.gguf"], "z.gguf is no .onnx file; verify takes"),
        (["evaluate", tmp_path / "z.gguf"], "z.gguf is no model"),
        (["evaluate", tmp_path / "z.onnx", "--data", "digits"], "z.onnx is empty; an ONNX file is"),
        (["inspect", artefact], "verify .onnx files"),
        (["inspect", tmp_path / "w.safetensors"], "weights go to --weights"),
        (["verify", artefact, "--data", "digit"], "did you mean 'digits'"),
        (["verify", artefact, "--data", "digits", "--split", "valid"], "unknown split"),
        (["verify", artefact, "--data", "moons"], "shape"),
        (["verify", artefact, "--runtime", "openvin"], "did you mean 'openvino'"),
        (["evaluate", tmp_path / "none.onnx", "--data", "digits"], "no file"),
        (["evaluate", artefact, "--data", "moons"], "cannot run the file"),
        (["evaluate", "small_digits:net"], "which data?"),
        (["evaluate", artefact, "--weights", "w.safetensors"], "has its own weights"),
        (["evaluate", "small_digits:net", "--data", "digits", "--simulate"], "--simulate needs"),
        (["inspect", "resnet"], "did you mean"),
        (["inspect", "cifar-resnet20", "--weights", tmp_path / "none"], "No such file"),
        (["list", "format"], "did you mean 'formats'"),
        (["list", "formats", "--json", tmp_path / "none" / "f.json"], "does not exist"),
        (["demo", "--out", artefact], "cannot be made"),
    ]
    for arguments, expected in cases:
        ran = run(*arguments)
        assert ran.code == 2, arguments
        assert ran.err.startswith("error: "), arguments
        assert expected in ran.err, arguments


def test_file_that_is_no_onnx(run, artefact, tmp_path):
    (tmp_path / "m.onnx").write_bytes(artefact.read_bytes()[:1000])
    ran = run("evaluate", tmp_path / "m.onnx", "--data", "digits")
    assert ran.code == 2
    assert "error: " in ran.err


def test_capture_that_fails_names_the_line(refused, modules, tmp_path):
    (modules / "branching.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(64, 10)\n\n"
        "    def forward(self, x):\n"
        "        return self.linear(x.flatten(1)) if x.sum() > 0 else x.flatten(1)\n"
    )
    message = refused(model="branching:Net", weights=None)
    assert "branching.py:10" in message
    assert "what to do" in message


def test_samples_are_those_asked_for(run, artefact):
    ran = run("verify", artefact, "--samples", 100_000, "--json", "-")
    assert ran.code == 0
    last = ran.json["records"][-1]
    assert last["n"] == load_dataset("digits").split("test").n
