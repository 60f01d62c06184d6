"""From ``--data`` and ``--split`` to the samples that a command may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.cli.synthetic import SYNTHETIC, refuse_synthetic
from bitsmith.cli.texts import is_text
from bitsmith.errors import DataError, InputError, UnknownNameError

if TYPE_CHECKING:
    from bitsmith.data import Batches, Split
    from bitsmith.model.quantized import QuantizedModel
    from bitsmith.zoo import LoadedModel

__all__ = [
    "calibration_batches",
    "calibration_split",
    "check_inputs",
    "check_shape",
    "data_name",
    "enough_samples",
    "report_split",
    "test_split",
]


def data_name(data: str | None, default: str | None) -> str:
    """Return the data set asked for, or else the one that the model is for.

    Raises:
        InputError: neither is known.
    """
    name = data or default
    if name is None:
        raise InputError(
            "which data? Only a zoo model brings its own; pass --data NAME, FILE.npz or "
            "package.module:callable"
        )
    return name


def calibration_split(data: str, split: str | None) -> Split:
    """Return the training split of ``data``.

    Args:
        split: what an ``.npz`` with one pair ``x``, ``y`` is; other data sets know theirs.

    Raises:
        InputError: ``split`` is not the training split.
        DataError, UnknownNameError: as :func:`~bitsmith.data.load_dataset`.
    """
    from bitsmith.data import datasets, load_dataset
    from bitsmith.data.texts import texts

    names = [*datasets, *texts, SYNTHETIC]
    if data not in names and ":" not in data and not data.endswith(".npz"):
        raise UnknownNameError("data set", data, names)
    if split not in (None, "train"):
        raise InputError(
            f"--split {split}: calibration draws from the train split only, because ranges chosen "
            "on the samples that later judge the model would flatter it; --split train is needed "
            "(and allowed) only for an .npz that holds one pair x, y"
        )
    return load_dataset(data, split=split).split("train")


def test_split(data: str, split: str | None) -> Split:
    """Return the split called ``split``, by default the test split, of ``data``.

    Raises:
        InputError: ``data`` is synthetic: it does not judge.
        DataError, UnknownNameError: as :func:`~bitsmith.data.load_dataset`.
    """
    from bitsmith.data import load_dataset

    refuse_synthetic(data, "verifying or evaluating")
    return load_dataset(data, split=split).split(split or "test")


def report_split(data: str, split: str | None) -> Split:
    """Return the test split for a report on what was calibrated on ``data``.

    Raises:
        InputError: there is none, or it is of texts.
    """
    from bitsmith.data import load_dataset

    refuse_synthetic(data, "--report")
    if is_text(data):
        raise InputError(
            f"--report measures accuracy on labelled samples, and {data!r} is a text data set; "
            f"leave --report away, and then: bitsmith evaluate FILE --data {data} --reference MODEL"
        )
    dataset = load_dataset(data, split=split)
    if "test" not in dataset.splits:
        raise InputError(
            f"--report measures on a test split, and {data!r} has only "
            f"{', '.join(dataset.splits)}; put x_test and y_test into it, or leave --report away"
        )
    return dataset.split("test")


def calibration_batches(split: Split, samples: int, batch_size: int, seed: int) -> Batches:
    """Return ``samples`` samples drawn at random, in batches that can be iterated again.

    Raises:
        DataError: fewer samples than calibration needs were asked for, or than there are.
    """
    from bitsmith.model.calibrate import MIN_SAMPLES

    enough_samples(samples)
    if split.n < samples:
        enough = split.n >= MIN_SAMPLES
        remedy = f", or ask for fewer with --calibration-samples {split.n}" if enough else ""
        raise DataError(
            f"data {split.dataset!r}, split {split.name!r} has {split.n} samples, and calibration "
            f"was to draw {samples} (at least {MIN_SAMPLES}); give more data{remedy}"
        )
    return split.batches(batch_size, limit=samples, seed=seed)


def enough_samples(samples: int) -> None:
    """Refuse to calibrate on so few samples that they do not show a range.

    Raises:
        DataError: fewer were asked for.
    """
    from bitsmith.model.calibrate import MIN_SAMPLES

    if samples < MIN_SAMPLES:
        raise DataError(
            f"--calibration-samples {samples}: calibration needs at least {MIN_SAMPLES} samples"
        )


def check_shape(model: LoadedModel, split: Split) -> None:
    """Refuse samples that a zoo model is not for, before anything is traced.

    Raises:
        DataError: the shapes differ.
    """
    if model.dataset is not None and model.input_shape is None:
        raise DataError(
            f"data {split.dataset!r} has samples of shape {list(split.input_shape)}, but model "
            f"{model.name!r} takes token ids; it is for the text data set {model.dataset!r}"
        )
    zoo = model.dataset is not None
    if zoo and model.input_shape != split.input_shape:
        raise DataError(
            f"data {split.dataset!r} has samples of shape {list(split.input_shape)}, but model "
            f"{model.name!r} takes {list(model.input_shape or ())}; it is for {model.dataset!r}"
        )


def check_inputs(model: QuantizedModel, split: Split) -> None:
    """Refuse samples that a quantized model was not captured for.

    Raises:
        DataError: the shapes differ.
    """
    first, *more = model.program.graph.inputs
    if more or first.dtype != "float32":
        takes = ", ".join(f"{i.name} ({i.dtype})" for i in model.program.graph.inputs)
        raise DataError(
            f"data {split.dataset!r} has one float sample per row; the model takes {takes}: pass "
            "the data set it was calibrated on"
        )
    expected = first.shape[1:]
    given = split.input_shape
    fits = len(expected) == len(given) and all(
        e in (-1, g) for e, g in zip(expected, given, strict=True)
    )
    if not fits:
        raise DataError(
            f"data {split.dataset!r} has samples of shape {list(given)}; the model was captured "
            f"for {list(expected)}"
        )
