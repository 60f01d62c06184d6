"""llama.cpp's products, where its libraries are: ``BITSMITH_GGML`` or ``llama-cpp-python``."""

import ctypes
import os
from pathlib import Path

import pytest
import torch

from bitsmith.errors import InputError
from bitsmith.insight.bench import ggml
from bitsmith.insight.bench.contender import Job, random_weight
from bitsmith.insight.bench.ggml import ggml_contenders, ggml_folder

JOB = Job(128, 512, 2, lambda size: 3)
FOLDER = Path(given) if (given := os.environ.get("BITSMITH_GGML")) else ggml_folder()
there = pytest.mark.skipif(FOLDER is None, reason="llama-cpp-python is not installed")


@there
@pytest.mark.parametrize("name", [n for types in ggml._TYPES.values() for n in types])
def test_products(name):
    kind = next(types[name] for types in ggml._TYPES.values() if name in types)
    x = torch.randn(3, JOB.k, generator=torch.Generator().manual_seed(1))
    library = ggml._Library(FOLDER, JOB.threads)
    weight = random_weight(JOB)
    tensor = library.weight(kind, JOB, library.quantized(kind, weight))
    product = ggml._Products(library, JOB, x).call(tensor)()
    found = torch.empty(3, JOB.n)
    library.pointer(
        "ggml_backend_tensor_get", product, found.data_ptr(), ctypes.c_size_t(0),
        ctypes.c_size_t(found.nbytes),
    )  # fmt: skip
    exact = x @ weight[:64].T.repeat(1, JOB.n // 64)
    assert (found - exact).norm() < 0.35 * exact.norm()


@there
def test_contenders_go_round_their_copies():
    for contender in ggml_contenders(8, None, FOLDER):
        prepared = contender.prepare(JOB)
        assert prepared.bytes == JOB.n * JOB.k * 34 // 32
        calls = prepared.bind(torch.randn(1, JOB.k))
        assert len({call() for call in calls}) == 3


@there
def test_rows_that_are_no_blocks():
    with pytest.raises(InputError, match="no blocks of 32"):
        ggml_contenders(4, 32, FOLDER)[0].prepare(Job(64, 100, 1, lambda size: 1))


def test_without_the_libraries(tmp_path):
    with pytest.raises(InputError, match="not installed"):
        ggml_contenders(8, None, None)[0].prepare(JOB)
    with pytest.raises(InputError, match="cannot be loaded"):
        ggml_contenders(8, None, tmp_path)[0].prepare(JOB)
    assert ggml_contenders(5, 64, None) == []
