"""Networks that are trained once: what comes of it is kept in the user's cache.

What decides the weights (the network as it starts, the samples, every setting) is their
fingerprint. Other fingerprints are other files; a file that is damaged, or written by another
version, is made anew, and the log says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bitsmith.data import Split
from bitsmith.data.augment import Augmentation
from bitsmith.data.fetch import cache_folder
from bitsmith.data.training import TrainingBatches, check_training_data
from bitsmith.errors import DataError, WeightsError
from bitsmith.model.evaluate import accuracy
from bitsmith.model.train import fit
from bitsmith.version import __version__
from bitsmith.zoo.weights import load_weights

__all__ = ["Training", "trained_network", "trained_once"]

#: Shows how far a stage is: ``with stage("training", 100) as advance: … advance(1)``.
Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]

_FORMAT = 1
_LEAST_HELD_OUT = 10

logger = logging.getLogger(__name__)


@contextmanager
def _silent(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


@final
@dataclass(frozen=True)
class Training:
    """How a network is trained; all of it decides the weights.

    Attributes:
        epochs: at most; the learning rate falls along a cosine over all of them.
        patience: epochs without a better held-out accuracy after which training stops.
        held_out: share of the training samples that is not learned from and chooses the epoch
            whose weights are kept; 0 keeps the last.
        batch_size, lr, optimizer, weight_decay: as of :func:`bitsmith.model.train.fit`.
        augment: samples are augmented as their data set allows.
        limit: how many of the training samples to use; None: all.
        seed: of the first weights and of everything random in training.
    """

    epochs: int
    patience: int = 5
    held_out: float = 0.1
    batch_size: int = 128
    lr: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    augment: bool = False
    limit: int | None = None
    seed: int = 0


def trained_network(
    name: str,
    build: Callable[[], nn.Module],
    split: Split,
    training: Training,
    *,
    stage: Stage = _silent,
) -> nn.Module:
    """Return the network that ``build`` gives, trained, in evaluation mode.

    The first call trains and keeps the weights in the cache, later ones read them. Progress is
    shown while it trains. Interrupted, nothing is kept.

    Args:
        name: of the network; part of the file's name.
        build: makes the untrained network; called with PyTorch seeded by ``training.seed``.
        split: labelled training samples.
        training: how.
        stage: shows progress.

    Raises:
        DataError: samples of another split than train, without labels, or fewer than ``limit``.
        InputError: training diverged.
    """
    check_training_data(split)
    if split.y is None:
        raise DataError(f"data set {split.dataset!r}: training needs labels, and there are none")
    with torch.random.fork_rng([]):
        torch.manual_seed(training.seed)
        module = build()
    decides = {"data": split.sha256, **asdict(training)}
    return trained_once(
        name, module, decides, lambda: _train(name, module, split, training, stage)
    ).eval()


def trained_once(
    name: str, module: nn.Module, decides: Mapping[str, Any], train: Callable[[], object]
) -> nn.Module:
    """Return ``module`` as ``train`` leaves it; what a run before has left is read instead.

    Args:
        name: part of the file's name: letters, digits and dashes.
        module: as it is before training; its structure and state are part of the fingerprint.
        decides: plain data on everything else that decides what training gives: the hash of the
            samples, epochs, rates, seed.
        train: trains ``module`` in place.
    """
    path = _file(name, module, decides)
    if not _read(path, module):
        train()
        _write(path, module)
    return module


def _file(name: str, module: nn.Module, decides: Mapping[str, Any]) -> Path:
    """Return where the weights are kept: of each fingerprint another file, of every version one."""
    digest = hashlib.sha256(f"{_FORMAT} {type(module).__qualname__} {module}\n".encode())
    digest.update(json.dumps(dict(decides), sort_keys=True).encode())
    for key, value in sorted(_tensors(module).items()):
        digest.update(f"\n{key} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return cache_folder() / "trained" / f"{name}-{digest.hexdigest()[:16]}.safetensors"


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {
        n: t.detach().cpu().contiguous().clone() for n, t in state.items() if isinstance(t, Tensor)
    }


def _read(path: Path, module: nn.Module) -> bool:
    """Load the cached weights; False, and a line in the log, where they are of no use."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("bitsmith", "an unknown version")
        if written != __version__:
            logger.warning(
                "%s was written by bitsmith %s, this is %s; training anew",
                path, written, __version__,
            )  # fmt: skip
            return False
        load_weights(module, path)
    except (SafetensorError, WeightsError, OSError) as error:
        logger.warning("%s cannot be used and is made anew: %s", path, error)
        return False
    return True


def _write(path: Path, module: nn.Module) -> None:
    """Keep the weights, whole or not at all; a cache that cannot be written costs time only."""
    data = save(_tensors(module), {"bitsmith": __version__})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        logger.warning("trained weights are not kept: %s", error)
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError as error:
        logger.warning("trained weights are not kept: %s", error)
    finally:
        Path(name).unlink(missing_ok=True)


def _train(name: str, module: nn.Module, split: Split, training: Training, stage: Stage) -> None:
    learned, held = _parts(split, training)
    batches = TrainingBatches(
        learned,
        training.batch_size,
        seed=training.seed,
        augmentation=None if training.augment else Augmentation(),
    )
    best = _Best(held, training.patience)
    steps = training.epochs * len(batches)
    with stage(f"training {name}", steps) as advance, contextlib.suppress(_NoBetter):
        fit(
            module,
            batches,
            epochs=training.epochs,
            lr=training.lr,
            optimizer=training.optimizer,
            weight_decay=training.weight_decay,
            seed=training.seed,
            on_epoch=best.before,
            on_step=lambda _: advance(1),
            progress=False,
        )
        best.before(training.epochs, module)
    best.restore(module)


def _parts(split: Split, training: Training) -> tuple[Split, Split | None]:
    """Return the samples to learn from, and those that choose the epoch."""
    count = split.n if training.limit is None else training.limit
    if not 1 <= count <= split.n:
        raise DataError(
            f"data set {split.dataset!r} has {split.n} training samples; {count} were asked for"
        )
    order = np.random.default_rng([training.seed, 7]).permutation(split.n)[:count]
    held = round(count * training.held_out)
    if held < _LEAST_HELD_OUT:
        return _taken(split, order), None
    return _taken(split, order[held:]), _taken(split, order[:held])


def _taken(split: Split, index: Any) -> Split:
    index = np.sort(index)
    assert split.y is not None
    return replace(split, x=split.x[index], y=split.y[index])


@final
class _NoBetter(Exception):
    """Ends training: no epoch of late was better."""


@final
class _Best:
    """The weights of the epoch that does best on samples that are not learned from."""

    def __init__(self, held: Split | None, patience: int) -> None:
        self._held, self._patience = held, patience
        self._accuracy, self._since = -1.0, 0
        self._state: dict[str, Any] | None = None

    def before(self, epoch: int, module: nn.Module) -> None:
        """Judge what the epochs before this one have made."""
        if self._held is None or epoch == 0:
            return
        found = accuracy(module, self._held.batches(1024))
        if found > self._accuracy:
            self._accuracy, self._since = found, 0
            self._state = {n: t.clone() for n, t in module.state_dict().items()}
            return
        self._since += 1
        if self._since >= self._patience:
            raise _NoBetter

    def restore(self, module: nn.Module) -> None:
        """Give the module the best weights."""
        if self._state is not None:
            module.load_state_dict(self._state)
