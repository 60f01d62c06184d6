"""Options that were given to ``bitsmith quantize`` and that its recipe has no use for."""

from __future__ import annotations

import numpy as np
import pytest

from bitsmith.data import load_dataset

STATIC = {
    "--target": "onnxruntime",
    "--machine": "vnni",
    "--calibrator": "minmax",
    "--effort": "low",
    "--report": "r.html",
}
PACKING = {"--rounding": "nearest", "--transform": "awq", "--ragged": "pad"}
SAMPLES = {"--calibration-samples": 64, "--batch-size": 8, "--seed": 3, "--split": "train"}


@pytest.fixture
def quantize(run, small_model, weights, tmp_path):
    """Run ``quantize`` on the small network; afterwards nothing is there unless it succeeded."""

    def command(recipe, *options, out="m.bitsmith"):
        given = [small_model, "--weights", weights, "--recipe", recipe, "--out", tmp_path / out]
        before = sorted(tmp_path.iterdir())
        ran = run("quantize", *given, *options)
        if ran.code:
            assert sorted(tmp_path.iterdir()) == before
        return ran

    return command


@pytest.mark.parametrize(
    ("recipe", "data", "option", "value"),
    [
        *(("W8", ["--data", "digits"], *item) for item in STATIC.items()),
        *(("W8", [], *item) for item in (STATIC | SAMPLES).items()),
        *(("W8A8", ["--data", "digits"], *item) for item in PACKING.items()),
        ("W8A8", ["--data", "digits"], "--ragged", "error"),  # given, though it is the default
    ],
)
def test_each_is_refused(quantize, recipe, data, option, value):
    ran = quantize(recipe, *data, option, value, out="m.onnx")
    assert ran.code == 2
    assert ran.err.startswith(f"error: recipe {recipe!r}")
    assert f"  {option}: for " in ran.err
    assert "leave out" in ran.err
    assert ran.err.count("--data") == (option in SAMPLES)  # the remedy


def test_all_are_listed_at_once_with_rule_and_remedy(quantize):
    options = [str(word) for item in (STATIC | SAMPLES).items() for word in item]
    message = quantize("W8", *options).err
    assert message.count("error: ") == 1
    assert set(STATIC | SAMPLES) <= {w.strip(",:") for w in message.split()}
    assert "recipe 'W8' packs weights" in message
    assert "choose one such as W8A8" in message
    assert "measure the written file with bitsmith verify" in message
    assert "pass --data" in message
    options = [word for item in PACKING.items() for word in item]
    message = quantize("W8A8", *options, out="m.onnx").err
    assert "--rounding, --transform, --ragged: for recipes that pack weights" in message


def test_options_that_apply_are_accepted(quantize):
    packing = SAMPLES | {"--rounding": "nearest", "--ragged": "pad"}
    given = (word for item in packing.items() for word in item)
    assert quantize("W8", "--data", "digits", *given).code == 0
    assert quantize("W8", "--data", "digits").code == 0
    assert quantize("W8").code == 0
    static = {k: v for k, v in (STATIC | SAMPLES).items() if k != "--report"}
    given = (word for item in static.items() for word in item)
    assert quantize("W8A8", "--data", "digits", *given, out="m.onnx").code == 0


def test_an_npz_with_one_split_calibrates_packed_weights(quantize, tmp_path):
    train = load_dataset("digits").split("train")
    np.savez(tmp_path / "d.npz", x=train.x, y=train.y)
    options = ["--data", tmp_path / "d.npz", "--rounding", "gptq"]
    ran = quantize("W8", *options)
    assert ran.code == 2
    assert "--split" in ran.err
    assert quantize("W8", *options, "--split", "train").code == 0
