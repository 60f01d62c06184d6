"""Run ONNX models in ONNX Runtime on this machine, natively or as an older one.

``python sessions.py CASES RESULTS`` is the child: it reads a pickled list of cases and writes
the pickled results, so that one process start serves many models.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


@dataclass(frozen=True)
class Case:
    """A serialized model and the value of each input."""

    model: bytes
    feeds: dict[str, np.ndarray]


@dataclass(frozen=True)
class Result:
    """The outputs in order, and the operators of the optimized graph in topological order."""

    outputs: list[np.ndarray]
    operators: list[str]


def run_here(case: Case) -> Result:
    """Run one case in this process with every optimization and one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(path)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
        operators = [node.op_type for node in onnx.load(str(path)).graph.node]
    return Result(session.run(None, case.feeds), operators)


def run_all(machine: str, cases: Sequence[Case]) -> list[Result]:
    """Run the cases on ``"native"`` or on a profile of :mod:`emulate.machine`."""
    if machine == "native":
        return [run_here(case) for case in cases]
    from emulate.machine import run_as

    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder) / "cases", Path(folder) / "results"
        questions.write_bytes(pickle.dumps([(c.model, c.feeds) for c in cases]))
        done = run_as(machine, [sys.executable, __file__, str(questions), str(answers)])
        if done.returncode:
            raise RuntimeError(f"child on {machine} ended with {done.returncode}: {done.stderr}")
        return [Result(*pair) for pair in pickle.loads(answers.read_bytes())]


if __name__ == "__main__":
    asked = pickle.loads(Path(sys.argv[1]).read_bytes())
    told = [run_here(Case(*pair)) for pair in asked]
    Path(sys.argv[2]).write_bytes(pickle.dumps([(r.outputs, r.operators) for r in told]))
