"""The masked machine really is one: ONNX Runtime takes its saturating kernels there."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from emulate.machine import emulation_available, has_exact_products, run_as
from emulate.qdq import Graph
from emulate.sessions import Case, run_all


def worst_case(weight_type: type) -> Case:
    graph = Graph()
    a = graph.input((1, 256))
    b = graph.constant(np.full((256, 1), 127, weight_type))
    graph.output(graph.op("MatMulInteger", a, b), np.int32)
    return Case(graph.model(), {a: np.full((1, 256), 255, np.uint8)})


def test_u8_times_s8_saturates_without_vnni(machine):
    found = run_all(machine, [worst_case(np.int8)])[0].outputs[0].item()
    assert found == (8_290_560 if has_exact_products(machine) else 4_194_176)


def test_u8_times_u8_is_exact_everywhere(machine):
    assert run_all(machine, [worst_case(np.uint8)])[0].outputs[0].item() == 8_290_560


def test_child_environment_and_exit_code_are_passed_on():
    reason = emulation_available()
    if reason is not None:
        pytest.skip(reason)
    code = "import os, sys; print(os.environ['MARK'], os.environ['BITSMITH_CPUID']); sys.exit(3)"
    done = run_as("avx2", [sys.executable, "-c", code], {"MARK": "here"})
    assert (done.returncode, done.stdout.split()) == (3, ["here", "avx2"])


def test_torch_sees_no_avx512():
    reason = emulation_available()
    if reason is not None:
        pytest.skip(reason)
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = run_as("avx2", [sys.executable, "-c", code])
    assert done.stdout.strip() == "AVX2", done.stderr


def test_a_real_fault_still_kills():
    reason = emulation_available()
    if reason is not None:
        pytest.skip(reason)
    code = "import ctypes; ctypes.string_at(0)"
    done = run_as("avx2", [sys.executable, "-c", code])
    assert done.returncode == -11
