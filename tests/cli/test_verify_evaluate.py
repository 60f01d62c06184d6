"""``bitsmith verify`` and ``bitsmith evaluate``, on a file that holds and one that was changed."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bitsmith.data import load_dataset
from bitsmith.deploy.runtimes import open_session
from bitsmith.insight.measure import wilson_interval
from bitsmith.model.evaluate import correct, predict


def one(records, **wanted):
    found = [r for r in records if all(r.get(k) == v for k, v in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


@pytest.fixture
def changed(artefact, tmp_path):
    """A copy of the file in which one weight code is another."""
    path = tmp_path / "changed.onnx"
    shutil.copytree(f"{artefact}.bitsmith", tmp_path / "changed.onnx.bitsmith")
    proto = onnx.load(artefact)
    codes = next(i for i in proto.graph.initializer if i.name == "third.0.weight_codes")
    values = np.array(numpy_helper.to_array(codes))
    values[0, :, 1, 1] = -values[0, :, 1, 1]
    codes.CopyFrom(numpy_helper.from_array(values, codes.name))
    onnx.save(proto, path)
    return path


def test_verify_holds(run, artefact):
    ran = run("verify", artefact, "--data", "digits", "--samples", 64, "--json", "-")
    assert ran.code == 0
    assert "10 of 10 planned operators" in ran.err
    records = ran.json["records"]
    assert one(records, metric="executed_integer")["value"] == 10
    assert one(records, metric="changed_predictions")["value"] == 0
    share = one(records, metric="differing_codes", layer="third.0", isolated=False)
    assert share["value"] == 0
    assert share["n"] == 64 * 16 * 4 * 4
    assert share["runtime"] == "onnxruntime"
    assert {r["split"] for r in records} == {"test"}
    assert {r["data_sha256"] for r in records} == {load_dataset("digits").split("test").sha256}


def test_verify_of_a_changed_file_exits_with_1(run, changed, tmp_path):
    ran = run("verify", changed, "--json", tmp_path / "v.json")
    assert ran.code == 1
    assert ran.err.startswith("error: ")
    assert "third.0" in ran.err
    assert (tmp_path / "v.json").is_file()


def test_verify_takes_its_data_from_the_calibration(run, artefact):
    assert run("verify", artefact, "--samples", 16).code == 0


def test_verify_on_openvino_reports_the_difference(run, artefact):
    pytest.importorskip("openvino")
    ran = run("verify", artefact, "--runtime", "openvino", "--samples", 32, "--json", "-")
    assert ran.code in (0, 1)
    assert {r["runtime"] for r in ran.json["records"]} == {"openvino"}
    assert one(ran.json["records"], metric="changed_predictions")["n"] == 32


def test_evaluate_agrees_with_counting_by_hand(run, artefact):
    test = load_dataset("digits").split("test")
    right = correct(*predict(open_session(artefact), test.batches(50)))
    ran = run("evaluate", artefact, "--data", "digits", "--json", "-")
    assert ran.code == 0
    records = ran.json["records"]
    found = one(records, metric="accuracy")
    assert found["value"] == pytest.approx(100 * right.double().mean().item())
    assert found["n"] == test.n == 540
    assert found["bytes"] == artefact.stat().st_size
    assert found["method"] == "ptq"
    low, high = wilson_interval(int(right.sum()), 540)
    assert one(records, metric="accuracy_low")["value"] == pytest.approx(low)
    assert one(records, metric="accuracy_high")["value"] == pytest.approx(high)
    for batch in (1, 128):
        assert one(records, metric=f"latency_batch{batch}")["latency_ms"] > 0


def test_evaluate_against_a_reference_is_paired(run, artefact, small_model, weights):
    arguments = ["--reference", small_model, "--weights", weights, "--json", "-"]
    ran = run("evaluate", artefact, "--data", "digits", *arguments)
    assert ran.code == 0
    records = ran.json["records"]
    ours = one(records, metric="accuracy", method="ptq")
    theirs = one(records, metric="accuracy", method="float")
    assert ours["reference"] == theirs["value"]
    assert ours["delta"] == pytest.approx(ours["value"] - theirs["value"])
    assert ours["delta_low"] <= ours["delta"] <= ours["delta_high"]
    assert theirs["weight_bits"] == 32
    assert "same prediction on" in ran.err


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_evaluate_a_model(run, digits, runtime):
    ran = run("evaluate", *digits, "--runtime", runtime, "--limit", 30, "--json", "-")
    assert ran.code == 0
    found = one(ran.json["records"], metric="accuracy")
    assert found["runtime"] == runtime
    assert found["n"] == 30
    assert found["method"] == "float"


def test_evaluate_the_simulation_gives_what_the_file_gives(run, artefact):
    options = ["--limit", 64, "--json", "-"]
    file = run("evaluate", artefact, *options).json["records"]
    simulated = run("evaluate", artefact, "--simulate", *options).json["records"]
    folder = run("evaluate", f"{artefact}.bitsmith", *options).json["records"]
    values = [one(r, metric="accuracy")["value"] for r in (file, simulated, folder)]
    assert values[0] == values[1] == values[2]
    assert one(simulated, metric="accuracy")["runtime"] == "simulation"


def test_evaluate_without_labels_reports_agreement_only(run, artefact, tmp_path):
    np.savez(tmp_path / "d.npz", x_test=load_dataset("digits").split("test").x[:40])
    options = ["--data", tmp_path / "d.npz", "--reference", artefact, "--json", "-"]
    ran = run("evaluate", artefact, *options)
    assert ran.code == 0
    assert not [r for r in ran.json["records"] if r.get("metric") == "accuracy"]
    assert one(ran.json["records"], metric="changed_predictions")["value"] == 0
