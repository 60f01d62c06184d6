"""The grid of recipes and operators of others: what is there, and that it multiplies."""

import json
from functools import partial

import pytest
import torch
from torch.nn import functional

from bitsmith.errors import InputError, RecipeError
from bitsmith.insight.bench.bandwidth import Bandwidth
from bitsmith.insight.bench.contender import Contender, Job, float_layers, packed_layers
from bitsmith.insight.bench.formats import RECIPES, Heat, heats, layer_recipe
from bitsmith.insight.bench.kernels import kernel_speeds
from bitsmith.insight.bench.onnxruntime_operators import onnxruntime_contenders
from bitsmith.insight.bench.picture import kernels_figure
from bitsmith.insight.bench.records import kernel_records
from bitsmith.insight.bench.torch_operators import torch_contenders
from bitsmith.insight.report.style import png
from bitsmith.model.speed.memory import copies

JOB = Job(64, 128, 1, lambda size: 3)
LIMIT = Bandwidth(1e10, "assumed", {"assumed": 1e10})


def outputs(contender: Contender, x: torch.Tensor) -> list[object]:
    prepared = contender.prepare(JOB)
    assert 0 < prepared.bytes <= 4 * 64 * 128
    calls = prepared.bind(x)
    assert len(calls) * prepared.products == 3
    return [call() for call in calls]


@pytest.mark.parametrize("name", RECIPES)
def test_packed_layers_multiply_by_the_weight(name):
    recipe = layer_recipe(name)
    x = torch.randn(2, 128)
    with torch.no_grad():
        exact = outputs(Contender("float32", "float32", float_layers), x)
        found = outputs(
            Contender(name, "bitsmith", packed_layers(recipe.scheme, recipe.activation)), x
        )
    assert len(found) == 3
    for y in found:
        assert (y - exact[0]).norm() < 0.5 * exact[0].norm()
        assert torch.equal(y, found[0])


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (4, 64), (2, 64)])
def test_onnxruntime_multiplies_copies(bits, group):
    x = torch.randn(2, 128)
    names = [c.name for c in onnxruntime_contenders(bits, group)]
    assert len(names) == (3 if group is None else 2)
    for contender in onnxruntime_contenders(bits, group):
        ((_, ys),) = outputs(contender, x)
        assert ys.shape == (3, 2, 64)
        assert bool(torch.isfinite(ys).all())
        assert bool(ys[:, :, 1:].any())
        # Copies differ in one code of the first output only.
        assert torch.equal(ys[1][:, 1:], ys[0][:, 1:])
        assert torch.equal(ys[2][:, 1:], ys[0][:, 1:])


def test_onnxruntime_multiplies_what_was_bound():
    """Zero rows give zero, and outputs scale with the input."""
    (contender,) = onnxruntime_contenders(4, 32)[:1]
    bind = contender.prepare(JOB).bind
    x = torch.randn(1, 128)
    _, zero = bind(torch.zeros(1, 128))[0]()
    _, once = bind(x)[0]()
    _, twice = bind(2 * x)[0]()
    assert not zero.any()
    torch.testing.assert_close(twice, 2 * once)


def test_torch_operators():
    x = torch.randn(2, 128)
    for bits, group in [(8, None), (4, 32)]:
        (contender,) = torch_contenders(bits, group)
        for y in outputs(contender, x):
            assert y.shape == (2, 64)
    with torch.no_grad():
        exact = outputs(Contender("float32", "float32", float_layers), x)[0]
        near = outputs(torch_contenders(8, None)[0], x)[0]
    assert (near - exact).norm() < 0.05 * exact.norm()
    assert torch_contenders(3, 64) == []


def test_heats_bring_like_with_like():
    found = {h.name: [c.name for c in h.contenders] for h in heats()}
    assert list(found) == [
        "8 bits", "4 bits, group 32", "4 bits, group 64", "4 bits, group 128", "4 bits",
        "3 bits, group 64", "2 bits, group 64",
    ]  # fmt: skip
    assert all(names[0] == "float32" for names in found.values())
    assert sum(len([n for n in names if n in RECIPES]) for names in found.values()) == len(RECIPES)
    rivals = {c.name: c.rival for h in heats() for c in h.contenders}
    everything = {n for names in found.values() for n in names}
    assert {r for r in rivals.values() if r} <= everything
    assert rivals["W8A8-dynamic"] == "ONNX Runtime dynamic int8"
    assert rivals["W4G64"].endswith("group 64, level 0")
    assert rivals["NF4"] is None
    with pytest.raises(RecipeError, match="static"):
        layer_recipe("W8A8")


