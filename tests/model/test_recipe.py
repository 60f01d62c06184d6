"""Recipes: the grammar of presets, rules in order, JSON both ways."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from bitsmith.errors import RecipeError, UnknownNameError
from bitsmith.model.presets import make_recipe, preset_names
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.numbers.formats.integer import int1, integer_format, ternary
from bitsmith.numbers.scheme import PerChannel, PerGroup, PerTensor, PerToken, Scheme

LAYERS = [("stem", "conv"), ("body.0", "conv"), ("body.1", "conv"), ("head", "linear")]


def bits(recipe: Recipe, layers: list[tuple[str, str]] = LAYERS) -> dict[str, int | None]:
    return {k: None if s is None else s.format.bits for k, s in recipe.weights(layers).items()}


STATIC = [name for name in preset_names() if make_recipe(name).lane == "static"]
STATIC += ["W4A4-pertensor", "W3A8-pertensor-edge8"]


@pytest.mark.parametrize("name", STATIC)
def test_presets(name):
    recipe = make_recipe(name)
    assert recipe.name == name
    pattern = r"(W|CODEBOOK)(\d)A(\d)(-pertensor)?(-edge8)?"
    kind, w, a, one, edge = re.fullmatch(pattern, name).groups()
    expected = dict.fromkeys((n for n, _ in LAYERS), int(w) if kind == "W" else 8)
    if name.endswith("-edge8"):
        expected |= {"stem": 8, "head": 8}
    assert bits(recipe) == expected
    assert all(
        s.symmetric and s.granularity == (PerTensor() if one else PerChannel(0))
        for s in recipe.weights(LAYERS).values()
    )
    inner = dict.fromkeys(("body.0", "body.1"), int(w))
    tables = (inner if edge else dict.fromkeys(expected, int(w))) if kind == "CODEBOOK" else {}
    assert recipe.tables(LAYERS) == tables
    assert recipe.activation.format == integer_format(int(a), signed=False)
    assert recipe.edge_activation.format == integer_format(8 if edge else int(a), signed=False)
    assert recipe.joining_activation.format == integer_format(8, signed=False)
    assert not recipe.activation.symmetric
    assert recipe.edges(LAYERS) == ({"stem", "head"} if edge else frozenset())


@pytest.mark.parametrize("name", preset_names())
def test_json_round_trip(name, tmp_path):
    recipe = make_recipe(name)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_json()))
    assert make_recipe(path) == recipe
    assert make_recipe(str(path)) == recipe
    assert make_recipe(recipe) is recipe


def test_corrections_are_asked_for_or_left_to_the_weights():
    base = make_recipe("W8A8-pertensor")
    assert (base.equalize, base.correct_bias) == (None, None)
    assert not {"equalize", "correct_bias"} & set(base.to_json())
    asked = replace(base, equalize=False, correct_bias=True)
    assert asked.to_json() | base.to_json() == asked.to_json()
    assert Recipe.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    with pytest.raises(RecipeError, match="equalize is true, false or absent, not 'yes'"):
        Recipe.from_json(base.to_json() | {"equalize": "yes"})
    with pytest.raises(RecipeError, match="equalize and correct_bias are static only"):
        replace(make_recipe("W4G64"), correct_bias=False)


@pytest.mark.parametrize(
    "weight",
    [
        Scheme(integer_format(8, signed=False), symmetric=False, granularity=PerChannel(0)),
        Scheme(integer_format(8, signed=True), granularity=PerGroup(4)),
        Scheme(integer_format(8, signed=True), granularity=PerChannel(1)),
        Scheme(ternary, granularity=PerTensor()),
        Scheme(int1, granularity=PerTensor()),
    ],
)
def test_weights_that_the_static_lane_has_no_integers_for(weight):
    rules = (Rule("stem", weight), Rule("head", weight), *make_recipe("W8A8").rules)
    with pytest.raises(RecipeError, match="not those of the rules stem, head"):
        Recipe("x", rules, make_recipe("W8A8").activation)


def test_presets_of_the_module_lane():
    four = make_recipe("W4G64").weights([("e", "embedding"), ("l", "linear")])
    assert (four["e"].format.name, four["l"].format.name) == ("int8", "uint4")
    assert four["l"].granularity == PerGroup(64)
    assert not four["l"].symmetric
    assert make_recipe("W4G64").weights([("l", "linear")]) == {"l": four["l"]}  # no embedding: fine
    grouped = make_recipe("W4G64A8-dynamic")
    assert grouped.rules == make_recipe("W4G64").rules
    dynamic = make_recipe("W8A8-dynamic")
    assert grouped.activation == dynamic.activation
    assert dynamic.activation.granularity == PerToken()
    assert make_recipe("W8").activation is None
    names = {name: make_recipe(name).rules[-1].weight.format.name for name in preset_names()}
    assert names["NF4"] == "nf4"
    assert names["MXFP4"] == "fp4_e2m1fn"
    assert names["CODEBOOK3"] == "codebook3"


def test_activations_are_per_tensor_or_per_token():
    rule = make_recipe("W8").rules[-1]
    with pytest.raises(RecipeError, match=r"per tensor .* or per token"):
        Recipe("x", (rule,), Scheme(integer_format(8, True), granularity=PerChannel(0)))
    with pytest.raises(RecipeError, match="has no static activations"):
        _ = make_recipe("W4G64").static_activation
    text = make_recipe("W4G64").to_json() | {"lane": "static"}
    with pytest.raises(RecipeError, match="they make it 'module'"):
        Recipe.from_json(text)


def test_combinations_that_cannot_be():
    four, eight = make_recipe("W4A4"), make_recipe("W8A8")
    wide = Scheme(integer_format(16, signed=False), symmetric=False)
    with pytest.raises(RecipeError, match="static activations have 2 to 8 bits, not uint16"):
        Recipe("x", four.rules, wide)
    with pytest.raises(RecipeError, match="edges have 2 to 8 bits, not 9"):
        Recipe("x", four.rules, four.activation, edge_bits=9)
    with pytest.raises(
        RecipeError, match=r"2\^1 to 2\^7 entries of symmetric int8, not 2\^4 of int4"
    ):
        Rule("*", four.rules[-1].weight, table_bits=4)
    with pytest.raises(RecipeError, match=r"not 2\^8 of int8"):
        Rule("*", eight.rules[-1].weight, table_bits=8)
    with pytest.raises(RecipeError, match="tables of int8 entries are static only"):
        Recipe("x", (Rule("*", eight.rules[-1].weight, table_bits=4),), None)


def test_the_first_rule_that_matches_wins():
    base = make_recipe("W8A8")
    four = make_recipe("W4A8").rules[-1].weight
    rules = (Rule("body.*", None), Rule("op:linear", four), *base.rules)
    recipe = Recipe("mixed", rules, base.activation)
    assert bits(recipe) == {"stem": 8, "body.0": None, "body.1": None, "head": 4}
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_edges_do_not_quantize_what_a_rule_keeps():
    base = make_recipe("W4A8-edge8")
    recipe = Recipe("x", (Rule("stem", None), *base.rules), base.activation, edge_bits=8)
    assert bits(recipe) == {"stem": None, "body.0": 4, "body.1": 4, "head": 8}


def test_layers_without_a_rule_are_absent():
    base = make_recipe("W8A8")
    assert bits(Recipe("x", (Rule("head", base.rules[-1].weight),), base.activation)) == {"head": 8}


def test_every_rule_that_matches_nothing_is_listed():
    base = make_recipe("W8A8")
    rules = (Rule("tail", None), Rule("op:matmul", None), *base.rules)
    with pytest.raises(RecipeError, match=r"no layer: tail, op:matmul; layers are stem, body.0"):
        Recipe("x", rules, base.activation).weights(LAYERS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("W4G64A8", "group scales with static activations"),
        ("W8-dynamic", "dynamic activations need their bits"),
        ("W4G64-edge8", "-edge8 is for static recipes"),
        ("W8-pertensor", "-pertensor is for static recipes"),
        ("W1A8-pertensor", "1-bit weights have a scale for each output channel"),
        ("W4A1", "activations have 2 to 8 bits"),
        ("W8A4-dynamic", "dynamic activations of 4 bits: only 8"),
        ("CODEBOOK8A8", "unknown recipe 'CODEBOOK8A8'"),
        ("w8a8", "did you mean 'W8A8'"),
        ("W9A8", "unknown recipe 'W9A8'; did you mean"),
        ("int8", "unknown recipe 'int8'"),
        ("", "unknown recipe ''"),
    ],
)
def test_what_is_refused(spec, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(spec)


def test_two_and_three_levels_are_symmetric():
    """±s, and −s, 0, s; of each output channel."""
    for name, number in (("W1", int1), ("TERNARY", ternary)):
        assert make_recipe(name).rules[-1].weight == Scheme(number, granularity=PerChannel(0))


def test_bad_files(tmp_path):
    with pytest.raises(RecipeError, match=r"absent.json cannot be read: No such file"):
        make_recipe(tmp_path / "absent.json")
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(RecipeError, match="is not JSON"):
        make_recipe(path)
    path.write_text("[1]")
    with pytest.raises(RecipeError, match="a recipe is a JSON object"):
        make_recipe(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": 1}, RecipeError, "no weights; it has"),
        ({"rules": []}, RecipeError, "has no rules"),
        ({"rules": [{"weight": None}]}, RecipeError, "needs name, rules and activation"),
        ({"name": None}, RecipeError, "needs name, rules and activation"),
        ({"calibrator": "msee"}, UnknownNameError, "did you mean 'mse'"),
        ({"lane": "dynamic"}, RecipeError, "lane 'dynamic'"),
        ({"version": 2}, RecipeError, "version 2"),
    ],
)
def test_bad_contents(change, error, message):
    with pytest.raises(error, match=message):
        Recipe.from_json({**make_recipe("W8A8").to_json(), **change})
