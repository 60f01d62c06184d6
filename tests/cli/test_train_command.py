"""``bitsmith train``: training that knows, from the command line."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch

from bitsmith.data import load_dataset
from bitsmith.deploy.runtimes import open_session
from bitsmith.model.presets import make_recipe
from bitsmith.model.store import load
from bitsmith.zoo.models.digits_cnn import DigitsNet


@pytest.fixture
def train(run, trained, tmp_path):
    def command(*options, recipe="W3A3", out="m.onnx", epochs=1, data="digits"):
        given = ["--data", data, "--recipe", recipe, "--epochs", epochs, "--out", tmp_path / out]
        return run("train", *trained, *given, *options)

    return command


def test_writes_what_quantize_writes(train, run, tmp_path):
    options = ["--json", "-", "--batch-size", 32, "--lr", "0.002", "--weights-as", "packed"]
    ran = train(*options, epochs=2)
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.bitsmith"]
    simulation = load(tmp_path / "m.onnx.bitsmith")
    x, _ = next(iter(load_dataset("digits").split("test").batches(64)))
    assert torch.equal(open_session(tmp_path / "m.onnx")(x), simulation(x))
    assert run("verify", tmp_path / "m.onnx", "--data", "digits", "--samples", 64).code == 0
    summary, *others = ran.json["records"]
    assert summary["method"] == "qat"
    assert summary["bytes"] == (tmp_path / "m.onnx").stat().st_size
    epochs = [r for r in others if r.get("metric") == "loss"]
    assert [r["outcome"] for r in epochs] == ["epoch 1", "epoch 2"]
    assert all(r["n"] == 1257 and r["value"] > 0 for r in epochs)
    found = simulation.provenance
    assert (found["epochs"], found["learns"], found["lr"]) == (2, "the float model", 0.002)
    assert found["training_batch_size"] == 32
    told = re.findall(r"^epoch (\d)/2: loss (\S+), \d", ran.err, re.MULTILINE)
    assert told == [(str(i), f"{r['value']:.5g}") for i, r in enumerate(epochs, 1)]
    assert ran.err.index("epoch 2/2") < ran.err.index("Training, to give what")


def test_packed_weights_go_to_a_folder(train, tmp_path):
    ran = train("--labels", "--json", tmp_path / "t.json", recipe="W4", out="m.bitsmith")
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bitsmith", "t.json"]
    records = json.loads((tmp_path / "t.json").read_text())["records"]
    assert {r["method"] for r in records} == {"qat"}
    assert [r["outcome"] for r in records if r.get("metric") == "loss"] == ["epoch 1"]
    x, _ = next(iter(load_dataset("digits").split("test").batches(8)))
    reloaded = load(tmp_path / "m.bitsmith", model=lambda: DigitsNet(width=8))
    assert reloaded(x).shape == (8, 10)


def test_a_recipe_that_cannot_train(run, modules, tmp_path):
    """Learned scales are trained with the rounding of the runtimes, half to even."""
    plain = make_recipe("W8A8-dynamic").to_json() | {"name": "away"}
    plain["rules"][-1]["weight"]["rounding"] = "half_away"
    recipe = modules / "away.json"
    recipe.write_text(json.dumps(plain))
    (modules / "rows_net.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10))\n"
    )
    options = ["--data", "digits", "--epochs", 1, "--out", tmp_path / "m.bitsmith"]
    ran = run("train", "rows_net:net", "--recipe", recipe, *options)
    assert ran.code == 2
    assert ran.err.startswith("error: recipe 'away' cannot be trained with 'lsq':")
    assert "1.weight (int8): it rounds half_away" in ran.err
    assert "2.weight (int8): it rounds half_away" in ran.err
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


def test_synthetic_samples_teach(train):
    ran = train("--input-shape", "1x8x8", "--calibration-samples", 64, data="synthetic")
    assert ran.code == 0, ran.err
    assert "synthesised 64 samples" in ran.out


def test_a_checkpoint_is_gone_on_from(train, tmp_path):
    place = ["--checkpoint", tmp_path / "kept.pt"]
    assert train(*place).code == 0
    before = (tmp_path / "m.onnx").read_bytes()
    assert train(*place).code == 0
    assert (tmp_path / "m.onnx").read_bytes() == before
    for other in (["--seed", 1], ["--lr", "0.5"], ["--labels"]):
        ran = train(*place, *other)
        assert ran.code == 2, other
        assert "is of another run" in ran.err
    assert "is of another run" in train(*place, recipe="W4A4").err
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_interrupted_says_what_is_left(train, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert train("--checkpoint", tmp_path / "kept.pt").code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(sys.modules["bitsmith.model.qat.fit"], "fit", interrupted)
    ran = train("--checkpoint", tmp_path / "kept.pt")
    assert ran.code == 130
    assert "nothing was written but" in ran.err
    ran = train()
    assert (ran.code, ran.err) == (130, "error: interrupted; nothing was written\n")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_unlabelled_data(train, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=load_dataset("digits").split("train").x[:300])
    ran = train("--labels", data=tmp_path / "d.npz")
    assert ran.code == 2
    assert "has no labels in its train split" in ran.err
    assert train(data=tmp_path / "d.npz").code == 0


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ([], {"epochs": 0}, "epochs"),
        (["--lr", "nan", "--scale-lr", "-1"], {}, "--lr nan, --scale-lr -1.0"),
        (["--lr", "1e30"], {}, "at most 1e+06"),
        (["--lr", "1e38"], {"epochs": 2}, "lower the learning rate"),
        ([], {"recipe": "MXFP4", "out": "m.bitsmith"}, "does not fit every weight"),
        ([], {"out": "m.pt"}, "must end in .onnx"),
        ([], {"recipe": "W4", "out": "m.pt"}, "ends in"),
        ([], {"data": "moons"}, "shape"),
        ([], {"data": "stsb"}, "text data set"),
        (["--split", "test"], {}, "train split only"),
        (["--machine", "vnni"], {"recipe": "W4", "out": "m.bitsmith"}, "--machine: for static"),
        (["--weights-as", "packd"], {}, "int8 or packed"),
        (["--labels", "--input-shape", "1x8x8"], {"data": "synthetic"}, "no labels"),
    ],
)
def test_bad_input(train, tmp_path, options, changes, said):
    ran = train(*options, **changes)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["W3A3", "W3"])
def test_a_scale_that_fell_to_nothing_writes_nothing(train, tmp_path, monkeypatch, recipe):
    module = sys.modules["bitsmith.model.qat.fit"]
    real = module.fit

    def collapsing(model, *arguments, **settings):
        run = real(model, *arguments, **settings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("log_scale"):  # of a graph
                    parameter.fill_(-20.0)
                elif name.endswith(".scale"):  # of a module, in units of where it started
                    parameter.fill_(1e-9)
        return run

    monkeypatch.setattr(module, "fit", collapsing)
    ran = train(recipe=recipe, out="m.onnx" if recipe == "W3A3" else "m.bitsmith")
    assert ran.code == 2
    assert re.search(r"stem\.0.*: its scale has collapsed to 0", ran.err)
    assert "--lr" in ran.err
    assert not list(tmp_path.iterdir())


def test_one_output_is_no_class(run, modules, tmp_path):
    (modules / "one_output.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()\n"
    )
    ran = run("train", "one_output:net", "--data", "digits", "--recipe", "W4A8", "--epochs", 1,
              "--labels", "--out", tmp_path / "m.onnx")  # fmt: skip
    assert ran.code == 2
    assert "at least two classes" in ran.err
