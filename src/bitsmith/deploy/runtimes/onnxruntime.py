"""ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import final

import onnx
import onnxruntime
from torch import Tensor

from bitsmith.deploy.runtimes import ExecutedNode, Session, as_tensors
from bitsmith.errors import InputError

__all__ = ["OnnxRuntimeSession"]

_ERRORS_ONLY = 3


@final
class OnnxRuntimeSession(Session, name="onnxruntime"):
    """CPU provider, all optimizations."""

    def __init__(self, model: bytes, threads: int | None = None) -> None:
        self._model = model
        self._session = self._open(_options(threads))
        self.input_names = [i.name for i in self._session.get_inputs()]
        self.output_names = [o.name for o in self._session.get_outputs()]

    @property
    def version(self) -> str:
        return str(onnxruntime.__version__)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        if len(inputs) != len(self.input_names):
            raise InputError(
                f"the file takes {len(self.input_names)} inputs ({', '.join(self.input_names)}), "
                f"not {len(inputs)}"
            )
        feeds = {n: x.contiguous().numpy() for n, x in zip(self.input_names, inputs, strict=True)}
        try:
            return as_tensors(self._session.run(None, feeds))
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run the file on this input: {error}") from error

    def executed(self) -> list[ExecutedNode]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = _options(1)
            options.optimized_model_filepath = str(path)
            self._open(options)
            nodes = onnx.load(str(path)).graph.node
        return [ExecutedNode(n.op_type, tuple(n.input), tuple(n.output)) for n in nodes]

    def _open(self, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        try:
            return onnxruntime.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InputError(f"ONNX Runtime refuses the file: {error}") from error


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    return options
