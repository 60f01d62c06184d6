"""What others make of the same float file, for comparison in the same run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
    def __init__(self, batches: Iterable[Any], name: str) -> None:
        self._batches: Iterator[Any] = iter(batches)
        self._name = name

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch[0].numpy()}


def onnxruntime_quantizer(float_file: Path, batches: Iterable[Any], folder: str) -> Path:
    """ONNX Runtime's static quantizer with u8 activations and s8 weights per channel."""
    logging.disable(logging.WARNING)
    prepared, path = Path(folder) / "prepared.onnx", Path(folder) / "peer.onnx"
    quant_pre_process(str(float_file), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        _Reader(batches, "x"),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)
    return path
