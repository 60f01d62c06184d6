"""Measure one variant: quantize, train where that is asked for, and judge on test samples.

This is what the processes of a sweep run; everything that decides the answer is in the key.
"""

from __future__ import annotations

import base64
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from bitsmith.algorithms.rounding import Rounding
from bitsmith.data import TrainingBatches
from bitsmith.errors import RecipeError
from bitsmith.insight.zoo_network import ZooNetwork, zoo_network
from bitsmith.model.calibrate import encodings, gather
from bitsmith.model.equalize import equalize
from bitsmith.model.graph import Graph
from bitsmith.model.kept import Kept
from bitsmith.model.place import place
from bitsmith.model.ptq import quantize_graph
from bitsmith.model.qat import convert, fit, prepare
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe
from bitsmith.model.sequential import Sweep, sequential
from bitsmith.model.simulate import Program
from bitsmith.model.targets import make_target
from bitsmith.model.weights import coverage_of, quantize_weights
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.studies.sweep.algorithms import flag, rounding_of
from bitsmith.studies.sweep.variants import Variant

__all__ = ["Effort", "measure", "right_of"]

_BATCH = 64
_TARGET = "onnxruntime"
_RATE, _SCALE_RATE = 1e-2, 5e-3
"""For few epochs; in quantization steps, and shares of a scale."""


@final
@dataclass(frozen=True)
class Effort:
    """How much work a variant is.

    Attributes:
        judged: test samples; None: all.
        calibration: training samples that ranges and codes are found from.
        finetune, qat: epochs.
        samples: training samples of an epoch; None: all.
        quick: of a network that is trained first, fewer epochs.
    """

    judged: int | None
    calibration: int
    finetune: int
    qat: int
    samples: int | None
    quick: bool

    def of(self, variant: Variant) -> Effort:
        """Return what of it decides a variant's answer."""
        finetune = self.finetune if variant.method == "ptq+finetune" else 0
        qat = self.qat if variant.method == "qat" else 0
        samples = self.samples if finetune or qat else None
        return replace(self, finetune=finetune, qat=qat, samples=samples)


