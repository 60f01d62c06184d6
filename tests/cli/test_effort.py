"""``bitsmith quantize --effort medium|high``, ``--weights-as`` and ``--data synthetic``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitsmith.cli.synthetic import PIXELS, parsed_shape
from bitsmith.data import load_dataset
from bitsmith.errors import DataError, InputError
from bitsmith.model.qat.ladder import Ladder
from bitsmith.model.qat.reconstruct import Reconstruction
from bitsmith.model.store import load

STAGES = ["ranges and rounding", "block reconstruction", "distillation"]
FEW = ["--calibration-samples", 64]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    """One epoch, and three steps a block."""
    steps, *others = Reconstruction.__init__.__defaults__
    assert steps == 300
    monkeypatch.setattr(Reconstruction.__init__, "__defaults__", (3, *others))
    blocks, samples, epochs, *rest = Ladder.__init__.__defaults__
    assert len(epochs) == 2
    monkeypatch.setattr(Ladder.__init__, "__defaults__", (blocks, samples, (1, 1), *rest))


@pytest.fixture
def quantize(run, trained, tmp_path):
    def command(*options, data="digits", recipe="W2A2"):
        out = ["--out", tmp_path / "m.onnx"]
        return run("quantize", *trained, "--data", data, "--recipe", recipe, *out, *options)

    return command


def test_high_climbs_and_says_what_each_stage_gave(quantize, run, tmp_path):
    first = ["--effort", "high", "--calibration-samples", 256, "--checkpoint", tmp_path / "kept"]
    ran = quantize(*first, "--json", "-")
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    assert all(stage in ran.err for stage in STAGES)
    summary, *others = ran.json["records"]
    assert summary["effort"] == "high"
    assert summary["n"] == 256
    stages = [r for r in others if r.get("algorithm") in STAGES]
    assert [r["algorithm"] for r in stages if r["metric"] == "distance"] == STAGES
    kept = {r["algorithm"] for r in stages if r["outcome"] == "kept"}
    assert summary["method"] == ("ptq+finetune" if "distillation" in kept else "ptq")
    assert {r["method"] for r in stages if r["algorithm"] != "distillation"} == {"ptq"}
    provenance = load(tmp_path / "m.onnx.bitsmith").provenance
    assert [r["name"] for r in provenance["rungs"]] == STAGES
    assert "Blocks, learned one after another" in ran.err
    blocks = [r for r in others if r.get("metric") == "relative_error"]
    assert [r["layer"] for r in blocks] == [b["segment"] for b in provenance["blocks"]]
    assert len(blocks) > 1
    assert all(r["algorithm"] == STAGES[1] for r in blocks)
    assert all((r["outcome"] == "kept") == (r["value"] < r["reference"]) for r in blocks)
    assert run("verify", tmp_path / "m.onnx", "--data", "digits", "--samples", 64).code == 0
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "distillation.pt",
        "rounding.pt",
    ]
    before = (tmp_path / "m.onnx").read_bytes()
    assert quantize(*first).code == 0  # from the checkpoint
    assert (tmp_path / "m.onnx").read_bytes() == before
    other = quantize(*first, recipe="W3A3")
    assert other.code == 2
    assert "is of another run" in other.err


def test_the_goal_ends_it(quantize):
    options = ["--effort", "high", "--goal", 1, *FEW, "--json", "-"]
    ran = quantize(*options)
    assert ran.code == 0
    assert "the goal is reached" in ran.err
    assert {r["algorithm"] for r in ran.json["records"] if "algorithm" in r} == {STAGES[0]}


def test_interrupted_writes_the_best_so_far(quantize, run, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitsmith.model.qat.ladder.reconstruct", interrupted)
    ran = quantize(
        "--effort", "high", "--calibration-samples", 256, "--json", tmp_path / "q.json",
        "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert ran.code == 130
    assert ran.err.startswith("error: interrupted; the best so far (after ranges and rounding)")
    assert "--checkpoint" in ran.err
    written = ["m.onnx", "m.onnx.bitsmith", "q.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == written
    assert json.loads((tmp_path / "q.json").read_text())["records"]
    assert load(tmp_path / "m.onnx.bitsmith").provenance["interrupted"] is True
    assert run("verify", tmp_path / "m.onnx", "--data", "digits", "--samples", 64).code == 0


def test_an_npz_without_labels_is_enough_and_all_of_it_is_taken(quantize, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=load_dataset("digits").split("train").x[:100])
    ran = quantize("--effort", "medium", "--json", "-", data=tmp_path / "d.npz")
    assert ran.code == 0, ran.err
    assert ran.json["records"][0]["n"] == 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--effort", "hihg"], "did you mean 'high'"),
        (["--effort", "medium", "--goal", "0"], "goal in (0, 100]"),
        (["--effort", "medium", "--goal", "nan"], "goal in (0, 100]"),
        (["--effort", "medium", "--calibration-samples", "35"], "at least 36"),
        (["--goal", "90", "--checkpoint", "c"], "--goal, --checkpoint: for effort medium and high"),
        (["--recipe", "W4", "--goal", "90", "--weights-as", "packed"], "--goal, --weights-as: for"),
        (["--weights-as", "int4"], "int8 or packed"),
        (["--input-shape", "1x8x8"], "--input-shape: for samples that are made up"),
        (["--data", "synthetic"], "--input-shape 3x32x32"),
        (["--data", "synthetic", "--input-shape", "8by8"], "as in 3x32x32"),
        (["--data", "synthetic", "--input-shape", "3x8x8"], "does not take a batch"),
        (["--data", "synthetic", "--split", "train", "--input-shape", "1x8x8"], "no splits"),
        (["--data", "synthetic", "--report", "r.html"], "--report needs samples"),
    ],
)
def test_bad_input(quantize, tmp_path, options, said):
    ran = quantize(*options)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_one(quantize, tmp_path):
    (tmp_path / "taken").write_text("")
    for place in ("taken", "taken/below"):
        ran = quantize("--effort", "medium", "--checkpoint", tmp_path / place)
        assert ran.code == 2
        assert "folder" in ran.err
    ran = quantize("--effort", "medium", "--checkpoint", tmp_path / "m.onnx.bitsmith")
    assert "an output too" in ran.err


def test_weights_as_packed_is_smaller_and_the_same(quantize, run, tmp_path):
    assert quantize(recipe="W4A8").code == 0
    plain = (tmp_path / "m.onnx").read_bytes()
    assert quantize("--weights-as", "packed", recipe="W4A8").code == 0
    kinds = {i.data_type for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert onnx.TensorProto.INT4 in kinds
    assert len((tmp_path / "m.onnx").read_bytes()) < len(plain)
    assert run("verify", tmp_path / "m.onnx", "--data", "digits", "--samples", 64).code == 0


def test_synthetic_data_calibrates_and_is_trained_on(quantize, run, tmp_path):
    ran = quantize(
        "--effort", "high", "--input-shape", "1x8x8", *FEW, "--json", "-",
        data="synthetic", recipe="W3A3",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "synthesised 64 samples" in ran.err
    assert "verify" in ran.err.splitlines()[-1]
    assert "--data synthetic" not in ran.err.splitlines()[-1]
    summary = ran.json["records"][0]
    assert (summary["dataset"], summary["n"], summary["effort"]) == ("synthetic", 64, "high")
    assert run("verify", tmp_path / "m.onnx", "--data", "digits", "--samples", 64).code == 0
    without = run("verify", tmp_path / "m.onnx")
    assert without.code == 2
    assert "did not make up itself" in without.err


def test_a_model_without_batch_norms_says_so(run, tmp_path, modules):
    (modules / "plain_net.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
    )
    ran = run("quantize", "plain_net:net", "--data", "synthetic", "--out", tmp_path / "m.onnx")
    assert ran.code == 2
    assert "has no batch norms" in ran.err


@pytest.mark.parametrize("name", sorted(PIXELS))
def test_limits_are_those_of_the_data(name):
    try:
        split = load_dataset(name).split("test")
    except DataError:
        pytest.skip(f"no {name} in BITSMITH_DATA")
    if split.normalization.mean:
        assert PIXELS[name].limits == split.normalization.limits
    else:
        assert PIXELS[name].limits == (split.x.min(), split.x.max())


def test_shapes():
    assert parsed_shape(None) is None
    assert parsed_shape("3x32x32") == parsed_shape("3,32,32") == (3, 32, 32)
    for bad in ("", "3x", "3x0x2", "-1"):
        with pytest.raises(InputError, match="without the batch"):
            parsed_shape(bad)


def test_text_data_is_refused_where_something_learns(run, tmp_path):
    ran = run("quantize", "minilm", "--effort", "high", "--out", tmp_path / "m.onnx")
    assert ran.code == 2
    if "text data set" not in ran.err:  # its weights come first
        pytest.skip("no weights of minilm in BITSMITH_DATA")
    assert not list(Path(tmp_path).iterdir())
