"""``bitsmith evaluate`` of models of text."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def stories() -> Path:
    folder = Path(os.environ.get("BITSMITH_DATA", "nowhere"))
    for name in ("stories260k.safetensors", "tinystories-val-a-tok512.npz"):
        if not (folder / name).is_file():
            pytest.skip(f"needs {name} in the folder BITSMITH_DATA")
    return folder / "stories260k.safetensors"


def test_loss_of_a_model_and_its_difference_to_a_reference(run, stories, tmp_path):
    state = load_file(stories)
    worse = {name: value + 0.02 * torch.sign(value) for name, value in state.items()}
    save_file(worse, tmp_path / "worse.safetensors")
    with_weights = ("--weights", tmp_path / "worse.safetensors", "--limit", "12", "--json", "-")
    ran = run("evaluate", "stories260k", *with_weights, "--reference", "stories260k")
    assert ran.code == 0, ran.err
    first, second = ran.json["records"]
    assert (first["metric"], first["dataset"], first["split"]) == (
        "loss",
        "tinystories",
        "validation",
    )
    assert first["n"] == second["n"]
    assert first["bytes"] == second["bytes"] == 4 * 260_032  # the tied head counts once
    assert 1 < second["value"] < 2 < first["value"]
    assert first["reference"] == second["value"]
    assert first["delta"] == pytest.approx(first["value"] - second["value"])
    assert 0 < first["delta_low"] < first["delta"] < first["delta_high"]
    assert "paired bootstrap" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stories260k", "--runtime", "onnxruntime"), "a MODEL of text runs in torch"),
        (("stories260k", "--data", "digits"), "takes token ids; it is for the text data set"),
        (("stories260k", "--split", "train"), "split of 'tinystories' 'train'"),
    ],
)
def test_what_a_model_of_text_cannot_do(run, stories, arguments, message):
    ran = run("evaluate", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_model_whose_tokens_are_others(run, stories, tmp_path):
    ran = run("evaluate", "digits-cnn", "--data", "tinystories", "--weights", random_cnn(tmp_path))
    assert ran.code == 2
    assert "'digits-cnn' is for 'digits'" in ran.err


def random_cnn(folder: Path) -> Path:
    from bitsmith.zoo import load_model

    path = folder / "cnn.safetensors"
    save_file(load_model("digits-cnn", pretrained=False).module.state_dict(), path)
    return path
