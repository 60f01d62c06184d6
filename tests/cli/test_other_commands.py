"""``demo``, ``inspect``, ``list`` and the program itself."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bitsmith
from bitsmith import algorithms
from bitsmith.cli.app import app
from bitsmith.deploy.export import exporters, module_exporters

COMMANDS = ["demo", "quantize", "train", "verify", "evaluate", "inspect", "study", "bench", "list"]


def test_offers_exactly_what_exists(run):
    assert [c.name for c in app.registered_commands] == COMMANDS
    for command in COMMANDS:
        ran = run(command, "--help")
        assert ran.code == 0
        assert "--json" in re.sub(r"\x1b\[[0-9;]*m", "", ran.out)


def test_version_and_help(run):
    assert run("--version").out == f"bitsmith {bitsmith.__version__}\n"
    ran = run()
    assert ran.code == 2
    assert "quantize" in ran.out + ran.err
    assert "Traceback" not in ran.err


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "bitsmith", "list", "runtimes"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "onnxruntime" in done.stdout


def test_a_reader_that_goes_away_is_no_traceback():
    command = f"{sys.executable} -m bitsmith list recipes --json - | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [[], ["--json", "-"]], ids=["table", "json"])
def test_a_reader_that_went_away_is_exit_code_141(options):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bitsmith", "list", "formats", *options]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr
    assert b"error" not in done.stderr


def test_a_current_folder_that_is_gone_is_one_message(tmp_path):
    command = "cd gone && rmdir ../gone && exec {} -m bitsmith list recipes"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", command.format(sys.executable)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the current folder does not exist any more; change into one that does (cd)\n"
    )


@pytest.mark.parametrize(
    "command",
    [["verify", "q.onnx"], ["evaluate", "mlp"], ["bench", "mlp"], ["bench", "kernels"]],
    ids=" ".join,
)
@pytest.mark.parametrize("threads", [0, -1, 1025, 99_999_999_999])
def test_threads_have_a_bound(run, monkeypatch, command, threads):
    """Refused before anything is opened: many threads would take minutes to start."""
    for opener in ("bitsmith.deploy.runtimes.open_session", "torch.set_num_threads"):
        monkeypatch.setattr(opener, lambda *_, **__: pytest.fail("not refused in time"))
    ran = run(*command, "--threads", threads)
    assert ran.code == 2
    assert f"--threads {threads}: from 1 to 1,024" in ran.err
    assert f"{os.cpu_count()} cores" in ran.err


def test_every_option_for_threads_is_bounded():
    commands = {c.name: c.callback for c in app.registered_commands}
    found = {
        name
        for name, callback in commands.items()
        if "threads" in inspect.signature(callback).parameters
    }
    assert found == {"verify", "evaluate", "bench"}, "add what is new to the test above"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("formats", ["int8", "uint1", "fp8_e4m3fn", "nf4", "codebook4"]),
        ("calibrators", ["mse", "percentile", "minmax"]),
        ("algorithms", ["nearest", "pair-bound", "gptq", "awq", "smoothquant"]),
        ("targets", ["onnxruntime"]),
        ("exporters", ["onnx", "onnx-weights", "gguf", "compressed-tensors"]),
        ("studies", ["numbers", "memory", "rounding", "granularity"]),
        ("recipes", ["W8A8", "W4A8-edge8"]),
        ("datasets", ["digits", "moons", "mnist", "fashion-mnist", "cifar10", "stsb", "synthetic"]),
        ("models", ["digits-cnn", "mlp", "mnist-cnn", "cifar-resnet20", "minilm"]),
        ("runtimes", ["onnxruntime", "openvino"]),
    ],
)
def test_list(run, kind, names):
    ran = run("list", kind, "--json", "-")
    assert ran.code == 0
    values = {value for record in ran.json["records"] for value in record.values()}
    assert set(names) <= values
    assert all(len(record["reason"]) > 5 for record in ran.json["records"])


def test_list_of_algorithms_leaves_no_family_out(run):
    """As many as there are class statements with a name below ``bitsmith.algorithms``."""
    ran = run("list", "algorithms", "--json", "-")
    kinds = {r["algorithm"]: r["op"] for r in ran.json["records"]}
    statement = re.compile(r'^class \w+\(\w+, name="([^"]+)"\):', re.MULTILINE)
    folder = Path(algorithms.__file__).parent
    written = [n for p in folder.rglob("*.py") for n in statement.findall(p.read_text())]
    assert sorted(kinds) == sorted(written)
    assert (kinds["gptq"], kinds["awq"]) == ("rounding", "transform")
    assert re.search(r"^gptq +rounding +GPTQ", ran.err, re.MULTILINE)
    assert re.search(r"^awq +transform +Activation", ran.err, re.MULTILINE)
    assert ":func:" not in ran.err


def test_list_of_exporters_says_which_lane_they_are_of(run):
    ran = run("list", "exporters", "--json", "-")
    listed = {(r["op"], r["outcome"]) for r in ran.json["records"]}
    assert listed == {("graph exporter", n) for n in exporters} | {
        ("module exporter", n) for n in module_exporters
    }
    assert re.search(r"^onnx +graph ", ran.err, re.MULTILINE)
    assert re.search(r"^compressed-tensors +module .*\(a folder\)", ran.err, re.MULTILINE)


def test_list_has_nothing_of_what_does_not_exist(run):
    assert run("list", "experiments").code == 2


def test_inspect_a_zoo_model_with_random_weights(run):
    ran = run("inspect", "mnist-cnn", "--json", "-")
    assert ran.code == 0
    assert "random" in ran.err
    sizes = {r["weight_bits"]: r["bytes"] for r in ran.json["records"] if "bytes" in r}
    assert sizes[32] == 4 * 1_199_882
    assert sizes[16] == 2 * 1_199_882
    assert sizes[8] < 0.26 * sizes[32]
    outcomes = {r["layer"]: r["outcome"] for r in ran.json["records"] if "outcome" in r}
    assert outcomes["conv1"] == "integer"


def test_inspect_a_model_of_ones_own(run, small_model, weights):
    without = run("inspect", small_model, "--weights", weights)
    assert without.code == 0
    assert "pass --data" in without.out
    ran = run("inspect", small_model, "--weights", weights, "--data", "digits")
    assert ran.code == 0
    assert "QLinearConv" in ran.out
    assert "100.00 %" not in ran.out  # no single layer does all the work


def test_inspect_models_of_texts(run, small_model, weights):
    asked = run("inspect", small_model, "--weights", weights, "--data", "tinystories")
    assert asked.code == 2
    assert "this is a text data set" in asked.err
    ran = run("inspect", "stories260k")
    if ran.code:
        pytest.skip("no weights of stories260k in BITSMITH_DATA")
    assert "the model takes token ids" in ran.out
    assert "--data" not in ran.out


def test_inspect_tells_sizes_and_errors_and_draws(run, tmp_path):
    for suffix, start in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
        path = tmp_path / f"w{suffix}"
        ran = run("inspect", "mnist-cnn", "--plot", path, "--json", "-")
        assert ran.code == 0, ran.err
        assert path.read_bytes().startswith(start)
    sizes = {r["recipe"]: r for r in ran.json["records"] if "bytes" in r}
    assert {"bfloat16", "int6", "nf4 group 64", "mxfp4 group 32", "ternary"} <= set(sizes)
    assert 4 < sizes["int4 group 64"]["bits_per_weight"] <= 4.51
    tried = {r["weight_bits"] for r in ran.json["records"] if r.get("metric") == "mae"}
    assert tried == {8, 7, 6, 5, 4, 3, 2}
    assert max(map(len, ran.err.splitlines())) <= 160


@pytest.mark.parametrize(("name", "reason"), [("w.pdf", ".svg or .png"), ("no/w.png", "create it")])
def test_inspect_plot_that_cannot_be_written(run, tmp_path, name, reason):
    ran = run("inspect", "mnist-cnn", "--plot", tmp_path / name)
    assert ran.code == 2
    assert reason in ran.err
    assert list(tmp_path.iterdir()) == []


def test_demo(run, tmp_path):
    ran = run("demo", "--quick", "--out", tmp_path / "demo", "--json", tmp_path / "d.json")
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [
        "digits-cnn-w8a8.onnx",
        "digits-cnn-w8a8.onnx.bitsmith",
        "report.html",
    ]
    assert "0 of" in ran.out
    assert "in integers: 10 of 10 planned operators" in ran.out
    share = re.search(r"accuracy\s+([\d.]+) % in float32, ([\d.]+) %", ran.out)
    assert share is not None
    assert float(share[1]) > 95
    assert abs(float(share[1]) - float(share[2])) < 1.5


def test_demo_interrupted_leaves_no_folder(run, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitsmith.model.train.fit", interrupted)
    assert run("demo", "--out", tmp_path / "demo").code == 130
    assert not (tmp_path / "demo").exists()
