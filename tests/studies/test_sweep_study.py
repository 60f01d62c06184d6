"""Sweep: which variants there are, what is refused, what is kept, and how results are read."""

import base64
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from bitsmith.errors import InputError, RecipeError, SchemeError, UnknownNameError
from bitsmith.insight.measure import paired_difference
from bitsmith.numbers.formats.integer import int4, uint4
from bitsmith.studies import Options, studies
from bitsmith.studies.sweep.algorithms import check_algorithm, flag, rounding_of
from bitsmith.studies.sweep.findings import findings
from bitsmith.studies.sweep.outcomes import Difference, Outcome, choices, front, outcomes
from bitsmith.studies.sweep.variants import AXES, FLOAT, Variant, chosen_variants
from bitsmith.studies.sweep.work import right_of

NET = "digits-cnn"
SMALL = {"model": NET, "samples": 60, "processes": 1}


def test_axes_make_their_product():
    found = chosen_variants({"bits": "8,4", "activations": "8,32", "calibrator": "mse,minmax"}, NET)
    assert found[0] == Variant(NET, "float", FLOAT, FLOAT)
    # float activations have no calibrator: those combinations are one
    assert len(found) == 1 + 2 * 2 + 2
    assert {v.calibrator for v in found if v.activations == FLOAT and v.method == "ptq"} == {"-"}
    assert all(v.scheme == AXES["scheme"] for v in found)


def test_spaces_and_repeats_do_not_matter():
    given = {"bits": " 4, 8 ,4,", "method": "qat"}
    assert [v.bits for v in chosen_variants(given, NET)] == [FLOAT, 4, 8]


def test_without_axes_it_is_the_default_sweep():
    found = chosen_variants({}, NET)
    assert 20 <= len(found) <= 30
    assert len(set(found)) == len(found)
    assert {v.method for v in found} == {"float", "ptq", "ptq+finetune", "qat", "codebook"}
    assert len(chosen_variants({"model": f"{NET},mlp"}, NET)) == 2 * len(found)
    assert [v for v in found if v.method != "float" and v.recipe() is None] == []
    quick = chosen_variants({}, NET, quick=True)
    assert len(quick) < 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bits": "9"}, "bits '9': known are 1, 2"),
        ({"bits": "four"}, "bits 'four'"),
        ({"activations": "16"}, "activations '16'"),
        ({"scheme": "odd"}, "scheme 'odd': known are symmetric, asymmetric"),
        ({"granularity": "group0"}, "granularity 'group0'"),
        ({"method": "float"}, "method 'float'"),
        ({"calibrator": "guess"}, "calibrator 'guess'"),
        ({"algorithm": "nearest+gptq"}, r"algorithm 'nearest\+gptq'"),
        ({"algorithm": "bias"}, "algorithm 'bias'"),
        ({"algorithm": "nearst"}, "algorithm 'nearst'.*did you mean"),
    ],
)
def test_values_that_no_axis_has(given, said):
    with pytest.raises(InputError, match=said):
        chosen_variants(given, NET)


def test_every_wrong_value_is_listed():
    with pytest.raises(InputError, match=r"bits '0'.*scheme 'x'.*granularity 'row'"):
        chosen_variants({"bits": "0,8", "scheme": "x", "granularity": "row"}, NET)


def test_an_unknown_network():
    with pytest.raises(UnknownNameError, match="did you mean 'digits-cnn'"):
        chosen_variants({"model": "digit-cnn"}, NET)


def test_algorithms_are_read():
    check_algorithm("gptq+equalize+bias")
    assert rounding_of("equalize+nearest") == "nearest"
    assert rounding_of("auto") is None
    assert [flag("nearest+bias", p) for p in ("bias", "equalize")] == [True, False]
    assert flag("auto", "bias") is None


def test_recipes_are_those_of_the_variant():
    static = Variant(NET, "ptq", 4, 8).recipe()
    assert (static.lane, static.rules[-1].weight.format) == ("static", int4)
    loose = Variant(NET, "ptq", 4, FLOAT, "asymmetric", "group32", "-").recipe()
    assert (loose.lane, loose.rules[-1].weight.format) == ("module", uint4)
    assert loose.rules[-1].weight.granularity.size == 32
    assert Variant(NET, "codebook", 3, 8).recipe().rules[-1].table_bits == 3


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        (Variant(NET, "ptq", 8, 8, "asymmetric"), "symmetric"),
        (Variant(NET, "ptq", 4, 8, granularity="group32"), "scale for each output channel"),
        (Variant(NET, "codebook", 8, 8), r"2\^1 to 2\^7"),
        (Variant(NET, "codebook", 4, FLOAT, "asymmetric", "channel", "-"), "values it has"),
    ],
)
def test_recipes_that_cannot_be(variant, said):
    with pytest.raises((RecipeError, SchemeError), match=said):
        variant.recipe()


