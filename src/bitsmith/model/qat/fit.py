"""Training for those without a loop of their own: labels, or the float model as the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.data.training import check_training_data
from bitsmith.errors import DataError, InputError
from bitsmith.model.checkpoint import data_fingerprint
from bitsmith.model.graph.operators import run_float
from bitsmith.model.identity import identity_of_quantized
from bitsmith.model.qat.diagnosis import first_wrong
from bitsmith.model.qat.pairs import labelled, taught
from bitsmith.model.qat.relative import RelativeAdam, step_sizes
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.unwrap import trained_graph
from bitsmith.model.train import Batches, TrainingRun
from bitsmith.model.train import fit as train

__all__ = ["TEMPERATURE", "cross_entropy", "distillation", "fit", "parameter_groups"]

_SCALES = ("log_scale", "scale", "offset")
"""Names of the parameters that are scales, in both lanes."""

_FASTEST = 1e6
"""A step further than this means nothing."""

TEMPERATURE = 4.0
"""Of the softmax that teacher and student share (arXiv 1503.02531, section 2)."""


def parameter_groups(
    model: nn.Module, lr: float = 1e-3, scale_lr: float = 1e-3
) -> list[dict[str, Any]]:
    """Return groups for an optimizer: weights and biases, and quantization scales.

    Scales train in logarithms, or in units of where they started: ``scale_lr`` is about the share
    by which Adam changes one in a step. None of the groups decays: what a weight rounds to is
    decided by its scale.

    >>> [len(g["params"]) for g in parameter_groups(nn.Linear(2, 2))]
    [2]
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.rpartition(".")[2] in _SCALES].append(parameter)
    rates = {False: lr, True: scale_lr}
    return [{"params": p, "lr": rates[s], "weight_decay": 0.0} for s, p in groups.items() if p]


def distillation(output: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return ``T² · KL(softmax(teacher/T) ‖ softmax(output/T))``, the mean over samples.

    arXiv 1503.02531, section 2. Outputs that are no logits ``[N, classes]`` are compared by their
    mean squared difference.

    >>> same = torch.tensor([[1.0, 2.0]])
    >>> float(distillation(same, same))
    0.0
    """
    if not isinstance(output, Tensor):
        raise InputError(
            f"distillation compares one output, and the model gives a {type(output).__name__}: "
            "give loss=…, which takes (output, target)"
        )
    if output.dim() != 2 or output.shape[1] < 2:
        return F.mse_loss(output, teacher)
    ours, theirs = (F.log_softmax(z / temperature, 1) for z in (output, teacher))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of labels ``y`` and logits ``[N, classes, …]``, the mean over all.

    Raises:
        InputError: there are no two classes: of one the loss is 0 whatever it is.

    >>> float(cross_entropy(torch.zeros(1, 2), torch.tensor([0]))) > 0.69
    True
    """
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[1] < 2:
        shown = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"labels are learned by cross-entropy over at least two classes [N, classes, …], and "
            f"the model gives {shown}: give loss=…"
        )
    return F.cross_entropy(output, y)


