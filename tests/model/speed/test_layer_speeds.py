"""Kinds of layers, what they were called with, and asking before quantizing."""

import warnings

import pytest
import torch
from torch import nn

import bitsmith as bs
from bitsmith.errors import DataError, RecipeError, SchemeError
from bitsmith.model.speed import ask
from bitsmith.model.speed.ask import SpeedWarning, ask_machine, slower
from bitsmith.model.speed.layers import FLOAT, LayerSpeed, layer_speeds
from bitsmith.model.speed.race import Times


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 64)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.narrow = nn.Linear(64, 10)
        self.unused = nn.Linear(64, 64)

    def forward(self, tokens, scale=1.0):
        return self.narrow(self.second(self.first(self.table(tokens)))) * scale


QUICK = {"seconds": 0.001, "turns": 5}


def test_like_layers_are_timed_once_on_what_they_get():
    told = []
    model = Tagger().eval()
    found = layer_speeds(
        model, ["W4G64", "W8"], {"tokens": torch.ones(2, 5, dtype=torch.long), "scale": 2.0},
        advance=lambda done, total: told.append((done, total)), **QUICK,
    )  # fmt: skip
    assert [(f.op, f.layers, f.weights, f.inputs) for f in found] == [
        ("embedding", ("table",), ((64, 64),), (2, 5)),
        ("linear", ("first", "second"), ((64, 64),), (2, 5, 64)),
        ("linear", ("narrow",), ((10, 64),), (2, 5, 64)),
    ]
    assert all(list(f.times) == [FLOAT, "W4G64", "W8"] for f in found)
    assert all(t.n == 5 for f in found for t in f.times.values())
    assert told[-1] == (45, 45)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_layers_that_a_recipe_leaves_alone_are_not_in_its_column():
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8))
    first, second = layer_speeds(model, ["W4G64", "W8"], torch.randn(1, 64), **QUICK)
    assert list(first.times) == [FLOAT, "W4G64", "W8"]
    assert list(second.times) == [FLOAT, "W8"]  # no group of 64 in rows of 8


def test_nothing_to_time_is_an_error():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return x

    with pytest.raises(DataError, match="reached no layer"):
        layer_speeds(Idle(), ["W8"], torch.randn(1, 8), **QUICK)


def speeds(name, packed, reference=1.0):
    times = {FLOAT: Times(FLOAT, (reference,) * 5), name: Times(name, (packed,) * 5)}
    return LayerSpeed(("a", "b"), "linear", ((64, 8),), (1, 8), 1, times)


def test_slower_is_what_the_whole_interval_says():
    found = [speeds("W8", 2.0), speeds("W8", 0.5), speeds("W8", 1.0)]
    assert slower(found, "W8") == found[:1]
    assert slower(found, "W4G64") == []


def test_ptq_asks_before_it_quantizes(monkeypatch):
    asked = []

    def measured(worse):
        def fake(model, recipes, example, **_):
            asked.append((recipes[0].name, example))
            return [speeds(recipes[0].name, worse)]

        return fake

    model, x = nn.Sequential(nn.Linear(64, 8)), torch.randn(1, 64)
    monkeypatch.setattr(ask, "layer_speeds", measured(3.0))
    with pytest.warns(SpeedWarning) as caught:
        bs.ptq(model, "W4G64", check_speed=x)
    message = str(caught[0].message)
    assert caught[0].filename == __file__
    for part in ("W4G64", "a and 1 like it", "64×8", "3.0 times slower", "bitsmith bench"):
        assert part in message
    assert asked == [("W4G64", x)]
    monkeypatch.setattr(ask, "layer_speeds", measured(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bs.ptq(model, "W4G64", check_speed=x)
        bs.ptq(model, "W4G64")
    assert len(asked) == 2


def test_asking_really_measures():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpeedWarning)
        (found,) = ask_machine(
            nn.Sequential(nn.Linear(64, 64)), "W4G64", torch.randn(2, 64), seconds=0.001
        )
    assert found.times["W4G64"].median_ms > 0


def test_what_ptq_cannot_ask():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(RecipeError, match="check_speed is for recipes that pack"):
        bs.ptq(model, "W8A8", [torch.randn(16, 8)], check_speed=torch.randn(1, 8))
    with pytest.raises(SchemeError, match="does not fit"):
        bs.ptq(model, "W4G64", check_speed=torch.randn(1, 8))
