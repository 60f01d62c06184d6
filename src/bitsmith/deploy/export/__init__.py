"""How a quantized model leaves: one file per format.

An exporter's contract is ``check`` (everything it cannot represent, before a byte is written),
``write`` (to a temporary name, then renamed) and ``read`` (what was written, bit for bit).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from bitsmith.errors import ExportError
from bitsmith.model.quantized import QuantizedModel
from bitsmith.registry import Registry

__all__ = ["Exporter", "export", "exporters"]


class Exporter(ABC):
    """Writes one file format.

    Attributes:
        suffix: of the files, for example ``.onnx``.
    """

    registry: ClassVar[Registry[type[Exporter]]] = Registry("exporter", __name__)
    name: ClassVar[str]
    suffix: ClassVar[str]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Exporter.registry.add(name, cls)

    @abstractmethod
    def check(self, model: QuantizedModel) -> list[str]:
        """Return everything of ``model`` that the format cannot represent; empty: all of it can."""

    @abstractmethod
    def write(self, model: QuantizedModel, path: Path, metadata: dict[str, str]) -> None:
        """Write ``model`` to ``path``, by a temporary name in the same folder."""

    @abstractmethod
    def read(self, path: Path) -> dict[str, Any]:
        """Return layer name → :class:`~bitsmith.numbers.qtensor.QTensor` of the file's weights."""


def export(model: QuantizedModel, path: str | Path, metadata: dict[str, str] | None = None) -> Path:
    """Write ``model`` to ``path``; the suffix names the format. Returns the path.

    Raises:
        ExportError: the format cannot represent something; all of it is listed.
    """
    path = Path(path)
    suffixes = {Exporter.registry[name].suffix: name for name in Exporter.registry}
    if path.suffix not in suffixes:
        raise ExportError(
            f"no exporter writes {path.suffix or 'a file without suffix'}: {path}; "
            f"known: {', '.join(sorted(suffixes))}"
        )
    exporter = Exporter.registry[suffixes[path.suffix]]()
    if problems := exporter.check(model):
        lines = "\n  ".join(problems)
        raise ExportError(f"{path.suffix} cannot represent:\n  {lines}")
    exporter.write(model, path, metadata or {})
    return path


exporters = Exporter.registry
