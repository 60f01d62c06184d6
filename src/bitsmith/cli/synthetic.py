"""``--data synthetic``: samples out of the network alone, from what its batch norms remember."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from bitsmith.errors import InputError

if TYPE_CHECKING:
    from bitsmith.cli.output import Output
    from bitsmith.data import Split
    from bitsmith.model.zero_shot import SyntheticBatches
    from bitsmith.zoo import LoadedModel

__all__ = ["ABOUT", "SYNTHETIC", "parsed_shape", "refuse_synthetic", "synthetic_split"]

SYNTHETIC = "synthetic"
"""The name that stands where that of a data set would."""

ABOUT = (
    "No data set: quantize and train make samples from the statistics in MODEL's batch norms "
    "(ZeroQ, arXiv:2001.00281)."
)


@final
@dataclass(frozen=True)
class _Pixels:
    """How the samples that a zoo model is for were scaled: ``(x / 255 − mean) / std``.

    Attributes:
        mean, std: per channel; None: they are in [0, 1] as they are.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def limits(self) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
        """The least and greatest value of an input."""
        from bitsmith.data.split import Normalization

        if self.mean is None or self.std is None:
            return 0.0, 1.0
        return Normalization(self.mean, self.std).limits


#: Data set → its scaling, known without a file of it: those who synthesise have none.
PIXELS = {
    "cifar10": _Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "fashion-mnist": _Pixels((0.2860,), (0.3530,)),
    "mnist": _Pixels((0.1307,), (0.3081,)),
    "digits": _Pixels(),
}


def synthetic_split(
    model: LoadedModel,
    samples: int,
    seed: int,
    shape: tuple[int, ...] | None = None,
    output: Output | None = None,
) -> Split:
    """Return ``samples`` unlabelled samples that move ``model`` as its training data did.

    They stay within the limits of the data that a zoo model is for; those of another model have
    none.

    Args:
        model: with batch norms.
        samples: how many.
        seed: of everything drawn.
        shape: of one sample, where the model does not say.
        output: is told how they came out.

    Raises:
        InputError: no batch norms, no known shape, or another than the model's.
        WeightsError: its statistics are not finite.
    """
    import torch

    from bitsmith.data.split import Split
    from bitsmith.model.zero_shot import synthesize
    from bitsmith.model.zero_shot.batch_norms import trained_batch_norms

    trained_batch_norms(model.module)  # without any, no shape helps
    if shape is not None and model.input_shape not in (None, shape):
        raise InputError(
            f"--input-shape {'x'.join(map(str, shape))}: model {model.name!r} takes "
            f"{list(model.input_shape or ())}; leave it out"
        )
    sample = model.input_shape or shape
    if sample is None and model.dataset is None:
        raise InputError(
            f"--data {SYNTHETIC}: which shape has a sample of {model.name!r}? Pass --input-shape, "
            "as in --input-shape 3x32x32"
        )
    known = PIXELS.get(model.dataset or "")
    made = synthesize(
        model.module,
        sample,
        samples=samples,
        seed=seed,
        limits=None if known is None else known.limits,
        input_weight=0.0 if known is not None and known.mean is None else 0.05,
    )
    if output is not None:
        output.line(_said(made))
    x = torch.cat([x for x, _ in made]).numpy()
    return Split(SYNTHETIC, "train", x, None, provenance=f"synthesised from {model.name}")


def parsed_shape(text: str | None) -> tuple[int, ...] | None:
    """Return the shape that ``--input-shape`` writes.

    Raises:
        InputError: it is no shape.

    >>> parsed_shape("3x32x32")
    (3, 32, 32)
    """
    if text is None:
        return None
    sides = text.lower().replace(",", "x").split("x")
    if not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise InputError(
            f"--input-shape {text!r}: the shape of one sample, without the batch, as in 3x32x32"
        )
    return tuple(int(side) for side in sides)


def refuse_synthetic(data: str, purpose: str) -> None:
    """Refuse samples that were made up where a model is judged.

    Raises:
        InputError: ``data`` is synthetic.
    """
    if data == SYNTHETIC:
        raise InputError(
            f"{purpose} needs samples that the model did not make up itself; pass --data with a "
            f"data set (see: bitsmith list datasets), not {SYNTHETIC}"
        )


def _said(made: SyntheticBatches) -> str:
    first = sum(run.start_distance for run in made.runs) / len(made.runs)
    last = sum(run.distance for run in made.runs) / len(made.runs)
    shares = [run.agreement for run in made.runs if run.agreement is not None]
    told = f"; {100 * sum(shares) / len(shares):.1f} % taken for their class" if shares else ""
    return (
        f"synthesised {made.samples} samples: distance from the batch norms' statistics "
        f"{last:.3g}, of noise {first:.3g}{told}"
    )
