"""From a float model to one that trains as it will be deployed, and from there to integers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from bitsmith.data.training import check_training_data
from bitsmith.errors import DataError, InputError, RecipeError
from bitsmith.model import module_qat
from bitsmith.model.calibrate import as_inputs
from bitsmith.model.graph import capture, simplify
from bitsmith.model.graph_quantization import check_weights, quantize_graph
from bitsmith.model.presets import make_recipe
from bitsmith.model.qat.batch_norms import folded_norms
from bitsmith.model.qat.check import check_finite, collapsed
from bitsmith.model.qat.ranges import ActivationRange
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.unwrap import trained_graph
from bitsmith.model.recipe import Recipe
from bitsmith.model.swap import Ragged
from bitsmith.model.targets import make_target

__all__ = ["BatchNorm", "convert", "prepare"]

BatchNorm = Literal["fold", "train"]


def prepare(
    model: nn.Module,
    recipe: str | Recipe,
    data: Tensor | Iterable[Any] | None = None,
    *,
    target: str = "onnxruntime",
    machine: str = "any",
    calibrator: str | None = None,
    ranges: str = "lsq",
    weights: str = "lsq",
    batch_norm: BatchNorm = "fold",
    learn_edges: bool = False,
    ragged: Ragged = "error",
) -> nn.Module:
    """Return a model that trains with the values it will be deployed with; the recipe decides how.

    A static recipe (``W4A4``, ``CODEBOOK2A8-edge8``) captures the model as a graph and quantizes it
    without training; what trains starts there. Its training mode computes the integers of the
    runtime bit for bit, with straight-through gradients. Every other recipe (``W4G64``, ``NF4``,
    ``W8A8-dynamic``) trains a copy of the module with quantized weights: see
    :func:`bitsmith.model.module_qat.prepare`, whose arguments are ``weights`` (its ``learn``) and
    ``ragged``. Train the result with any loop or :func:`~bitsmith.model.qat.fit.fit`; then
    :func:`convert` it.

    Args:
        model: a trained module; it is not changed. Of a graph every layer trains, whatever
            ``requires_grad`` the model's parameters have: the result's own say what trains.
        recipe: a preset, a JSON file or a :class:`Recipe`.
        data: static: one batch of inputs as a tensor, or batches ``x`` or ``(x, y)`` of the
            training split, from which ranges start. All of it is read once. The module lane
            looks at none.
        target, machine: static: the runtime that will execute the file, and what it is exact on.
        calibrator: static: instead of the recipe's.
        ranges: static: how activation ranges follow: ``lsq`` (learned scales), ``lsq+`` (and zero
            points), ``pact`` (learned clipping), ``moving_average``, ``fixed``.
        weights: how weight scales follow: ``lsq`` (learned) or ``minmax``.
        batch_norm: static: ``fold`` it into its layer before training, or ``train`` it folded:
            :func:`~bitsmith.model.qat.norm_statistics.freeze_batch_norms` ends that.
        learn_edges: static: train layers of 8 bits too; else their codes stay as they are.
        ragged: module lane: where a group size does not divide.

    Raises:
        CaptureError: the model cannot be traced.
        DataError: a static recipe without data, or data that is no calibration data.
        InputError: no such ``batch_norm``, or no batch norm to train. Those beside layers whose
            codes stay are listed in a warning where others train.
        RecipeError: a rule matches nothing, or an argument of the other lane was given.
        UnknownNameError, WeightsError: as their names say.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.randn(16, 8)
    >>> trained = prepare(net, "W4A4", x)
    >>> torch.equal(trained(x), convert(trained)(x))
    True
    """
    chosen = make_recipe(recipe)
    if chosen.lane == "module":
        _refuse(chosen, target, machine, calibrator, ranges, batch_norm, learn_edges)
        return module_qat.prepare(model, chosen, learn=weights, ragged=ragged)
    if ragged != "error":
        raise RecipeError(f"recipe {chosen.name!r} is of the static lane, which takes no ragged")
    if batch_norm not in ("fold", "train"):
        raise InputError(f"batch_norm is 'fold' or 'train', not {batch_norm!r}")
    make_target(target, machine)
    ActivationRange.registry[ranges]
    check_weights(model)
    first, batches = _opened(chosen, data)
    captured = capture(model, [x[:2] for x in as_inputs(first)])
    graph = simplify(captured)
    norms = folded_norms(captured, graph) if batch_norm == "train" else {}
    if batch_norm == "train" and not norms:
        raise InputError("the model has no batch norm that folds into the layer before it")
    quantized = quantize_graph(
        graph,
        chosen,
        batches,
        target=target,
        machine=machine,
        calibrator=calibrator,
        min_samples=1,
        trains=True,
    )
    trained = TrainableModel(
        quantized, ranges=ranges, weights=weights, learn_edges=learn_edges, norms=norms
    )
    if kept := [name for name in norms if trained.norm_of(name) is None]:
        listed = (
            f"the batch norms of {', '.join(kept)} stay folded: codes of 8 bits stay as they are"
        )
        remedy = "learn_edges=True trains them"
        if len(kept) == len(norms):
            raise InputError(f"{listed}, and no other one is left to train; {remedy}")
        warnings.warn(f"{listed}; {remedy}", RuntimeWarning, stacklevel=2)
    return trained


def convert(model: nn.Module) -> nn.Module:
    """Return the quantized model that ``model`` has been trained to be: what is exported.

    Of a graph a :class:`~bitsmith.model.quantized.QuantizedModel`, of a module one with packed
    layers. Its weights are those of ``model.eval()``, bit for bit, and so are the outputs of a
    graph; those of packed layers where :func:`bitsmith.model.module_qat.convert` says. ``model``
    can go on training.

    Args:
        model: of :func:`prepare`, also compiled or wrapped in ``DistributedDataParallel`` or
            ``AveragedModel``.

    Raises:
        InputError: it was not prepared here, has numbers that are NaN or infinite, or still trains
            with more bits than its recipe's; all layers are listed. Scales that fell to nothing
            are listed in a warning.
    """
    graph = trained_graph(model)
    if graph is None:
        return module_qat.convert(model)
    check_finite(graph, collapsed=False)
    if gone := collapsed(graph):
        warnings.warn("; ".join(gone) + ": lower the learning rate", RuntimeWarning, stacklevel=2)
    late = [
        f"{name} ({int(rule.bits)} of {rule.given.format.bits})"
        for name in graph.layer_names()
        if int((rule := graph.codes_of(name)).bits) != rule.given.format.bits
    ] + [
        f"activations of {name} ({int(found.bits)} of {found.given.encoding.format.bits})"
        for name, found in graph.own_ranges().items()
        if int(found.bits) != found.given.encoding.format.bits
    ]
    if late:
        raise InputError(
            f"some still train with other bits than the recipe's: {', '.join(late)}; call "
            "set_bits(model, None) and train on"
        )
    return graph.converted()


def _opened(recipe: Recipe, data: Tensor | Iterable[Any] | None) -> tuple[Any, Iterable[Any]]:
    """Return the first batch, and all of them."""
    if data is None:
        raise DataError(
            f"recipe {recipe.name!r} is static: it trains the captured graph, and needs data that "
            "ranges start from (data=…)"
        )
    check_training_data(data, "preparing")
    batches = iter([data] if isinstance(data, Tensor) else data)
    first = next(batches, None)
    if first is None:
        raise DataError("the data is empty: its iterator gave no batch")
    return first, itertools.chain([first], batches)


def _refuse(
    recipe: Recipe,
    target: str,
    machine: str,
    calibrator: str | None,
    ranges: str,
    batch_norm: str,
    learn_edges: bool,
) -> None:
    given = {
        "target": target != "onnxruntime",
        "machine": machine != "any",
        "calibrator": calibrator is not None,
        "ranges": ranges != "lsq",
        "batch_norm": batch_norm != "fold",
        "learn_edges": learn_edges,
    }
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise RecipeError(
            f"recipe {recipe.name!r} is of the module lane, which takes no {', '.join(wrong)}"
        )
