"""One weight: the published table to the last digit, and the gradients against the formulas."""

import pytest
import torch

from bitsmith.errors import InputError, UnknownNameError
from bitsmith.studies import Options, studies
from bitsmith.studies.one_weight.rules import RULES, Problem, slopes, train

#: What tutorials print, and arithmetic gives.
WEIGHTS = ["1.00", "1.14", "1.24", "1.34", "1.40", "1.46", "1.52"]
ROUNDED = ["1.0", "1.2", "1.2", "1.4", "1.4", "1.4", "1.4"]
LOSSES = ["0.49", "0.25", "0.25", "0.09", "0.09", "0.09", "0.09"]
PROBLEM = Problem(bits=4, scale=0.2, lr=0.1, x=1.0, target=1.7, start=1.0)


def test_the_table_of_the_literature():
    rows = studies["one-weight"]().run().tables[0].rows
    assert [r[0] for r in rows] == list("0123456")
    assert [r[1] for r in rows] == WEIGHTS
    assert [r[2] for r in rows] == ROUNDED
    assert [r[4] for r in rows] == LOSSES
    assert [r[5] for r in rows] == ["-1.40", "-1.00", "-1.00", "-0.60", "-0.60", "-0.60", "0"]


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(("scale", "lr", "x"), [(0.3, 0.05, 1.0), (0.07, 0.2, -0.5)])
def test_straight_through_by_hand(bits, scale, lr, x):
    """Python's own arithmetic on the definition."""
    problem = Problem(bits, scale, lr, x, 1.1, 0.4)
    top, w = 1 << (bits - 1), 0.4
    for step in train(problem, RULES[0], 12):
        code = round(w / scale)
        q = scale * min(max(code, -top), top - 1)
        slope = 2 * (q * x - 1.1) * x if -top <= code < top else 0.0
        assert step.weight == pytest.approx(w, abs=1e-5)
        assert step.quantized == pytest.approx(q, abs=1e-5)
        assert step.gradient == pytest.approx(slope, abs=1e-4)
        w -= lr * slope


def test_lsq_by_hand():
    w, s = 1.0, 0.2
    for step in train(PROBLEM, RULES[1], 5):
        v = w / s
        q = s * min(round(v), 7)
        error = 2 * (q - 1.7)
        inside = v < 7
        assert step.learned == pytest.approx(s, abs=1e-5)
        assert step.quantized == pytest.approx(q, abs=1e-5)
        for_scale = error * (round(v) - v if inside else 7) / 7**0.5
        assert step.learned_gradient == pytest.approx(for_scale, abs=1e-4)
        w, s = w - 0.1 * error * inside, s - 0.1 * for_scale


def test_pact_moves_its_clip_only_from_beyond_it():
    inside = train(PROBLEM, RULES[2], 20)
    assert {s.learned for s in inside} == {3.0}
    beyond = train(Problem(4, 0.2, 0.1, 1.0, 5.0, 3.5), RULES[2], 3)
    assert beyond[0].gradient == 0.0
    assert beyond[0].quantized == pytest.approx(3.0)
    assert beyond[1].learned == pytest.approx(3.0 + 0.1 * 2 * 2.0)


def test_a_scale_never_reaches_zero():
    states = train(Problem(2, 1.0, 1.0, 30.0, 0.0, 5.0), RULES[1], 10)
    assert all(s.learned > 0 for s in states)


def test_the_slopes_of_the_figure():
    w = torch.tensor([-3.0, 0.15, 1.0, 2.0, 4.0])
    _, passes, scale = slopes(PROBLEM, RULES[0], w)
    assert passes.tolist() == [0, 1, 1, 0, 0]
    assert not scale.any()
    _, passes, scale = slopes(PROBLEM, RULES[1], w)
    assert passes.tolist() == [0, 1, 1, 0, 0]
    assert scale.tolist() == pytest.approx([-8, 1 - 0.75, 0, 7, 7], abs=1e-5)
    _, passes, scale = slopes(PROBLEM, RULES[2], w)
    assert passes.tolist() == [0, 1, 1, 1, 0]
    assert scale.tolist() == pytest.approx([0, 0, 0, 0, 15])


def test_settings_change_what_is_computed():
    given = {"bits": 3, "scale": "0.25", "lr": 0.05, "steps": 4}
    result = studies["one-weight"]().run(Options(settings=given))
    assert len(result.tables[0].rows) == 4
    assert {r.weight_bits for r in result.records} == {3}
    assert result.tables[0].note.startswith("3 bits hold -1 to 0.75 in steps of 0.25")


def test_settings_that_are_none():
    study = studies["one-weight"]()
    with pytest.raises(UnknownNameError, match="setting of the study one-weight 'bit'; did you"):
        study.run(Options(settings={"bit": 3}))
    with pytest.raises(InputError, match=r"setting bits .* is a whole number from 2 to 8, not 2.5"):
        study.run(Options(settings={"bits": 2.5}))
    with pytest.raises(InputError, match=r"setting scale .* not 'inf'"):
        study.run(Options(settings={"scale": "inf"}))
    with pytest.raises(UnknownNameError, match="known: none"):
        studies["memory"]().run(Options(settings={"bits": 3}))


def test_the_findings_hold_the_numbers_of_the_run():
    found = studies["one-weight"]().run().findings
    assert "to 1.52, the rounded one from 1 to 1.4; its code changes 2 times" in found[0]
    assert "saturates at step 6" in found[-1]


def test_divergence_is_told_apart_from_a_result():
    problem = Problem(4, 0.2, 0.1, 1e25, 1.7, 1.0)
    with pytest.raises(InputError, match=r"LSQ diverges: .* lower the learning rate"):
        train(problem, RULES[1], 3)


def test_without_an_input_nothing_moves():
    result = studies["one-weight"]().run(Options(settings={"x": 0}))
    assert {row[1] for row in result.tables[0].rows} == {"1.00"}
    assert not any("saturates" in finding for finding in result.findings)
