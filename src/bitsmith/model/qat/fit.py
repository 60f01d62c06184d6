"""Training for those without a loop of their own: labels, or the float model as the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.data.training import check_training_data
from bitsmith.errors import DataError, InputError
from bitsmith.model.calibrate import as_inputs
from bitsmith.model.checkpoint import data_fingerprint
from bitsmith.model.graph.operators import run_float
from bitsmith.model.qat.diagnosis import first_wrong
from bitsmith.model.qat.mixtures import mixed
from bitsmith.model.qat.relative import RelativeAdam, step_sizes
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.train import Batches, TrainingRun
from bitsmith.model.train import fit as train

__all__ = ["TEMPERATURE", "distillation", "fit", "parameter_groups"]

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
    if output.dim() != 2 or output.shape[1] < 2:
        return F.mse_loss(output, teacher)
    ours, theirs = (F.log_softmax(z / temperature, 1) for z in (output, teacher))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


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
        batches: ``x`` or ``(x, y)``: a re-iterable, or a function of the epoch's index.
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
        seed, valid, on_epoch, on_step, checkpoint, fingerprint, progress: as
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
    if labels and teacher is not None:
        raise InputError("give a teacher or labels=True, not both")
    if labels and mix:
        raise InputError("a mixture of two samples has no one label: mix without labels=True")
    check_training_data(batches)
    if isinstance(batches, Tensor):
        raise DataError("a tensor is no batches: give x.split(batch_size)")
    source = _labelled(batches) if labels else _taught(batches, _teacher(model, teacher), mix)
    measure = loss or (F.cross_entropy if labels else distillation)
    return train(
        model,
        source,
        epochs=epochs,
        optimizer=optimizer
        or RelativeAdam(parameter_groups(model, lr, scale_lr), sizes=step_sizes(model)),
        loss=measure,
        seed=seed,
        valid=valid,
        on_epoch=on_epoch,
        on_step=on_step,
        checkpoint=checkpoint,
        fingerprint={
            **_fingerprint(model, labels),
            "mix": mix,
            **({} if checkpoint is None else data_fingerprint(batches)),
            **(fingerprint or {}),
        },
        explain=first_wrong,
        progress=progress,
    )


def _fingerprint(model: nn.Module, labels: bool) -> Mapping[str, Any]:
    recipe = model.source.recipe if isinstance(model, TrainableModel) else None
    recipe = getattr(model, "recipe", recipe)
    shapes = [f"{k} {list(v.shape)}" for k, v in model.state_dict().items() if torch.is_tensor(v)]
    return {
        "recipe": getattr(recipe, "name", None),
        "learns": "labels" if labels else "a teacher",
        "parameters": " ".join(shapes),
    }


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


@final
@dataclass(frozen=True)
class _Pairs:
    """Batches as ``(x, target)``, made when they are reached."""

    batches: Iterable[Any]
    pair: Callable[[Any], tuple[Tensor, Tensor]]

    def __length_hint__(self) -> int:
        return length_hint(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.pair, self.batches)


def _taught(batches: Any, teacher: Callable[[Tensor], Tensor], mix: bool) -> Batches:
    def pair(batch: Any) -> tuple[Tensor, Tensor]:
        x = as_inputs(batch)[0]
        x = mixed(x) if mix else x
        with torch.no_grad():
            return x, teacher(x).detach()

    return _mapped(batches, pair)


def _labelled(batches: Any) -> Batches:
    def pair(batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or batch[1] is None:
            raise DataError(
                "labels=True needs batches (x, y), and these have no labels; without labels the "
                "float model is the teacher"
            )
        return as_inputs(batch)[0], torch.as_tensor(batch[1])

    return _mapped(batches, pair)


def _mapped(batches: Any, pair: Callable[[Any], tuple[Tensor, Tensor]]) -> Batches:
    if isinstance(batches, Iterator):  # and still one that can be read only once
        return iter(_Pairs(batches, pair))
    if isinstance(batches, Iterable):
        return _Pairs(batches, pair)
    return lambda epoch: _Pairs(batches(epoch), pair)
