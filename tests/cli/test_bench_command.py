"""``bitsmith bench``: of kernels and of a model; what it refuses."""

import pytest

from bitsmith.insight.bench import bandwidth, kernels, network
from bitsmith.insight.bench.bandwidth import Bandwidth
from bitsmith.model.speed import memory


@pytest.fixture
def quick(monkeypatch):
    """No reading of gigabytes, and a small cache to get past."""
    limit = Bandwidth(2e10, "assumed", {"assumed": 2e10})
    for module in (bandwidth, kernels, network):
        monkeypatch.setattr(module, "read_bandwidth", lambda _: limit)
    for module in (memory, kernels):
        monkeypatch.setattr(module, "last_level_cache", lambda: 1 << 16)


def test_kernels(run, quick, tmp_path):
    out = tmp_path / "pictures"
    ran = run(
        "bench", "kernels", "--shape", "64x128", "--rows", "1,3", "--recipes", "W4G64,NF4",
        "--threads", 1, "--seconds", 0.01, "--out", out, "--json", tmp_path / "k.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    for part in ("64×128", "20.0 GB/s", "4 bits, group 64", "ONNX Runtime 4-bit group 64, level 0"):
        assert part in ran.out
    assert sorted(p.name for p in out.iterdir()) == ["kernels.png", "kernels.svg"]
    assert (tmp_path / "k.json").is_file()


def test_a_model(run, quick, digits):
    model, *given = digits
    ran = run("bench", model, *given, "--recipes", "W8", "--seconds", 0.01, "--json", "-")
    assert ran.code == 0, ran.err
    assert "The whole model" in ran.err
    records = ran.json["records"]
    assert {r["dataset"] for r in records if "model" in r} == {"digits"}
    assert {r.get("op") for r in records} >= {"conv", "linear"}
    whole = [r for r in records if "layer" not in r and r["metric"] == "latency"]
    assert [r["recipe"] for r in whole] == ["float32", "W8"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernels", "--shape", "64"], "--shape '64'"),
        (["kernels", "--shape", "0x64"], "--shape '0x64'"),
        (["kernels", "--rows", "1,x"], "not x"),
        (["kernels", "--rows", "1,1"], "each once"),
        (["kernels", "--recipes", "W8A8"], "static"),
        (["kernels", "--recipes", "W9"], "unknown recipe"),
        (["kernels", "--data", "digits", "--batch-size", "2"], "--data, --batch-size: only for"),
        (["digits-cnn", "--rows", "1"], "--rows: only for bitsmith bench kernels"),
        (["small_digits:net"], "are not known"),
        (["minilm-of-nobody"], "minilm-of-nobody"),
    ],
)
def test_refuses(run, quick, arguments, said):
    ran = run("bench", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
