"""One self-contained HTML page about a quantized file: tables and figures, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitsmith.insight.assessment import Assessment
from bitsmith.insight.report.page import render
from bitsmith.model.quantized import QuantizedModel

__all__ = ["render", "write_report"]


def write_report(
    path: Path, model: QuantizedModel, found: Assessment, data: dict[str, Any]
) -> None:
    """Write the page to ``path``, in UTF-8.

    Args:
        path: of the ``.html`` file.
        model: freshly quantized: coverage, encodings, provenance.
        found: what was measured of it.
        data: names the samples it was measured on: dataset, split, data_sha256.
    """
    path.write_text(render(model, found, data), encoding="utf-8")
