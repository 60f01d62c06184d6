"""OpenVINO on the CPU, reading the same ONNX file."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from bitsmith.deploy.runtimes import ExecutedNode, Session, as_tensors
from bitsmith.errors import InputError, RuntimeMissingError

__all__ = ["OpenVinoSession"]


@final
class OpenVinoSession(Session, name="openvino"):
    """CPU plugin, default (latency) settings, float32 where it is float."""

    def __init__(self, model: bytes, threads: int | None = None) -> None:
        ov = _import()
        # By default it rounds the inputs of products with packed weights to 8 bits.
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            core = ov.Core()
            self._compiled = core.compile_model(core.read_model(model), "CPU", config)
        except Exception as error:
            raise InputError(f"OpenVINO refuses the file: {error}") from error
        self.input_names = [i.any_name for i in self._compiled.inputs]
        self.output_names = [o.any_name for o in self._compiled.outputs]

    @property
    def version(self) -> str:
        return str(_import().__version__).split("-")[0]

    def run(self, *inputs: Tensor) -> list[Tensor]:
        try:
            results = self._compiled([x.contiguous().numpy() for x in inputs])
        except Exception as error:
            raise InputError(f"OpenVINO cannot run the file on this input: {error}") from error
        return as_tensors([results[i] for i in range(len(self.output_names))])

    def executed(self) -> list[ExecutedNode]:
        nodes = []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            kind = info["layerType"].astype(str)
            precision = info["runtimePrecision"].astype(str)
            name = f"{kind}[{precision}]"
            nodes.append(ExecutedNode(name, (), (op.get_friendly_name(),)))
        return nodes


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissingError(
            "OpenVINO is not installed; install the extra: pip install 'bitsmith[openvino]'"
        ) from error
    return openvino
