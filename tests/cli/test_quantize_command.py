"""``bitsmith quantize``: what it writes and prints."""

import json
from pathlib import Path

import onnx
import pytest
import torch

from bitsmith.data import load_dataset
from bitsmith.deploy.runtimes import open_session
from bitsmith.insight.measure import Record
from bitsmith.model.store import load

#: DESIGN, section 5.
KEYS = [
    "study",
    "model",
    "dataset",
    "split",
    "data_sha256",
    "seed",
    "recipe",
    "effort",
    "method",
    "weight_bits",
    "activation_bits",
    "granularity",
    "calibrator",
    "algorithm",
    "target",
    "machine_target",
    "runtime",
    "layer",
    "op",
    "outcome",
    "reason",
    "macs_share",
    "cause",
    "isolated",
    "metric",
    "value",
    "reference",
    "delta",
    "delta_low",
    "delta_high",
    "n",
    "bytes",
    "bits_per_weight",
    "latency_ms",
    "quantize_seconds",
]


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def test_keys_of_a_record_are_those_of_the_design():
    assert sorted(Record.__dataclass_fields__) == sorted(KEYS)


def test_writes_the_file_and_its_simulation_and_nothing_else(run, digits, tmp_path):
    out = tmp_path / "m.onnx"
    ran = run("quantize", *digits, "--recipe", "W8A8", "--out", out)
    assert ran.code == 0
    assert ran.err == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.bitsmith"]
    x, _ = next(iter(load_dataset("digits").split("test").batches(64)))
    assert torch.equal(open_session(out)(x), load(tmp_path / "m.onnx.bitsmith")(x))
    for text in ("QLinearConv", "share of MACs", "effective bits", "100.00 % of multiply"):
        assert text in ran.out


def test_metadata_says_what_it_was_calibrated_on(artefact, weights):
    train = load_dataset("digits").split("train")
    found = json.loads(metadata(artefact)["bitsmith.provenance"])
    assert found["dataset"] == "digits"
    assert found["split"] == "train"
    assert found["data_sha256"] == train.sha256
    assert found["calibration_samples"] == 256
    assert found["seed"] == 0
    assert found["model"] == "small_digits:net"
    assert len(found["weights_sha256"]) == 64


def test_same_input_gives_the_same_bytes(run, digits, artefact, tmp_path):
    out = tmp_path / "small.onnx"
    assert run("quantize", *digits, "--out", out).code == 0
    assert out.read_bytes() == artefact.read_bytes()
    assert run("quantize", *digits, "--out", out, "--seed", 1).code == 0
    assert out.read_bytes() != artefact.read_bytes()


def test_json_goes_to_standard_output_and_people_to_the_other(run, digits, tmp_path):
    ran = run("quantize", *digits, "--out", tmp_path / "m.onnx", "--json", "-")
    assert ran.code == 0
    assert "Coverage" in ran.err
    found = ran.json
    assert sorted(found) == [
        "bitsmith", "command", "machine", "peak_rss_mb", "records", "seconds",
    ]  # fmt: skip
    assert found["command"] == "quantize"
    summary, *layers = found["records"]
    assert summary["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert summary["n"] == 256
    assert summary["method"] == "ptq"
    assert summary["weight_bits"] == summary["activation_bits"] == 8
    assert 8 < summary["bits_per_weight"] < 9
    assert summary["quantize_seconds"] > 0
    assert sum(row["macs_share"] for row in layers) == pytest.approx(1)
    assert all(set(record) <= set(KEYS) for record in found["records"])
    assert {r["data_sha256"] for r in found["records"]} == {
        load_dataset("digits").split("train").sha256
    }


def test_replaces_an_older_file_and_its_simulation(run, digits, artefact, tmp_path):
    out, folder = tmp_path / "m.onnx", tmp_path / "m.onnx.bitsmith"
    assert run("quantize", *digits, "--out", out, "--recipe", "W4A8").code == 0
    before = out.read_bytes()
    assert run("quantize", *digits, "--out", out, "--json", tmp_path / "q.json").code == 0
    assert out.read_bytes() == artefact.read_bytes() != before
    assert load(folder).recipe.name == "W8A8"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.bitsmith", "q.json"]


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--machine", "vnni"], "machine_target", "vnni"),
        (["--calibrator", "percentile:99.9"], "calibrator", "percentile:99.9"),
        (["--recipe", "W4A8-edge8"], "recipe", "W4A8-edge8"),
        (["--calibration-samples", "40", "--batch-size", "7"], "n", 40),
    ],
)
def test_options_reach_the_records(run, digits, tmp_path, options, key, value):
    ran = run("quantize", *digits, "--out", tmp_path / "m.onnx", *options, "--json", "-")
    assert ran.code == 0
    assert ran.json["records"][0][key] == value


def test_an_npz_with_one_split_needs_to_be_told(run, digits, tmp_path):
    import numpy as np

    train = load_dataset("digits").split("train")
    np.savez(tmp_path / "d.npz", x=train.x, y=train.y)
    model = [*digits[:3], "--data", tmp_path / "d.npz", "--out", tmp_path / "m.onnx"]
    ran = run("quantize", *model)
    assert ran.code == 2
    assert "--split" in ran.err
    assert run("quantize", *model, "--split", "train").code == 0


def test_report_evaluates_and_verifies(run, digits, tmp_path):
    options = ["--out", tmp_path / "m.onnx", "--report", tmp_path / "r.html", "--json", "-"]
    ran = run("quantize", *digits, *options)
    assert ran.code == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") > 10
    metrics = {r.get("metric") for r in ran.json["records"]}
    assert {"accuracy", "max_lsb", "sqnr", "executed_integer"} <= metrics