def measure(key: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a variant gives: ``right`` (packed bits, base 64), ``n``, ``bytes``.

    Args:
        key: ``variant`` and ``effort`` as plain data, ``dataset`` and ``seed``.

    Raises:
        BitsmithError: the combination cannot be; the message says why.
    """
    variant, effort = Variant(**key["variant"]), Effort(**key["effort"])
    seed = int(key["seed"])
    network = _network(variant.model, key["dataset"], effort.quick, seed)
    made: nn.Module
    if variant.method == "float":
        made, size = network.module, _float_bytes(network.module)
    elif variant.static:
        static = _static(network, variant, effort, seed)
        made, size = static, _static_bytes(static)
    else:
        made = _weights_only(network, variant, effort, seed)
        size = _packed_bytes(network.module, made)
    found = network.judge(variant.label, variant.method, made, effort.judged)
    assert found.right is not None
    bits = np.packbits(found.right.numpy())
    return {
        "right": base64.b64encode(bits.tobytes()).decode(),
        "n": found.n,
        "bytes": size,
    }


def right_of(answer: Mapping[str, Any]) -> Tensor:
    """Return whether each sample was right, bool [N], of what :func:`measure` gave."""
    bits = np.frombuffer(base64.b64decode(answer["right"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=int(answer["n"])).astype(bool))


@functools.lru_cache(maxsize=2)
def _network(model: str, dataset: str | None, quick: bool, seed: int) -> ZooNetwork:
    return zoo_network(model, dataset, quick=quick, seed=seed)


@functools.lru_cache(maxsize=2)
def _graph(network: ZooNetwork) -> Graph:
    return network.graph()


def _static(network: ZooNetwork, variant: Variant, effort: Effort, seed: int) -> QuantizedModel:
    """Return a network in integers, trained where the method says so."""
    recipe, rounding = variant.recipe(), rounding_of(variant.algorithm)
    data = network.calibration(effort.calibration, seed)
    trains = variant.method in ("ptq+finetune", "qat")
    if variant.method == "codebook" and rounding is not None:
        raise RecipeError(f"a table's codes come from k-means, not from {rounding}")
    if rounding is None:
        start = quantize_graph(_graph(network), recipe, data, trains=trains)
    else:
        start = _rounded(_graph(network), recipe, variant, data)
    if not trains:
        return start
    model = TrainableModel(start, learn_edges=True)
    _train(model, network, variant, effort, seed)
    return model.converted()


def _rounded(graph: Graph, recipe: Recipe, variant: Variant, data: Any) -> QuantizedModel:
    """Return a graph in integers whose codes a rounding by name has chosen."""
    rounding = rounding_of(variant.algorithm)
    assert rounding is not None
    kind = Rounding.registry[rounding]
    if kind.needs is not None and kind.needs.name != "gram":
        raise RecipeError(f"{rounding} needs {kind.needs.name} statistics, which integers have not")
    runtime, calibrator = make_target(_TARGET, "any"), make_calibrator(recipe.calibrator)
    if recipe.equalize:
        head = [x for x, _ in itertools.islice(data, 1)]
        graph, _ = equalize(graph, head, replace_relu6=True, absorb=True, samples=_BATCH)
    placement = place(graph, runtime, recipe)
    keep = Kept(256)
    statistics = gather(placement, calibrator, keep.watch(data))
    found = encodings(placement, runtime, calibrator, statistics)
    sweep = Sweep(rounding, toward_float=False, correct_bias=bool(flag(variant.algorithm, "bias")))
    layers, _ = sequential(placement, runtime, found, keep.batches, sweep)
    program = Program(placement.graph, placement.outcomes, found, layers)
    return QuantizedModel(program, recipe, _TARGET, "any", {"calibrator": calibrator.spec})


def _weights_only(network: ZooNetwork, variant: Variant, effort: Effort, seed: int) -> nn.Module:
    """Return a network with packed weights and float activations."""
    recipe, rounding = variant.recipe(), rounding_of(variant.algorithm)
    if beside := [p for p in ("equalize", "bias") if flag(variant.algorithm, p)]:
        raise RecipeError(f"{' and '.join(beside)}: only where activations have codes too")
    if variant.method in ("ptq+finetune", "qat"):
        if rounding is not None:
            raise RecipeError(
                f"training starts from the codes of auto, not from those of {rounding}"
            )
        prepared = prepare(network.module, recipe, ragged="pad")
        _train(prepared, network, variant, effort, seed)
        return convert(prepared)
    kind = None if rounding is None else Rounding.registry[rounding]
    learned = variant.method == "codebook"
    blind = learned if kind is None else kind.needs is None and kind.takes is None
    data = None
    if not blind:
        data = [x for x, _ in network.calibration(effort.calibration, seed)]
    return quantize_weights(network.module, recipe, data, rounding=rounding, ragged="pad")


def _train(
    model: nn.Module, network: ZooNetwork, variant: Variant, effort: Effort, seed: int
) -> None:
    """Train in place: with labels (QAT), or after the float network."""
    labels = variant.method == "qat"
    samples = effort.samples if effort.samples is None else min(effort.samples, network.train.n)
    batches = TrainingBatches(network.train, _BATCH, seed=seed, labelled=labels, limit=samples)
    teacher: dict[str, Any] = {}
    if not labels and not isinstance(model, TrainableModel):
        teacher = {"teacher": network.module}
    fit(
        model, batches, epochs=effort.qat if labels else effort.finetune, labels=labels, seed=seed,
        lr=_RATE, scale_lr=_SCALE_RATE, progress=False, **teacher,
    )  # fmt: skip


def _float_bytes(module: nn.Module) -> int:
    """Bytes of all float parameters and buffers."""
    state = itertools.chain(module.parameters(), module.buffers())
    return sum(t.numel() * t.element_size() for t in state if t.is_floating_point())


def _static_bytes(model: QuantizedModel) -> int:
    """Bytes of codes, scales and tables, of int32 biases, and of what stays float."""
    program = model.program
    total = 0
    for node in program.graph:
        if (layer := program.layers.get(node.name)) is not None:
            total += layer.nbytes + (0 if layer.bias is None else 4 * layer.bias.numel())
        else:
            total += sum(4 * program.graph.params[p].numel() for p in node.params.values())
    return total


def _packed_bytes(module: nn.Module, packed: nn.Module) -> int:
    """Bytes of packed weights with all that belongs to them, and of what stays float."""
    rows = coverage_of(packed)
    replaced = sum(4 * row.values for row in rows if row.outcome != "float")
    stored = sum(
        round(row.bits_per_weight * row.values / 8) for row in rows if row.outcome == "packed"
    )
    return _float_bytes(module) - replaced + stored