def fit(
    model: nn.Module,
    batches: Batches | Iterable[Any] | Callable[[int], Iterable[Any]],
    *,
    epochs: int,
    teacher: nn.Module | Callable[[Tensor], Tensor] | None = None,
    labels: bool = False,
    mix: bool = False,
    lr: float = 3e-3,
    scale_lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    valid: Batches | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    on_step: Callable[[nn.Module], None] | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train a prepared model in place and return the losses.

    Without ``labels`` the float model is the teacher, and labels are not looked at: of a graph
    that was prepared, its own float weights; else give ``teacher``.

    Args:
        model: as :func:`prepare` returns it.
        batches: ``x`` or ``(x, y)``: a re-iterable, or a function of the epoch's index. ``x`` is
            one input; a model of several is trained by a loop of one's own.
        epochs: passes over the data.
        teacher: gives the outputs to learn; float, in evaluation mode, not changed.
        labels: learn the labels of the batches instead (``loss`` is then cross-entropy).
        mix: put some of another sample of the batch into every sample
            (:func:`~bitsmith.model.qat.mixtures.mixed`): the teacher says what that is, and few
            samples are not learned by heart.
        lr, scale_lr: at the start, falling along a cosine, of :class:`RelativeAdam`: in
            quantization steps (in the module lane shares of a channel's size), and shares of a
            scale.
        optimizer: in place of that one, over the model's parameters, with its own rates.
        loss: ``(output, target)`` → scalar, instead of :func:`distillation` or cross-entropy.
        valid: batches to measure after each epoch, as ``batches``: against labels, or the teacher.
        seed, on_epoch, on_step, checkpoint, fingerprint, progress: as
            :func:`bitsmith.model.train.fit`. A checkpoint is of one recipe and of one data set as
            far as the batches tell: name, split, SHA-256, batch size.

    Raises:
        DataError: no data; labels are wanted and there are none; samples that are to be mixed are
            no floats.
        InputError: there is no teacher; a checkpoint of another run.
        DivergedError: the loss or a parameter is no longer finite; the layer whose scale or output
            went wrong first is named, and the model has the state of the last good epoch.
    """
    if not (0 < lr <= _FASTEST and 0 < scale_lr <= _FASTEST):
        raise InputError(
            f"lr and scale_lr are above 0 and at most {_FASTEST:g}, not {lr:g} and {scale_lr:g}: "
            "lower the learning rate"
        )
    graph = trained_graph(model)
    if graph is not None and len(found := graph.source.program.graph.inputs) != 1:
        raise InputError(
            f"fit trains models of one input, and this one has {len(found)} "
            f"({', '.join(d.name for d in found)}): use a loop of your own"
        )
    if optimizer is not None:
        _check_optimizer(optimizer, model)
    if labels and teacher is not None:
        raise InputError("give a teacher or labels=True, not both")
    if labels and mix:
        raise InputError("a mixture of two samples has no one label: mix without labels=True")
    check_training_data(batches)
    if isinstance(batches, Tensor):
        raise DataError("a tensor is no batches: give x.split(batch_size)")
    if labels:
        source, judged = labelled(batches), None if valid is None else labelled(valid)
    else:
        give = _teacher(model, teacher)
        source = taught(batches, give, mix)
        judged = None if valid is None else taught(valid, give, False)
    measure = loss or (cross_entropy if labels else distillation)
    return train(
        model,
        source,
        epochs=epochs,
        optimizer=optimizer
        or RelativeAdam(parameter_groups(model, lr, scale_lr), sizes=step_sizes(model)),
        loss=measure,
        seed=seed,
        valid=judged,
        on_epoch=on_epoch,
        on_step=on_step,
        checkpoint=checkpoint,
        fingerprint={}
        if checkpoint is None
        else {
            **_fingerprint(model, labels),
            "mix": mix,
            **data_fingerprint(batches),
            **(fingerprint or {}),
        },
        explain=first_wrong,
        progress=progress,
    )


def _fingerprint(model: nn.Module, labels: bool) -> Mapping[str, Any]:
    shapes = [f"{k} {list(v.shape)}" for k, v in model.state_dict().items() if torch.is_tensor(v)]
    return {
        **_identity(model),
        "learns": "labels" if labels else "a teacher",
        "parameters": " ".join(shapes),
    }


def _identity(model: nn.Module) -> Mapping[str, Any]:
    """What it was prepared from, and the rules by which its weights and ranges train."""
    graph = trained_graph(model)
    if graph is None:
        known = (m.__dict__.get("source_identity") for m in model.modules())
        return next(filter(None, known), {})
    rules = {
        "weights": {graph.codes_of(n).name for n in graph.layer_names()},
        "ranges": {found.name for found in graph.own_ranges().values()},
    }
    return identity_of_quantized(graph.source) | {k: sorted(v) for k, v in rules.items()}


def _teacher(
    model: nn.Module, given: nn.Module | Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    if isinstance(given, nn.Module):
        given.eval()
    if given is not None:
        return given
    if not isinstance(model, TrainableModel):
        raise InputError("without labels a teacher is needed: teacher=the float model")
    graph = model.source.program.graph
    return lambda x: run_float(graph, [x])[0]


def _check_optimizer(optimizer: Any, model: nn.Module) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"optimizer is one of torch.optim over the model's parameters, not {optimizer!r:.80}"
        )
    own = {id(p) for p in model.parameters()}
    given = [p for group in optimizer.param_groups for p in group["params"]]
    if foreign := sum(id(p) not in own for p in given):
        raise InputError(
            f"{foreign} of {len(given)} parameters of the optimizer are not of this model: make it "
            "from the prepared model, parameter_groups(model)"
        )
