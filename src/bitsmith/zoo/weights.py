"""Read a weights file into a module, or say everything that is wrong with it.

safetensors is the format. Pickles can run code while they are read; they are refused unless the
caller allows them, and even then only tensors and containers are accepted.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from bitsmith.errors import WeightsError

__all__ = ["load_weights", "read_pickle", "read_weights", "strip_data_parallel"]

PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl", ".pickle"})

logger = logging.getLogger(__name__)


def load_weights(
    module: nn.Module,
    path: Path | str,
    *,
    allow_pickle: bool = False,
    unused: Collection[str] = (),
) -> str:
    """Copy the weights in ``path`` into ``module`` and return the file's SHA-256, in hex.

    Names and shapes must be exactly the module's. Allowed to be absent: the counters
    ``num_batches_tracked``, and a second name of a tensor that is shared and present under
    another. The prefix ``module.`` that ``DataParallel`` leaves is removed, with a warning in
    the log. The module is unchanged if anything is wrong.

    Args:
        module: receives the weights, in its own dtypes and on its own device.
        path: a safetensors file, or a pickle of a state dict (also under ``"state_dict"``).
        allow_pickle: accept a pickle (see :func:`read_pickle`).
        unused: names that the file may hold and the module has no use for.

    Raises:
        WeightsError: unreadable, damaged or refused file; or one message that lists every
            missing and extra name, other shape, other kind of number, NaN and infinity.
    """
    path = Path(path)
    data, state = read_weights(path, allow_pickle=allow_pickle)
    own = _tensors(module)
    if not any(name.startswith("module.") for name in own):
        state, stripped = strip_data_parallel(state)
        if stripped:
            logger.warning("%s: removed the prefix 'module.' of DataParallel from all names", path)
    state = {n: value for n, value in state.items() if n in own or n not in unused}
    problems = _problems(own, state)
    if problems:
        lines = "\n  ".join(problems)
        raise WeightsError(f"{path} does not fit {type(module).__name__}:\n  {lines}")
    module.load_state_dict(state, strict=False)
    return hashlib.sha256(data).hexdigest()


def read_weights(path: Path, *, allow_pickle: bool = False) -> tuple[bytes, dict[str, Tensor]]:
    """Return the bytes of ``path`` and its tensors by name, on the CPU.

    What the file is, is decided by its content; its suffix decides only where the content does
    not tell.

    Raises:
        WeightsError: the file is missing, damaged, or a pickle that is not allowed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror or error}") from error
    if _is_pickle(data, path.suffix):
        if not allow_pickle:
            raise WeightsError(
                f"{path} is a pickle, which can run code when it is read; convert it to "
                "safetensors, or allow it (--allow-pickle) if you trust its source"
            )
        return data, read_pickle(data, path)
    try:
        return data, parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} ({len(data)} bytes) is not a safetensors file, or is truncated: {error}"
        ) from error


def read_pickle(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the bytes of a pickle, read with ``weights_only=True``.

    Raises:
        WeightsError: damaged, holds anything but tensors and containers, or no state dict.
    """
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch.load raise almost any type
        # Nothing is repeated of what PyTorch says: it advises to read the file with all its code.
        raise WeightsError(
            f"{path} ({len(data)} bytes) cannot be read as a pickle of plain tensors: it is "
            "damaged, or holds other objects, which can run code and are never read; load it where "
            "it was made and save its state_dict() as safetensors"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(
            f"{path} holds {_describe(loaded)}; a state dict (name → tensor) is needed"
        )
    others = [f"{k}: {type(v).__name__}" for k, v in loaded.items() if not isinstance(v, Tensor)]
    if others:
        raise WeightsError(f"{path} holds entries that are no tensors: {', '.join(others)}")
    return {str(name): tensor for name, tensor in loaded.items()}


def strip_data_parallel(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Return the state without the prefix ``module.`` if every name has it, and whether it had.

    >>> strip_data_parallel({"module.a": torch.zeros(1)})
    ({'a': tensor([0.])}, True)
    """
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}, True
    return dict(state), False


def _is_pickle(data: bytes, suffix: str) -> bool:
    if data[8:9] == b"{":  # the JSON header of safetensors, after its length
        return False
    if data.startswith(b"PK\x03\x04"):  # a zip: torch.save since 1.6 puts its pickle first
        return b"data.pkl" in data[:4096]
    if data[:1] == b"\x80" and data[1:2] in b"\x01\x02\x03\x04\x05" and data.endswith(b"."):
        return True
    # The legacy file of torch.save starts with a pickled magic number, storages follow.
    return data.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.") or (
        suffix.lower() in PICKLE_SUFFIXES
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _problems(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    present = {id(own[name]) for name in state if name in own}
    missing = [
        name
        for name, value in own.items()
        if name not in state
        and not name.endswith("num_batches_tracked")
        and id(value) not in present
    ]
    extra = [name for name in state if name not in own]
    both = [name for name in own if name in state]
    shapes, kinds, values = [], [], []
    for name in both:
        have, want = state[name], own[name]
        if have.shape != want.shape:
            shapes.append(f"{name} {list(have.shape)} (the model has {list(want.shape)})")
        elif have.is_floating_point() != want.is_floating_point():
            kinds.append(f"{name} {have.dtype} (the model has {want.dtype})")
        elif wrong := _not_finite(have, want.dtype):
            values.append(f"{name} ({wrong})")
    return [
        *_listed("missing in the file", missing),
        *_listed("not in the model", extra),
        *_listed("of another shape", shapes),
        *_listed("of another kind of number", kinds),
        *_listed("not finite", values),
    ]


def _not_finite(value: Tensor, dtype: torch.dtype) -> str:
    if not value.is_floating_point():
        return ""
    value = value.to(dtype).float()
    nans, infinities = int(value.isnan().sum()), int(value.isinf().sum())
    found = [f"{n} {what}" for n, what in ((nans, "NaN"), (infinities, "infinite")) if n]
    return f"{' and '.join(found)} of {value.numel()}" if found else ""


def _listed(what: str, items: Iterable[str]) -> list[str]:
    items = list(items)
    return [f"{what} ({len(items)}): {', '.join(items)}"] if items else []


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return "an empty dictionary"
    return f"a {type(value).__name__}"