@pytest.fixture(scope="module")
def found():
    told = []
    plan = heats(["W4G64", "W4G64A8-dynamic"])
    result = kernel_speeds(
        (64, 128), [1, 2], plan, thread_count=1, seconds=0.002, turns=5, memory=1 << 21,
        bandwidth=LIMIT, advance=told.append,
    )  # fmt: skip
    assert sum(told) == 5 * 2 * len(plan[0].contenders)
    return result


def test_the_cells(found):
    names = {c.name for c in found.cells}
    assert {"float32", "W4G64", "torch int4 bf16, group 64"} <= names
    own = next(c for c in found.cells if c.name == "W4G64" and c.rows == 2)
    assert own.rival == "ONNX Runtime 4-bit group 64, level 0"
    assert own.to_rival is not None
    assert own.to_rival.value > 0
    assert own.bandwidth_share == pytest.approx(own.gigabytes_per_second / 10)
    reference = next(c for c in found.cells if c.name == "float32" and c.rows == 2)
    assert reference.to_float.value == 1
    assert reference.bytes == 4 * 64 * 128


def test_the_records(found):
    records = [r.to_json() for r in kernel_records(found)]
    json.dumps(records, allow_nan=False)
    assert records[0] == {"metric": "read_bandwidth", "value": 1e10, "reason": "assumed"}
    own = [r for r in records if r.get("recipe") == "W4G64"]
    assert {r["metric"] for r in own} == {
        f"{metric}_rows{m}"
        for metric in ("latency", "times_float32", "times_onnxruntime", "bandwidth_share")
        for m in (1, 2)
    }
    for r in own:
        if "delta" in r:
            assert r["delta_low"] <= r["delta"] <= r["delta_high"]
            assert r["delta"] == pytest.approx(r["value"] - r["reference"])


def test_the_picture(found):
    figure = kernels_figure(found)
    first, second = (png(figure.draw, figure.size) for _ in range(2))
    assert first == second
    assert len(first) > 10_000


def test_what_cannot_be_measured_is_named():
    def broken(job):
        raise RuntimeError("no such operator\nand more")

    plan = [
        Heat(
            "all",
            (
                Contender("float32", "float32", float_layers),
                Contender("broken", "torch", broken),
                *heats(["W4G64"])[0].contenders[1:2],
            ),
        )
    ]
    result = kernel_speeds((8, 100), [1], plan, seconds=0.001, turns=5, memory=1 << 20,
                           bandwidth=LIMIT)  # fmt: skip
    reasons = {a.name: a.reason for a in result.absent}
    assert reasons["broken"] == "RuntimeError: no such operator"
    assert "SchemeError" in reasons["W4G64"]
    assert [c.name for c in result.cells] == ["float32"]
    assert {r.outcome for r in kernel_records(result)} == {None, "absent"}


def test_a_fault_of_our_own_is_not_swallowed():
    def broken(job):
        raise RuntimeError("ours")

    plan = [Heat("all", (Contender("W8", "bitsmith", broken),))]
    with pytest.raises(RuntimeError, match="ours"):
        kernel_speeds((8, 8), [1], plan, bandwidth=LIMIT)


@pytest.mark.parametrize(("shape", "rows"), [((0, 8), [1]), ((8, 8), [0]), ((8, 8), [])])
def test_refuses(shape, rows):
    with pytest.raises(InputError, match="at least 1"):
        kernel_speeds(shape, rows, heats(["W8"]), bandwidth=LIMIT)


def test_weights_are_spread_over_the_memory_there_is():
    job = Job(64, 128, 1, partial(copies, memory=100_000))
    found = float_layers(job)
    assert len(found.bind(torch.zeros(1, 128))) == 100_000 // found.bytes
    assert functional.linear(torch.zeros(1, 128), torch.zeros(64, 128)).shape == (1, 64)
