"""A small network on two half moons: float, quantized after training, and trained quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.data import Augmentation, Split, TrainingBatches
from bitsmith.insight.evaluation import Difference, Evaluation, difference, evaluate
from bitsmith.model.graph import capture, simplify
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import quantize_graph
from bitsmith.model.qat import bit_schedule, fit
from bitsmith.model.qat.ladder import narrowest
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.trained import Training, trained_network, trained_once
from bitsmith.model.tutorial import Simulated, ranges
from bitsmith.studies import Options
from bitsmith.zoo.models.mlp import Mlp

__all__ = ["BITS", "FORMS", "HIDDEN", "Field", "Outcome", "outcomes"]

BITS = (8, 4, 3, 2)
HIDDEN = (16, 16)
#: The quantized networks of each width: nearest codes with one scale a tensor, as in tutorials;
#: codes and biases found layer by layer, a scale an output channel; the same trained on.
FORMS = ("PTQ, nearest", "PTQ, by layer", "QAT")
_BATCH = 100
_EPOCHS = 150
_RATES: dict[str, Any] = {"lr": 2e-2, "scale_lr": 1e-3}
#: Shares of the epochs at which training goes on with fewer bits, down to its own.
_LOWERED = ((0.0, 4), (0.2, 3), (0.47, 2))


@final
@dataclass(frozen=True, eq=False)
class Field:
    """The plane as a grid of points.

    Attributes:
        across, up: coordinates of its columns and rows.
    """

    across: Tensor
    up: Tensor

    @classmethod
    def around(cls, split: Split, points: int) -> Field:
        """Return a grid over the samples with a margin, ``points`` each way."""
        x = torch.from_numpy(split.x)
        low, high = x.amin(0) - 0.3, x.amax(0) + 0.3
        return cls(
            *(torch.linspace(float(a), float(b), points) for a, b in zip(low, high, strict=True))
        )

    @torch.no_grad()
    def margin(self, call: Callable[[Tensor], Any]) -> Tensor:
        """Return by how much the logit of class 1 is above that of class 0, ``[up, across]``."""
        up, across = torch.meshgrid(self.up, self.across, indexing="ij")
        logits = torch.as_tensor(call(torch.stack([across, up], -1).reshape(-1, 2)))
        return (logits[:, 1] - logits[:, 0]).reshape(up.shape)


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """One network: on the test points, and over the plane.

    Attributes:
        form: ``float``, or one of :data:`FORMS`.
        bits: of weights and activations; 32: float.
        evaluation: on the test points.
        against: less float, paired; None: it is the float network.
        margin: see :meth:`Field.margin`.
    """

    form: str
    bits: int
    evaluation: Evaluation
    against: Difference | None
    margin: Tensor


def outcomes(train: Split, test: Split, field: Field, options: Options) -> Iterator[Outcome]:
    """Yield the float network, then every form of each width."""
    training = Training(
        epochs=30 if options.quick else 100, patience=100, held_out=0.0, batch_size=_BATCH,
        lr=5e-2, seed=options.seed,
    )  # fmt: skip
    module = trained_network(
        "moons", lambda: Mlp(2, HIDDEN, classes=2), train, training, stage=options.stage
    )
    plain = _judged(module, test)
    yield Outcome("float", 32, plain, None, field.margin(module))
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    graph = simplify(capture(module, [torch.zeros(2, 2)]))
    for bits in BITS:
        seen = ranges(layers, "minmax", bits, train.batches(_BATCH))
        nearest = Simulated(layers, bits, seen)
        quantized = quantize_graph(graph, make_recipe(f"W{bits}A{bits}"), train.batches(_BATCH))
        trained = _trained(quantized, train, options)
        for form, made in zip(FORMS, (nearest, quantized, trained), strict=True):
            found = _judged(made, test)
            yield Outcome(form, bits, found, difference(found, plain), field.margin(made))


def _judged(call: nn.Module, test: Split) -> Evaluation:
    return evaluate("moons", call, test.batches(test.n), runtime="simulation", latency_repeats=0)


def _stages(bits: int, epochs: int) -> dict[int, int | None]:
    """Return first epoch → bits from there on; None: the network's own."""
    wider = {int(share * epochs): width for share, width in _LOWERED if width > bits}
    last = next((int(share * epochs) for share, width in _LOWERED if width == bits), 0)
    return {**wider, last: None}


def _trained(quantized: QuantizedModel, train: Split, options: Options) -> QuantizedModel:
    """Return the integers after training on them, with labels, bits lowered step by step."""
    model = TrainableModel(quantized, learn_edges=True)
    batches = TrainingBatches(train, _BATCH, seed=options.seed, augmentation=Augmentation())
    epochs = 8 if options.quick else _EPOCHS
    lowered = _stages(narrowest(quantized), epochs)
    decides = {
        "data": train.sha256, "epochs": epochs, "batch": _BATCH, "seed": options.seed,
        "bits": list(lowered.items()),
    }  # fmt: skip

    def learn() -> None:
        steps = epochs * len(batches)
        with options.stage(f"QAT {quantized.recipe.name}", steps) as advance:
            fit(
                model, batches, epochs=epochs, labels=True, seed=options.seed,
                on_epoch=bit_schedule(lowered), on_step=lambda _: advance(1), progress=False,
                **_RATES,
            )  # fmt: skip

    trained_once(f"moons-{quantized.recipe.name.lower()}", model, {**decides, **_RATES}, learn)
    return model.converted()