def test_a_run_measures_lists_and_keeps(monkeypatch):
    study = studies["sweep"]()
    settings = {**SMALL, "bits": "8,4", "scheme": "symmetric,asymmetric", "algorithm": "nearest"}
    result = study.run(Options(quick=True, settings=settings))
    table = next(t for t in result.tables if t.title == "Every variant")
    assert len(table.rows) == 3
    refused = next(t for t in result.tables if t.title == "What cannot be")
    assert len(refused.rows) == 2
    assert all("symmetric" in row[-1] for row in refused.rows)
    assert {r.outcome for r in result.records} == {None, "refused"}

    def never(key):
        if key["variant"]["scheme"] == "symmetric":
            raise AssertionError("measured twice")
        return {"refused": "a scale must be symmetric"}

    monkeypatch.setattr("bitsmith.studies.sweep.measure", never)
    again = study.run(Options(quick=True, settings=settings))
    assert again.tables[0] == result.tables[0]
    with pytest.raises(AssertionError, match="measured twice"):
        study.run(Options(quick=True, seed=1, settings=settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "qat,ptq+finetune", "bits": "4", "activations": "32"},
        {"method": "codebook", "bits": "2", "activations": "8,32"},
        {"bits": "4", "activations": "8", "algorithm": "gptq+bias,nearest+equalize"},
        {"bits": "3", "activations": "32", "granularity": "group16", "algorithm": "hqq,nearest"},
    ],
)
def test_every_lane_and_method_runs(settings):
    result = studies["sweep"]().run(Options(quick=True, settings={**SMALL, **settings}))
    assert not [t for t in result.tables if t.title == "What cannot be"]
    assert len(result.tables[0].rows) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"activations": "32", "algorithm": "nearest+bias"}, "only where activations have codes"),
        ({"activations": "32", "method": "qat", "algorithm": "gptq"}, "starts from the codes of"),
        ({"activations": "8", "method": "codebook", "bits": "3", "algorithm": "gptq"}, "k-means"),
    ],
)
def test_combinations_that_cannot_be_say_why(settings, said):
    result = studies["sweep"]().run(Options(quick=True, settings={**SMALL, **settings}))
    refused = next(t for t in result.tables if t.title == "What cannot be")
    assert said in refused.rows[0][-1]
    assert not result.figures


def test_too_little_memory_for_anything():
    settings = {**SMALL, "memory": 0.01, "bits": "5", "samples": 59}
    with pytest.raises(InputError, match="nothing to compare with: digits-cnn takes"):
        studies["sweep"]().run(Options(quick=True, settings=settings))


def answer(right, size):
    bits = base64.b64encode(np.packbits(np.array(right)).tobytes()).decode()
    return {"right": bits, "n": len(right), "bytes": size}


def some(*shares, n=1000):
    """Return float and variants whose first samples are wrong."""
    variants = [Variant(NET, "float", FLOAT, FLOAT)]
    variants += [Variant(NET, "ptq", b, 8) for b in range(8, 8 - len(shares) + 1, -1)]
    rights = [[i >= wrong for i in range(n)] for wrong in shares]
    answers = [answer(r, 1000 - 100 * i) for i, r in enumerate(rights)]
    return outcomes(variants, answers)


def test_answers_are_read_back():
    right = [True, False, True, True, False, False, True, False, True]
    assert right_of(answer(right, 1)).tolist() == right


def test_outcomes_are_paired_with_float():
    found, refused = some(10, 12, 300)
    assert refused == []
    assert found[0].against is None
    expected = paired_difference(found[2].right, found[0].right)
    d = found[2].against
    assert (d.delta, d.low, d.high) == expected
    assert found[1].against.sign == 0
    assert d.sign == -1


def test_the_front_is_what_nothing_betters():
    found, _ = some(10, 12, 300, 5)
    best = front(found)
    assert [o.bytes for o in best] == [700]  # smallest and best
    found, _ = some(10, 12, 300)
    assert [o.bytes for o in front(found)] == [800, 900, 1000]
    brute = [
        o for o in found
        if not any(p is not o and p.bytes <= o.bytes and p.accuracy >= o.accuracy for p in found)
    ]  # fmt: skip
    assert set(map(id, brute)) == set(map(id, front(found)))


def test_choices_differ_in_one_axis():
    variants = [
        Variant(NET, "float", FLOAT, FLOAT), Variant(NET, "ptq", 4, 8),
        Variant(NET, "ptq", 4, 8, calibrator="minmax"), Variant(NET, "qat", 4, 8),
        Variant(NET, "ptq", 3, 8),
    ]  # fmt: skip
    rights = [[i >= wrong for i in range(500)] for wrong in (0, 10, 100, 11, 300)]
    found, _ = outcomes(variants, [answer(r, 9) for r in rights])
    pairs = choices(found)
    assert [p.axis for p in pairs] == ["calibrator", "method"]
    assert [p.difference.sign for p in pairs] == [-1, 0]
    said = findings(found, pairs)
    assert any("minmax against mse" in s and "(worse)" in s for s in said)
    assert any(s.startswith("Method: 0 of 1") and "not distinguishable" in s for s in said)


def test_findings_name_the_smallest_that_is_even():
    found, _ = some(10, 12, 300)
    said = findings(found, [])
    assert "W8A8 ptq" in said[1]
    assert "not distinguishable" in said[1]
    found, _ = some(10, 300, 400)
    assert findings(found, [])[1] == "All 2 variants are worse than float."


def test_a_difference_has_a_sign_only_beyond_its_interval():
    assert [Difference(1, *ends).sign for ends in ((0.5, 2), (-1, 2), (-2, -0.5), (0, 1))] == [
        1, 0, -1, 0,
    ]  # fmt: skip
    assert isinstance(Outcome(Variant(NET), torch.tensor([True]), 5, None).accuracy, float)


def test_a_killed_run_goes_on(tmp_path):
    """In processes: killed by force after the first answers, then run to its end."""
    cache = tmp_path / "bitsmith" / "cells"
    command = [
        sys.executable, "-m", "bitsmith", "study", "sweep", "--quick", "--set", f"model={NET}",
        "--set", "processes=2", "--set", "samples=60", "--set", "bits=8",
    ]  # fmt: skip
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 300
    while not list(cache.glob("*.json")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    times = {p: p.stat().st_mtime_ns for p in cache.glob("*.json")}
    assert times
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert len(list(cache.glob("*.json"))) == 2
    assert "W8A8 ptq" in done.stdout
