"""``bitsmith quantize`` with weight-only recipes."""

from __future__ import annotations

import json
import os

import pytest
import torch

import bitsmith as bs


def test_a_folder_with_packed_weights(run, small_model, weights, tmp_path):
    out = tmp_path / "m.bitsmith"
    ran = run("quantize", small_model, "--weights", weights, "--recipe", "W8", "--out", out,
              "--json", tmp_path / "m.json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "bits per weight" in ran.out
    records = json.loads((tmp_path / "m.json").read_text())["records"]
    assert records[0]["recipe"] == "W8"
    assert records[0]["bits_per_weight"] > 8
    layers = [r for r in records if "layer" in r]
    assert {r["outcome"] for r in layers} == {"packed"}
    assert {r["algorithm"] for r in layers} == {"nearest"}
    assert records[0]["bytes"] == sum(f.stat().st_size for f in out.iterdir())


def test_what_was_not_done_as_asked_is_said(run, small_model, weights, tmp_path):
    ran = run("quantize", small_model, "--weights", weights, "--recipe", "W4", "--data", "digits",
              "--rounding", "gptq", "--transform", "awq", "--out", tmp_path / "m.bitsmith",
              "--json", tmp_path / "m.json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "algorithm" in ran.out
    records = json.loads((tmp_path / "m.json").read_text())["records"]
    layers = {r["layer"]: r for r in records if "layer" in r}
    convolutions = [r for r in layers.values() if r["op"] == "conv"]
    assert {r["algorithm"] for r in convolutions} == {"gptq"}
    assert {r["reason"] for r in convolutions} == {
        "no awq: only plain linear layers have scales of their input"
    }


def test_an_onnx_file_that_runs(run, small_model, weights, tmp_path):
    out = tmp_path / "m.onnx"
    command = ["quantize", small_model, "--weights", weights, "--recipe", "W8", "--out", out]
    refused = run(*command)
    assert refused.code == 2
    assert "the shape of an input of" in refused.err
    assert not out.exists()
    ran = run(*command, "--data", "digits")
    assert ran.code == 0, ran.err
    folder = tmp_path / "m.onnx.bitsmith"
    model = bs.load_model(small_model, weights)
    asked = run("verify", out, "--data", "digits")
    assert asked.code == 2
    assert f"--model {small_model}) if you trust it" in asked.err
    checked = run("verify", out, "--data", "digits", "--model", small_model)
    assert checked.code == 0, checked.err
    packed = bs.load(folder, model.module)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        expected = packed(x)
    found = bs.open_session(out).run(x)[0]
    assert float((found - expected).abs().max()) < 1e-4


def test_a_zoo_model_is_verified_from_its_files_alone(run, tmp_path):
    if "BITSMITH_DATA" not in os.environ:
        pytest.skip("BITSMITH_DATA holds the weights of cifar-resnet20")
    out = tmp_path / "r20.onnx"
    ran = run("quantize", "cifar-resnet20", "--recipe", "W8", "--out", out)
    assert ran.code == 0, ran.err
    checked = run(
        "verify", out, "--data", "cifar10", "--samples", 16, "--json", tmp_path / "v.json"
    )
    assert checked.code == 0, checked.err
    (record,) = json.loads((tmp_path / "v.json").read_text())["records"]
    assert record["outcome"] == "holds"
    assert 0 <= record["value"] < 1e-3
    missing = run("verify", out)
    assert missing.code == 2
    assert "pass --data" in missing.err
