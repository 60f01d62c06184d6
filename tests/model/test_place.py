"""Where quantizers go, decided from the graph alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.errors import RecipeError, UnknownNameError
from bitsmith.model.graph import Graph, capture, simplify
from bitsmith.model.place import Placement, place, weighted_layers
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.targets import make_target, targets

W8A8 = make_recipe("W8A8")


class Net(nn.Module):
    """A function of x and two layers that can be used anywhere in it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def placed(function: Callable[..., Tensor], recipe: Recipe = W8A8) -> tuple[Graph, Placement]:
    graph = simplify(capture(Net(function), torch.randn(2, 8, 6, 6)))
    return graph, place(graph, make_target("onnxruntime"), recipe)


def kinds(function: Callable[..., Tensor], recipe: Recipe = W8A8) -> dict[str, str]:
    _, placement = placed(function, recipe)
    return {k: o.kind for k, o in placement.outcomes.items() if o.kind != "constant"}


def keeping(*patterns: str) -> Recipe:
    return Recipe("keep", (*(Rule(p, None) for p in patterns), *W8A8.rules), W8A8.activation)


def test_arithmetic_runs_in_integers_and_moves_on_codes():
    found = kinds(lambda m, x: m.b(F.max_pool2d(m.a(x), 2).transpose(2, 3)))
    assert found == {"a": "integer", "max_pool": "codes", "transpose": "codes", "b": "integer"}


def test_logits_stay_float_and_are_not_rounded():
    graph, placement = placed(lambda m, x: m.head(m.a(x).mean((2, 3))))
    head = placement.outcomes["head"]
    assert (head.kind, head.float_output) == ("integer", True)
    assert "head" not in placement.group
    assert graph.outputs == ("head",)


def test_a_linear_layer_that_feeds_integers_hands_out_codes():
    _, placement = placed(lambda m, x: m.b(m.head(x.transpose(1, 3)).transpose(1, 3)))
    assert not placement.outcomes["head"].float_output
    assert "head" in placement.group


def test_joining_operators_follow_their_readers():
    assert kinds(lambda m, x: m.b(m.a(x) + x))["add"] == "integer"
    assert kinds(lambda m, x: m.a(x) + m.b(x))["add"] == "integer"
    # The input is float and nothing after the sum needs codes.
    assert kinds(lambda m, x: m.a(x) + x)["add"] == "float"


def test_sigmoid_at_the_end_is_float_and_inside_is_a_table():
    assert kinds(lambda m, x: m.a(x).sigmoid())["sigmoid"] == "float"
    assert kinds(lambda m, x: m.b(m.a(x).sigmoid()))["sigmoid"] == "integer"


def test_operators_without_an_integer_kernel_are_islands_with_their_reason():
    graph, placement = placed(lambda m, x: m.b(F.silu(m.a(x)).cumsum(1)))
    reasons = {k: o.reason for k, o in placement.outcomes.items() if o.kind == "float"}
    assert reasons == {
        "silu": "ONNX Runtime has no integer SiLU",
        "cumsum": "aten.cumsum.default has no integer form",
    }
    assert set(placement.group) == {graph.inputs[0].name, "a", "cumsum", "b"}


def test_moves_share_the_encoding_of_what_they_move():
    graph, placement = placed(lambda m, x: m.b(F.pad(F.max_pool2d(m.a(x), 2), (1, 1, 0, 0))))
    assert placement.group["pad"] == placement.group["max_pool"] == "a"
    assert placement.group["b"] == "b"
    assert placement.group[graph.inputs[0].name] == graph.inputs[0].name


def test_moves_between_floats_stay_float():
    found = kinds(lambda m, x: F.silu(F.silu(m.a(x)).transpose(2, 3)))
    assert found["transpose"] == "float"


def test_a_rule_keeps_a_layer_in_float():
    _, placement = placed(lambda m, x: m.b(m.a(x)), keeping("a"))
    assert placement.outcomes["a"].kind == "float"
    assert placement.outcomes["a"].reason == "recipe keep: a rule keeps it in float"
    assert set(placement.weights) == {"b"}


def test_a_layer_without_a_rule_is_float():
    only = Recipe("only", (Rule("a", W8A8.rules[-1].weight),), W8A8.activation)
    _, placement = placed(lambda m, x: m.b(m.a(x)), only)
    assert placement.outcomes["b"].reason == "recipe only: no rule matches it"


def test_a_module_called_twice_is_one_layer():
    graph, placement = placed(lambda m, x: m.a(m.b(m.a(x)).relu()), keeping("a"))
    assert weighted_layers(graph) == [("a", "conv"), ("b", "conv")]
    assert [k for k, o in placement.outcomes.items() if o.kind == "float"] == ["a", "a_2"]
    edges = make_recipe("W4A8-edge8")
    _, placement = placed(lambda m, x: m.a(m.b(m.a(x)).relu()), edges)
    assert {k: s.format.bits for k, s in placement.weights.items()} == {"a": 8, "b": 8, "a_2": 8}


def test_a_layer_called_a_2_is_not_the_second_call_of_a():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_2 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a_2(self.a(x))

    graph = simplify(capture(Named(), torch.randn(2, 8, 6, 6)))
    assert weighted_layers(graph) == [("a", "conv"), ("a_2", "conv")]


def test_a_rule_that_matches_nothing():
    with pytest.raises(RecipeError, match=r"no layer: stem\.\*; layers are a, b"):
        placed(lambda m, x: m.b(m.a(x)), keeping("stem.*"))


def test_tables_are_of_inner_layers():
    def three(m: Net, x: Tensor) -> Tensor:
        return m.head(m.b(m.a(x)).mean((2, 3)))

    assert placed(three, make_recipe("CODEBOOK3A8"))[1].tables == {"a": 3, "b": 3, "head": 3}
    assert placed(three, make_recipe("CODEBOOK3A8-edge8"))[1].tables == {"b": 3}
    assert placed(three)[1].tables == {}


def test_an_embedding_has_no_table():
    graph = simplify(
        capture(nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8)), torch.ones(2, 5).long())
    )
    recipe = make_recipe("CODEBOOK3A8")
    placement = place(graph, make_target("onnxruntime"), recipe)
    assert list(placement.tables.values()) == [3]
    bare = Recipe("bare", recipe.rules[1:], recipe.activation)
    with pytest.raises(RecipeError, match=r"gives the embeddings .* put a rule for op:embedding"):
        place(graph, make_target("onnxruntime"), bare)


@pytest.mark.parametrize("name", targets)
def test_targets_know_the_vocabulary(name):
    from bitsmith.model.graph.operators import OPERATORS

    for machine in targets[name].machines:
        target = make_target(name, machine)
        known = {**target.integer, **target.joining, **target.moves}
        assert known.keys() <= OPERATORS.keys()
        assert not target.integer.keys() & target.joining.keys()
        assert not target.moves.keys() & {*target.integer, *target.joining}
        # What has no kernel is refused with a reason of its own.
        graph, _ = placed(lambda m, x: m.a(x))
        for op in OPERATORS.keys() - known.keys() - {"aten"}:
            assert target.refuses(graph, graph.nodes[-1].with_(op=op, params={})), op


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="did you mean 'onnxruntime'"):
        make_target("onnx-runtime")
    with pytest.raises(UnknownNameError, match="unknown machine of target onnxruntime 'avx'"):
        make_target("onnxruntime", "avx")
