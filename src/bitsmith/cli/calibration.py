"""From ``--data`` to the batches that ranges are found on: samples, texts, or made-up samples."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from bitsmith.cli.samples import (
    calibration_batches,
    calibration_split,
    check_shape,
    enough_samples,
)
from bitsmith.cli.synthetic import SYNTHETIC, synthetic_split
from bitsmith.cli.texts import check_tokens, is_text, token_batches
from bitsmith.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitsmith.cli.output import Output
    from bitsmith.data import Batches, Split
    from bitsmith.data.token_rows import TokenRows
    from bitsmith.zoo import LoadedModel

__all__ = ["Draw", "TextBatches", "calibration", "training_split"]


@final
@dataclass(frozen=True)
class Draw:
    """Which samples the command line asked for.

    Attributes:
        data: a data set's name, or ``synthetic``.
        split: what an ``.npz`` with one pair ``x``, ``y`` is.
        samples: how many.
        batch_size: samples in a batch, at most.
        seed: of what is drawn, or made up.
        or_all: of fewer samples than that, all are taken; otherwise too few are an error.
        shape: of one synthetic sample, where the model does not say.
    """

    data: str
    split: str | None
    samples: int
    batch_size: int
    seed: int
    or_all: bool = False
    shape: tuple[int, ...] | None = None


@final
@dataclass(frozen=True, eq=False)
class TextBatches:
    """Texts to calibrate on, as :class:`bitsmith.data.Batches` is of samples.

    Attributes:
        split: the rows that the texts were drawn from.
        batch_size: texts in a batch, at most.
        samples: how many texts there are in all.
        inputs: of each batch: ids int64 [B, T], and their mask if the model takes one.
    """

    split: TokenRows
    batch_size: int
    samples: int
    inputs: tuple[tuple[Tensor, ...], ...]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs of each batch; texts of like length are together."""
        return iter(self.inputs)


def calibration(
    model: LoadedModel, draw: Draw, output: Output | None = None
) -> Batches | TextBatches:
    """Return samples of the training split, texts of the split to calibrate on, or made-up ones.

    ``tinystories`` has none: there stories260k writes the texts itself.

    Args:
        model: that they are for.
        draw: what was asked for.
        output: is told how synthetic samples came out.

    Raises:
        InputError: ``split`` is not the one that calibration draws from; samples cannot be
            synthesised.
        DataError: too few samples, or samples that the model is not for.
        UnknownNameError: no such data set.
    """
    if not is_text(draw.data):
        train = training_split(model, draw, output)
        count = min(draw.samples, train.n) if draw.or_all else draw.samples
        return calibration_batches(train, count, draw.batch_size, draw.seed)
    if draw.split not in (None, "calibration"):
        raise InputError(
            f"--split {draw.split}: text data set {draw.data!r} is calibrated on texts of their "
            "own, never on those that judge; leave --split away"
        )
    enough_samples(draw.samples)
    check_tokens(model, draw.data)
    rows = _rows(model, draw.data, draw.samples, draw.seed)
    if rows.n < draw.samples:
        raise DataError(
            f"text data set {draw.data!r}, split {rows.name!r} has {rows.n} texts, and calibration "
            f"was to draw {draw.samples}; ask for fewer with --calibration-samples {rows.n}"
        )
    drawn = rows.sample(draw.samples, seed=draw.seed)
    inputs = token_batches(drawn, draw.batch_size, mask=_takes_mask(model.module))
    return TextBatches(rows, draw.batch_size, draw.samples, tuple(inputs))


def training_split(model: LoadedModel, draw: Draw, output: Output | None = None) -> Split:
    """Return the training split that ``draw`` names, or synthetic samples in its place.

    Raises:
        InputError, DataError, UnknownNameError: as :func:`calibration`.
    """
    if draw.data != SYNTHETIC:
        train = calibration_split(draw.data, draw.split)
        check_shape(model, train)
        return train
    if draw.split is not None:
        raise InputError(f"--split {draw.split}: synthetic samples have no splits; leave it away")
    enough_samples(draw.samples)
    return synthetic_split(model, draw.samples, draw.seed, draw.shape, output)


def _rows(model: LoadedModel, data: str, samples: int, seed: int) -> TokenRows:
    """Return the texts to draw from; where the data set has none, as many as are wanted."""
    from bitsmith.data.texts import load_text
    from bitsmith.data.token_rows import TokenRows

    dataset = load_text(data)
    if "calibration" in dataset.splits:
        found = dataset.split("calibration")
        assert isinstance(found, TokenRows)  # sentences, not the pairs that judge
        return found
    from bitsmith.zoo.models.stories260k import Llama, generate

    if not isinstance(model.module, Llama):
        raise DataError(
            f"text data set {data!r} has no split to calibrate on, and only stories260k writes "
            f"its own texts; {model.name!r} does not: calibrate in Python, on batches of its tokens"
        )
    written = generate(model.module, samples, seed=seed).numpy()
    return TokenRows.of(list(written), data, "generated")


def _takes_mask(module: nn.Module) -> bool:
    """Return whether a module of token ids takes their mask as its second positional input."""
    several = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.kind in several for p in parameters) >= 2
