"""Where quantizers go: which tensors become codes, of how many bits, and what stays float.

Decided from the graph, the target and the recipe alone, before any data is seen:

1. operators that carry the arithmetic (convolution, linear, matmul, pools) run in integers;
2. joining operators (add, mul, concat, tables) run in integers where a reader needs codes, or
   where everything they read comes as codes anyway;
3. moves (reshape, slice, pad, max pool …) run on codes between integers, sharing one encoding;
4. the rest is float, with the target's reason. A linear layer whose readers are all float hands
   out float: the logits of a classifier are not rounded to 8 bits;
5. a tensor has the bits that its readers want; where they disagree it has the most of them, and
   the others read it through a ``requantize`` node (:mod:`bitsmith.model.widths`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, final

from bitsmith.errors import RecipeError
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.recipe import Recipe
from bitsmith.model.targets import Target
from bitsmith.model.widths import Wanted, settle_widths
from bitsmith.numbers.scheme import Scheme

__all__ = ["Outcome", "Placement", "place", "weighted_layers"]

#: Operators that own a weight which a recipe's rules speak of.
_WEIGHTED = ("conv", "linear", "embedding")
#: Operators that multiply what they read: a recipe's activation bits are theirs.
_MULTIPLYING = ("conv", "linear", "matmul")


@final
@dataclass(frozen=True)
class Outcome:
    """What becomes of one operator.

    Attributes:
        kind: ``integer`` (an integer kernel), ``codes`` (moved as codes), ``float`` (a float
            island) or ``constant``.
        reason: the runtime's kernel, or why it stays float.
        float_output: an integer kernel that hands out float (logits).
    """

    kind: Literal["integer", "codes", "float", "constant"]
    reason: str
    float_output: bool = False


@final
@dataclass(frozen=True)
class Placement:
    """The decisions for a graph.

    Attributes:
        graph: what was placed, with ``requantize`` nodes where the readers of a tensor want
            different numbers of bits; without any, the graph that was given.
        outcomes: node name → what becomes of it.
        weights: layer name → scheme of its weight, for layers that run in integers and for the
            rows of embeddings.
        tables: layer name → bits of an index, for layers whose codes come from a table.
        group: quantized tensor → the tensor whose encoding it shares (itself, mostly).
        activations: the tensors that give groups their encodings → scheme.
    """

    graph: Graph
    outcomes: dict[str, Outcome]
    weights: dict[str, Scheme]
    tables: dict[str, int]
    group: dict[str, str]
    activations: dict[str, Scheme]

    def activation(self, tensor: str) -> Scheme:
        """Return the scheme of a quantized tensor."""
        return self.activations[self.group[tensor]]

    def runs_on_codes(self, name: str) -> bool:
        """Whether node ``name`` reads codes."""
        return self.outcomes[name].kind in ("integer", "codes")


def weighted_layers(graph: Graph) -> list[tuple[str, str]]:
    """Return ``(name, operator)`` of every layer whose weight a rule can speak of.

    A module that is called several times is one layer, under the name of its first call.
    """
    return list(dict.fromkeys((_layer_name(n), n.op) for n in graph if n.op in _WEIGHTED))


def _layer_name(node: Node) -> str:
    again = node.layer and re.fullmatch(rf"{re.escape(node.layer)}_\d+", node.name)
    return node.layer if again else node.name


def place(graph: Graph, target: Target, recipe: Recipe) -> Placement:
    """Return where quantizers go in ``graph`` for ``target`` under ``recipe``.

    Raises:
        RecipeError: a rule of the recipe matches nothing, or gives an embedding a table.
    """
    layers = weighted_layers(graph)
    by_layer = recipe.weights(layers)
    schemes = {
        n.name: by_layer[_layer_name(n)]
        for n in graph
        if n.op in _WEIGHTED and _layer_name(n) in by_layer
    }
    refused = _refusals(graph, target, recipe, schemes)
    wants = _wanting_codes(graph, target, refused)
    outcomes = _outcomes(graph, target, refused, wants)
    weights = {
        n.name: scheme
        for n in graph
        if n.op in _WEIGHTED
        and (outcomes[n.name].kind == "integer" or n.op == "embedding")
        and (scheme := schemes.get(n.name)) is not None
    }
    group = _groups(graph, outcomes)
    wanted = _wanted_widths(graph, target, recipe, outcomes, group)
    widths = settle_widths(graph, group, wanted)
    for node in widths.added:
        outcomes[node.name] = Outcome("codes", target.requantizes)
        group[node.name] = node.name
    tables = _tables(graph, recipe, weights)
    return Placement(widths.graph, outcomes, weights, tables, group, widths.activations)


def _tables(graph: Graph, recipe: Recipe, weights: dict[str, Scheme]) -> dict[str, int]:
    layers = weighted_layers(graph)
    by_layer = recipe.tables(layers)
    if wrong := [name for name, op in layers if op == "embedding" and name in by_layer]:
        raise RecipeError(
            f"recipe {recipe.name!r} gives the embeddings {', '.join(wrong)} tables of values, "
            "which are for convolutions and linear layers: put a rule for op:embedding first"
        )
    found = {n.name: by_layer.get(_layer_name(n)) for n in graph if n.name in weights}
    return {name: bits for name, bits in found.items() if bits is not None}


def _wanted_widths(
    graph: Graph,
    target: Target,
    recipe: Recipe,
    outcomes: dict[str, Outcome],
    group: dict[str, str],
) -> Wanted:
    """Tensor → reader → scheme that it reads; the reader ``""`` is the world outside the codes."""
    edges = recipe.edges(weighted_layers(graph))
    joining = recipe.joining_activation
    wanted: dict[str, dict[str, Scheme]] = {tensor: {} for tensor in group}
    for node in graph:
        kind = outcomes[node.name].kind
        for name in node.inputs:
            if kind == "integer" and node.op in _MULTIPLYING:
                edge = _layer_name(node) in edges
                scheme = recipe.edge_activation if edge else recipe.static_activation
                wanted[name][node.name] = scheme
            elif kind == "integer":
                wanted[name][node.name] = joining
            elif kind == "float" and _made_as_codes(outcomes, name):
                wanted[name][""] = joining
    for name in group:
        source = graph.node(name)
        fixed = source is not None and target.fixed_range(source) is not None
        if (name in graph.outputs and _made_as_codes(outcomes, name)) or fixed:
            wanted[name][""] = joining
    settled = {group[tensor] for tensor, readers in wanted.items() if readers}
    for root in set(group.values()) - settled:
        wanted[root][""] = joining
    return wanted


def _made_as_codes(outcomes: dict[str, Outcome], name: str) -> bool:
    outcome = outcomes.get(name)
    return outcome is not None and outcome.kind in ("integer", "codes") and not outcome.float_output


def _refusals(
    graph: Graph, target: Target, recipe: Recipe, schemes: dict[str, Scheme | None]
) -> dict[str, str]:
    refused: dict[str, str] = {}
    for node in graph:
        scheme = schemes.get(node.name)
        reason = target.refuses(graph, node)
        if reason is None and target.kernel(node.op) is None:
            reason = f"target {target.name} does not know {node.op}"
        if node.op == "embedding" and scheme is not None:
            reason = f"rows of {scheme.format} codes, made real by one scale each"
        elif node.op in _WEIGHTED and scheme is None and (reason is None or node.op == "embedding"):
            named = node.name in schemes
            why = "a rule keeps it in float" if named else "no rule matches it"
            reason = f"recipe {recipe.name}: {why}"
        if reason is not None:
            refused[node.name] = reason
    return refused


def _wanting_codes(graph: Graph, target: Target, refused: dict[str, str]) -> set[str]:
    """Nodes that read codes because they, or what follows them, run in integers."""
    wants: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in refused:
            continue
        readers_want = any(r.name in wants for r in graph.consumers(node.name))
        if node.op in target.integer or readers_want:
            wants.add(node.name)
    return wants


def _outcomes(
    graph: Graph, target: Target, refused: dict[str, str], wants: set[str]
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for node in graph:
        kernel = target.kernel(node.op) or ""
        if node.op == "constant":
            outcomes[node.name] = Outcome("constant", "")
        elif node.name in refused:
            outcomes[node.name] = Outcome("float", refused[node.name])
        elif node.op in target.integer:
            readers = graph.consumers(node.name)
            no_codes = not any(r.name in wants for r in readers)
            plain = target.float_output(node) and no_codes
            outcomes[node.name] = Outcome("integer", kernel, plain)
        elif node.name in wants or _comes_as_codes(graph, target, node, outcomes):
            kind: Literal["codes", "integer"] = "codes" if node.op in target.moves else "integer"
            outcomes[node.name] = Outcome(kind, kernel)
        else:
            why = (
                "all its neighbours are float"
                if node.op in target.moves
                else "nothing after it needs codes"
            )
            outcomes[node.name] = Outcome("float", why)
    return outcomes


def _comes_as_codes(graph: Graph, target: Target, node: Node, outcomes: dict[str, Outcome]) -> bool:
    """Whether every tensor that ``node`` reads is produced as codes (constants aside)."""
    if node.op in ("softmax", "sigmoid", "leaky_relu"):
        return False  # at the end of a model float is free and finer
    kinds = []
    for name in node.inputs:
        source = graph.node(name)
        if source is None:
            kinds.append(False)
        elif source.op != "constant":
            kinds.append(_made_as_codes(outcomes, source.name))
    return bool(kinds) and all(kinds)


def _groups(graph: Graph, outcomes: dict[str, Outcome]) -> dict[str, str]:
    """Quantized tensor → representative of its encoding."""
    group: dict[str, str] = {}
    read_as_codes = {
        i for n in graph if outcomes[n.name].kind in ("integer", "codes") for i in n.inputs
    }
    for declared in graph.inputs:
        if declared.name in read_as_codes:
            group[declared.name] = declared.name
    for node in graph:
        outcome = outcomes[node.name]
        if outcome.kind == "codes":
            group[node.name] = group[node.inputs[0]]
        elif (outcome.kind == "integer" and not outcome.float_output) or node.name in read_as_codes:
            group[node.name] = node.name
    return group
