"""Safetensors files are written in pieces, in any order, and always the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitsmith.errors import InputError
from bitsmith.model.store.safetensors_file import DTYPES, TensorFile, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    """Return tensors of every type, of no axes, no values, and of another order in memory."""
    found = {str(dtype): torch.ones(3, 5).to(dtype) for dtype in DTYPES}
    other = {"none": torch.empty(0, 4), "one": torch.tensor(2.5), "turned": torch.rand(4, 6).T}
    return found | other


def specs(given: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (t.dtype, tuple(t.shape)) for name, t in given.items()}


def test_any_order_gives_the_file_that_is_written_at_once(tmp_path: Path) -> None:
    given = tensors()
    digest = write_tensors(tmp_path / "whole", given, {"about": "x"})
    with TensorFile(tmp_path / "pieces", specs(given), {"about": "x"}) as file:
        for name in reversed(given):
            file.put(name, given[name])
    raw = (tmp_path / "pieces").read_bytes()
    assert raw == (tmp_path / "whole").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == digest
    read = load_file(tmp_path / "pieces")
    assert read.keys() == given.keys()
    for name, tensor in given.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].double(), tensor.double())


def test_what_was_not_announced_is_refused(tmp_path: Path) -> None:
    announced = {"a": (torch.float32, (2,)), "b": (torch.int8, (1,))}
    file = TensorFile(tmp_path / "f", announced)
    file.put("a", torch.zeros(2))
    for name, wrong in (("a", torch.zeros(2)), ("b", torch.zeros(1)), ("c", torch.zeros(1))):
        with pytest.raises(ValueError, match=f"{name} is .* or comes twice"):
            file.put(name, wrong)
    with pytest.raises(ValueError, match="not written: b"), file:
        pass


def test_an_error_while_writing_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TensorFile(tmp_path / "f", {"a": (torch.int8, (1,))}):
        raise KeyError


def test_tensors_that_cannot_be_written_are_all_listed(tmp_path: Path) -> None:
    given = {
        "pairs": torch.zeros(2, dtype=torch.complex64),
        "fine": torch.zeros(2),
        "meta": torch.zeros(2, device="meta"),
        "sparse": torch.zeros(2, 2).to_sparse(),
    }
    expected = r"pairs \(torch.complex64\), meta \(on the meta device.*, sparse \(torch.sparse_coo"
    with pytest.raises(InputError, match=expected):
        write_tensors(tmp_path / "f", given)
    assert not (tmp_path / "f").exists()
