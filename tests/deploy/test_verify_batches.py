"""What verification takes for data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bitsmith
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify.outputs import compare_outputs
from bitsmith.errors import DataError


def test_a_tensor_is_one_batch_and_other_shapes_are_refused(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(32, 6)
    model = bitsmith.ptq(net, "W8A8", [x])
    assert isinstance(model, bitsmith.QuantizedModel)
    file = bitsmith.export(model, tmp_path / "net.onnx")
    assert bitsmith.verify(model, file, x) == bitsmith.verify(model, file, [x])
    assert bitsmith.verify(model, file, x).samples == 32
    for wrong in (x[0], x[:, :5], x.reshape(4, 8, 6), [(x, x)]):
        with pytest.raises(DataError, match=r"takes: \w+ \[batch, 6\]; data is a list of batches"):
            bitsmith.verify(model, file, wrong)
    session = open_session(file.read_bytes(), "onnxruntime")
    assert [d.n for d in compare_outputs(model, session, x)] == [96]
