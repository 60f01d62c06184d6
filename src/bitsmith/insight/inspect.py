"""What a network is made of and how hard it is to quantize, before anything is quantized."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.errors import WeightsError
from bitsmith.insight.measure import Record
from bitsmith.insight.storage import ModelSize, granularity_name, model_sizes
from bitsmith.model.graph import Graph, capture, simplify
from bitsmith.model.graph.macs import macs_by_node
from bitsmith.model.owners import memory_key
from bitsmith.model.place import place
from bitsmith.model.presets import make_recipe
from bitsmith.model.quantized import CoverageRow
from bitsmith.model.recipe import Recipe
from bitsmith.model.swap import plan_modules
from bitsmith.model.targets import make_target
from bitsmith.numbers import PerChannel, Scheme, integer_format, quantize

__all__ = [
    "BITS",
    "SHARES",
    "Inspection",
    "WeightFacts",
    "format_bytes",
    "inspect",
    "inspect_records",
    "weight_facts",
]

#: Bit widths at which nearest rounding is tried.
BITS = (8, 7, 6, 5, 4, 3, 2)
#: Shares of the values below which the quantiles of a weight lie, in per cent.
SHARES = (0.1, 1.0, 50.0, 99.0, 99.9)


@final
@dataclass(frozen=True)
class WeightFacts:
    """One weight: a parameter with at least two axes and at least one value.

    Attributes:
        layer: the layer's name, or that of the parameter.
        op: operator, or ``parameter`` where the model could not be captured.
        shape: of the weight.
        parameters: numbers in it.
        low, high: smallest and largest value.
        quantiles: values below which the :data:`SHARES` of all values lie.
        outlier: ``max|w| / std(w)``: about 4 for a normal distribution of 10,000 values; large
            where a few values set the scale of all.
        kurtosis: ``mean((w − mean)⁴) / var²``: 3 for a normal distribution; 0 for a constant.
        mae: bits → mean ``|w − ŵ|`` of nearest rounding, symmetric per output channel.
        relative: bits → the same divided by mean ``|w|``.
    """

    layer: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    low: float
    high: float
    quantiles: tuple[float, ...]
    outlier: float
    kurtosis: float
    mae: dict[int, float]
    relative: dict[int, float]


@final
@dataclass(frozen=True)
class Inspection:
    """A network at rest.

    Attributes:
        parameters: trainable numbers.
        sizes: what it takes with all weights in one format, for each format.
        weights: one entry per weight, batch norms folded in where the model could be captured.
        coverage: what a recipe would do to each operator, or to each weight where it packs
            weights (a group size that does not divide its rows leaves one float here, and is an
            error of quantizing unless it is told so); empty when not captured.
        why_not: why it is empty.
    """

    parameters: int
    sizes: list[ModelSize]
    weights: list[WeightFacts]
    coverage: list[CoverageRow] = field(default_factory=list)
    why_not: str = ""


def inspect(
    module: nn.Module,
    example: Tensor | None,
    *,
    recipe: str = "W8A8",
    target: str = "onnxruntime",
) -> Inspection:
    """Return what ``module`` is made of, and what ``recipe`` would do to it on ``target``.

    Args:
        module: in evaluation mode.
        example: a batch to capture it with; its values do not matter. None: only parameters.
        recipe, target: see the fields of :class:`Inspection`.

    Raises:
        WeightsError: parameters that are NaN or infinite; all are listed.
        CaptureError: the model cannot be traced with ``example``.
    """
    _check_finite(module)
    count = sum(p.numel() for p in module.parameters())
    sizes = model_sizes(module.parameters())
    if example is None:
        named = ((n, "parameter", p.detach()) for n, p in module.named_parameters())
        facts = [weight_facts(n, op, w) for n, op, w in named if w.dim() >= 2 and w.numel()]
        return Inspection(count, sizes, facts, why_not="no example of the input is known")
    graph = simplify(capture(module, example))
    facts = [weight_facts(n, op, w) for n, op, w in _graph_weights(graph)]
    chosen = make_recipe(recipe)
    if chosen.lane == "module":
        return Inspection(count, sizes, facts, _weight_coverage(module, graph, chosen))
    return Inspection(count, sizes, facts, _coverage(graph, chosen, target))


def weight_facts(layer: str, op: str, weight: Tensor) -> WeightFacts:
    """Return the facts about one weight with at least two axes.

    >>> facts = weight_facts("a", "linear", torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    >>> facts.outlier, facts.kurtosis, facts.mae[8]
    (1.0, 1.0, 0.0)
    """
    w = weight.detach().to(torch.float32)
    wide = w.double()
    centred = wide - wide.mean()
    variance = float(centred.square().mean())
    std = variance**0.5
    axis = 1 if op == "conv_transpose" else 0
    mae = {bits: _rounding_error(w, bits, axis) for bits in BITS}
    size = float(wide.abs().mean())
    return WeightFacts(
        layer=layer,
        op=op,
        shape=tuple(w.shape),
        parameters=w.numel(),
        low=float(w.min()),
        high=float(w.max()),
        quantiles=_quantiles(w),
        outlier=float(w.abs().max()) / std if std else 0.0,
        kurtosis=float(centred.pow(4).mean()) / variance**2 if variance else 0.0,
        mae=mae,
        relative={bits: error / size if size else 0.0 for bits, error in mae.items()},
    )


def format_bytes(module: nn.Module) -> dict[str, int]:
    """Return format → bytes of the parameters when the weights are stored in it.

    Weights are parameters with at least two axes; see
    :func:`bitsmith.insight.storage.model_sizes`.

    >>> sizes = format_bytes(nn.Linear(100, 10))
    >>> [sizes[name] for name in ("float32", "float16", "int8", "int4")]
    [4040, 2020, 1080, 580]
    """
    return {size.storage.name: size.bytes for size in model_sizes(module.parameters())}


def inspect_records(found: Inspection, keys: dict[str, Any]) -> list[Record]:
    """Return the sizes, one record per measure of each weight, and the coverage."""
    records = [_size_record(found, size, keys) for size in found.sizes]
    for w in found.weights:
        own = {**keys, "layer": w.layer, "op": w.op, "n": w.parameters}
        measures = {
            "low": w.low,
            "high": w.high,
            "absmax_over_std": w.outlier,
            "kurtosis": w.kurtosis,
        }
        measures |= {f"p{s:g}": v for s, v in zip(SHARES, w.quantiles, strict=True)}
        records += [Record(**own, metric=metric, value=value) for metric, value in measures.items()]
        records += [
            Record(
                **own,
                metric="mae",
                value=error,
                weight_bits=bits,
                granularity="per-channel",
                algorithm="nearest",
            )
            for bits, error in w.mae.items()
        ]
    for row in found.coverage:
        own = {"layer": row.layer, "op": row.op, "outcome": row.outcome, "reason": row.reason}
        records.append(Record(**{**keys, **own, "macs_share": row.macs_share}))
    return records


def _size_record(found: Inspection, size: ModelSize, keys: dict[str, Any]) -> Record:
    """Return the record of one size; ``recipe`` names the format that all weights are in."""
    storage = size.storage
    return Record(
        **{**keys, "recipe": storage.name},
        granularity=storage.granularity if storage.scheme.scaled else None,
        metric="parameters",
        value=found.parameters,
        weight_bits=storage.bits,
        bits_per_weight=size.bits_per_weight,
        bytes=size.bytes,
    )


def _quantiles(weight: Tensor) -> tuple[float, ...]:
    """Return the nearest-rank quantiles: the ``⌈share · n⌉``-th smallest value of each share."""
    values, n = weight.reshape(-1), weight.numel()
    ranks = [max(1, -(-n * round(10 * share) // 1000)) for share in SHARES]  # exact, upwards
    return tuple(float(torch.kthvalue(values, rank).values) for rank in ranks)


def _rounding_error(weight: Tensor, bits: int, axis: int) -> float:
    scheme = Scheme(integer_format(bits, signed=True), granularity=PerChannel(axis))
    return float((quantize(weight, scheme).dequantize() - weight).double().abs().mean())


def _graph_weights(graph: Graph) -> Iterator[tuple[str, str, Tensor]]:
    for node in graph:
        weight = graph.param(node, "weight")
        if weight is not None and weight.dim() >= 2 and weight.numel():
            yield node.name, node.op, weight


def _weight_coverage(module: nn.Module, graph: Graph, recipe: Recipe) -> list[CoverageRow]:
    """Return what a recipe that packs weights does to each; the share of MACs is its layer's."""
    plan = plan_modules(module, recipe, ragged="float")
    macs = macs_by_node(graph)
    total = sum(macs.values()) or 1
    first: dict[Hashable, str] = {}
    rows = []
    for owner in plan.owners:
        for leaf in owner.weights:
            name = f"{owner.name}.{leaf}" if owner.name else leaf
            known = first.setdefault(memory_key(owner.module.get_parameter(leaf)), name)
            scheme = plan.schemes.get(known)
            outcome, reason = "float", plan.reasons.get(known, "")
            if scheme is not None:
                outcome = "packed"
                reason = f"{scheme.format.name}, {granularity_name(scheme.granularity)}"
            if known != name:
                outcome, reason = "tied", f"tied to {known}"
            share = macs.get(owner.name, 0) / total
            bits = None if scheme is None else float(scheme.format.bits)
            rows.append(CoverageRow(name, owner.op, outcome, reason, share, bits))
    return rows


def _coverage(graph: Graph, recipe: Recipe, target: str) -> list[CoverageRow]:
    outcomes = place(graph, make_target(target), recipe).outcomes
    macs = macs_by_node(graph)
    total = sum(macs.values()) or 1
    return [
        CoverageRow(
            n.name,
            n.op,
            outcomes[n.name].kind,
            outcomes[n.name].reason
            + (" with float output" if outcomes[n.name].float_output else ""),
            macs[n.name] / total,
            None,
        )
        for n in graph
        if outcomes[n.name].kind != "constant"
    ]


def _check_finite(module: nn.Module) -> None:
    bad = _not_finite([*module.named_parameters(), *module.named_buffers()])
    if bad:
        raise WeightsError(f"weights are NaN or infinite: {', '.join(bad)}")


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    counts = {n: int((~torch.isfinite(p)).sum()) for n, p in named if p.is_floating_point()}
    return [f"{name} ({count})" for name, count in counts.items() if count]
