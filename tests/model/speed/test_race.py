"""Turns, copies, medians and paired ratios."""

import gc
import itertools
import time

import pytest
import torch

from bitsmith.errors import InputError
from bitsmith.model.speed.race import Contestant, Times, faster, race, threads


def test_contestants_take_turns_and_go_round_their_copies():
    seen: list[str] = []

    def call(name):
        def step():
            seen.append(name)
            time.sleep(0.002)

        return step

    contestants = [
        Contestant("a", [call("a0"), call("a1"), call("a2")]),
        Contestant("b", [call("b0")]),
    ]
    found = race(contestants, seconds=0.01, turns=6, pause=0)
    assert [found[n].n for n in "ab"] == [6, 6]
    own = [s for s in seen if s.startswith("a")]
    assert own[:3] == ["a0", "a1", "a2"]  # every copy once before anything is timed
    later = own[3:]
    assert all(int(y[1]) == (int(x[1]) + 1) % 3 for x, y in itertools.pairwise(later))
    changes = sum(x[0] != y[0] for x, y in itertools.pairwise(seen))
    assert changes >= 7  # by turns, not one after the other


def test_times_what_a_call_takes():
    found = race(
        [
            Contestant("short", [lambda: time.sleep(0.001)]),
            Contestant("long", [lambda: time.sleep(0.004)]),
        ],
        seconds=0.02,
        turns=5,
    )
    assert 1 <= found["short"].median_ms < 50
    assert found["long"].median_ms >= 4
    assert faster(found["short"], found["long"]).value > 1


def test_a_call_that_does_the_work_several_times():
    calls = []

    def call():
        calls.append(0)
        time.sleep(0.005)

    found = race([Contestant("x", [call], works=5)], seconds=0.01, turns=5)
    assert 1 <= found["x"].median_ms < 20
    assert len(calls) == 2 + 5  # once before, once to see how long it takes, once a turn


def test_who_is_far_too_slow_leaves_after_five_turns():
    calls = [lambda: time.sleep(0.01)]
    told = []
    found = race(
        [Contestant("slow", calls), Contestant("quick", [lambda: None])],
        seconds=0.002,
        turns=12,
        pause=0,
        advance=told.append,
    )
    assert found["slow"].n == 5
    assert found["quick"].n == 12
    assert sum(told) == 24
    assert faster(found["slow"], found["quick"]).value < 1


def test_no_gradients_and_no_garbage_during_a_race_and_both_as_before():
    states = []
    race([Contestant("x", [lambda: states.append((torch.is_grad_enabled(), gc.isenabled()))])],
         seconds=0.001, turns=5)  # fmt: skip
    assert set(states) == {(False, False)}
    assert torch.is_grad_enabled()
    assert gc.isenabled()


def test_a_ratio_is_paired():
    slow_moments = (1.0, 10.0, 1.0, 10.0, 1.0)
    a = Times("a", slow_moments)
    b = Times("b", tuple(2 * v for v in slow_moments))
    assert faster(a, b) == faster(a, b)
    assert vars(faster(a, b)) == {"value": 2.0, "low": 2.0, "high": 2.0}
    noisy = faster(Times("a", (1.0, 1.0, 1.0, 1.0, 1.0)), Times("b", (1.0, 2.0, 3.0, 4.0, 5.0)))
    assert noisy.value == 3.0
    assert 1.0 <= noisy.low < 3.0 < noisy.high <= 5.0


@pytest.mark.parametrize(
    ("contestants", "options", "said"),
    [
        ([], {}, "nothing to time"),
        ([Contestant("a", [])], {}, "no calls of a"),
        ([Contestant("a", [int]), Contestant("a", [int])], {}, "twice"),
        ([Contestant("a", [int])], {"turns": 4}, "4 turns"),
        ([Contestant("a", [int])], {"seconds": 0.0}, "0.0 seconds"),
        ([Contestant("a", [int])], {"seconds": float("nan")}, "nan seconds"),
    ],
)
def test_refuses(contestants, options, said):
    with pytest.raises(InputError, match=said):
        race(contestants, **options)


def test_threads_are_those_before_again():
    before = torch.get_num_threads()

    def fails():
        with threads(before + 1) as count:
            assert torch.get_num_threads() == count == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.get_num_threads() == before
    with threads(None) as count:
        assert count == before
