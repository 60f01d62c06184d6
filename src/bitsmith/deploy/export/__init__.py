"""How a quantized model leaves: one file per format.

An :class:`Exporter` writes a graph in integers, a :class:`ModuleExporter` a module with packed
weights.

An exporter's contract is ``check`` (everything it cannot represent, before a byte is written),
``write`` (to a temporary name, then renamed) and ``read`` (what was written, bit for bit).
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor, nn

from bitsmith.errors import ExportError
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.stream import WeightStream, weight_stream
from bitsmith.registry import Registry

__all__ = [
    "Exporter",
    "ModuleExport",
    "ModuleExporter",
    "export",
    "export_module",
    "exporters",
    "first_cause",
    "module_exporters",
    "quiet_translation",
    "replace_atomically",
]


class Exporter(ABC):
    """Writes one file format.

    Attributes:
        suffix: of the files, for example ``.onnx``.
        takes: options it knows.
    """

    registry: ClassVar[Registry[type[Exporter]]] = Registry("exporter", __name__)
    name: ClassVar[str]
    suffix: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Exporter.registry.add(name, cls)

    @abstractmethod
    def check(self, model: QuantizedModel, **options: Any) -> list[str]:
        """Return everything of ``model`` that the format cannot represent; empty: all of it can."""

    @abstractmethod
    def write(
        self, model: QuantizedModel, path: Path, metadata: dict[str, str], **options: Any
    ) -> None:
        """Write ``model`` to ``path``, by a temporary name in the same folder."""

    @abstractmethod
    def read(self, path: Path) -> dict[str, Any]:
        """Return layer name → :class:`~bitsmith.numbers.qtensor.QTensor` of the file's weights."""


@final
@dataclass(frozen=True)
class ModuleExport:
    """What an exporter of the module lane is given.

    Attributes:
        model: with packed weights.
        example: positional inputs, where the format holds the computation too.
        config: what the format wants to know of the architecture: a Hugging Face ``config.json``,
            or GGUF keys.
        metadata: more to write into the file.
        options: of the format, by name.
    """

    model: nn.Module
    example: Sequence[Tensor] | None = None
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stream(self) -> WeightStream:
        """The model's tensors by name."""
        return weight_stream(self.model)

    def padded_rows(self) -> list[str]:
        """Return what is wrong where a weight must have the shape of its layer."""
        return [
            f"{name}: its rows were padded (ragged='pad'), and readers expect the layer's own "
            "shape; leave it float (ragged='float') or give it a group size that divides"
            for name in self.stream.padded
        ]

    def scaled_inputs(self) -> list[str]:
        """Return what is wrong where only weights can be written: inputs that are divided first."""
        return [
            f"{name}: its input is divided by scales of its own (transform=…), which the format "
            "does not hold; quantize without a transform, or keep it with bs.save"
            for name in self.stream.scaled
        ]


class ModuleExporter(ABC):
    """Writes one file format from a module with packed weights.

    Attributes:
        suffix: of the files; empty for a folder.
        takes: options it knows.
    """

    registry: ClassVar[Registry[type[ModuleExporter]]] = Registry(
        "exporter", "bitsmith.deploy.export"
    )
    name: ClassVar[str]
    suffix: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        ModuleExporter.registry.add(name, cls)

    @abstractmethod
    def check(self, job: ModuleExport) -> list[str]:
        """Return everything that the format cannot represent; empty: all of it can."""

    @abstractmethod
    def write(self, job: ModuleExport, path: Path) -> None:
        """Write to ``path``, by a temporary name in the same folder."""

    @abstractmethod
    def read(self, path: Path) -> Mapping[str, Any]:
        """Return name → quantized or float tensor of what was written, bit for bit."""


def export_module(
    model: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    example: Sequence[Tensor] | Tensor | None = None,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write ``model`` to ``path`` in a format that others read. Returns the path.

    Args:
        model: with packed weights.
        path: its suffix names the format, unless ``format`` does.
        format: ``onnx-weights``, ``gguf`` or ``compressed-tensors``.
        example, config, metadata: see :class:`ModuleExport`.
        options: of the format, for example ``form="dequantize"`` for ONNX.

    Raises:
        ExportError: no such format, an option it does not know, or something it cannot
            represent; all of it is listed.
    """
    path = Path(path)
    exporter = _exporter(path, format)
    _check_options(exporter, options)
    inputs = (example,) if isinstance(example, Tensor) else example
    job = ModuleExport(model, inputs, config, metadata or {}, options)
    if problems := exporter.check(job):
        lines = "\n  ".join(problems)
        raise ExportError(f"{exporter.name} cannot represent:\n  {lines}")
    exporter.write(job, path)
    return path


def _check_options(exporter: Exporter | ModuleExporter, options: Mapping[str, Any]) -> None:
    if unknown := sorted(set(options) - set(exporter.takes)):
        raise ExportError(
            f"{exporter.name} takes no {', '.join(unknown)}; it takes "
            f"{', '.join(exporter.takes) or 'no options'}"
        )


def _exporter(path: Path, format: str | None) -> ModuleExporter:
    kinds = ModuleExporter.registry
    if format is not None:
        return kinds[format]()
    for name in kinds:
        if kinds[name].suffix and kinds[name].suffix == path.suffix:
            return kinds[name]()
    known = ", ".join(f"{n} ({kinds[n].suffix or 'a folder'})" for n in kinds)
    raise ExportError(f"{path}: which format? known: {known}; a folder needs format=…")


def export(
    model: nn.Module,
    path: str | Path,
    metadata: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write ``model`` to ``path``; the suffix names the format. Returns the path.

    Args:
        model: a quantized model of either lane.
        path: of the file.
        metadata: more to write into the file.
        options: of the format. A graph in integers: ``weights="packed"`` for ONNX, which holds
            weights of 4 bits and fewer in so many bits; ``"int8"``, the default, in a byte. A
            module with packed weights: the arguments of :func:`export_module`.

    Raises:
        ExportError: an option that the format does not know, or something it cannot represent;
            all of it is listed.
    """
    path = Path(path)
    if not isinstance(model, QuantizedModel):
        return export_module(model, path, metadata=metadata, **options)
    suffixes = {Exporter.registry[name].suffix: name for name in Exporter.registry}
    if path.suffix not in suffixes:
        raise ExportError(
            f"no exporter writes {path.suffix or 'a file without suffix'}: {path}; "
            f"known: {', '.join(sorted(suffixes))}"
        )
    exporter = Exporter.registry[suffixes[path.suffix]]()
    _check_options(exporter, options)
    if problems := exporter.check(model, **options):
        lines = "\n  ".join(problems)
        raise ExportError(f"{path.suffix} cannot represent:\n  {lines}")
    exporter.write(model, path, metadata or {}, **options)
    return path


def replace_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` under a temporary name beside ``path`` and rename it.

    Raises:
        ExportError: the place cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def quiet_translation() -> Iterator[None]:
    """Keep the notes of PyTorch's ONNX exporter about other libraries off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def first_cause(error: BaseException) -> str:
    """Return the first line of the error that began a chain of them, or that error's type."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((t.strip() for t in str(error).splitlines() if t.strip()), type(error).__name__)


exporters = Exporter.registry
module_exporters = ModuleExporter.registry
