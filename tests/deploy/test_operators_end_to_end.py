"""Small model → quantized → ONNX → ONNX Runtime: every code tensor equals the simulation.

For each model of ``tests/networks``: the file runs with a batch of five and of one; the operators
of the optimized graph are those that the coverage table promises; operator by operator, on the
runtime's own input codes, no code differs; and without float islands nothing differs from the
input on. After a float island, whose float32 sums may be added in another order, a code may
differ by one.
"""

from __future__ import annotations

import pytest
import torch

from networks.convolutional import BETWEEN, CONVOLUTIONS
from networks.harness import batches, compare, integer_operators, islands, planned, quantized
from networks.structured import STRUCTURED

ALL = {**CONVOLUTIONS, **BETWEEN, **STRUCTURED}


@pytest.mark.parametrize("name", ALL)
def test_runtime_computes_what_the_simulation_computes(name):
    specimen = ALL[name]
    if "aten" in specimen.floats:
        pytest.importorskip("onnxscript")
    model = quantized(specimen)
    graph, floats = model.program.graph, islands(model)
    assert {graph.node(n).op for n in floats} == specimen.floats
    assert all(row.reason for row in model.coverage)
    for found in compare(model, batches(specimen.shapes, (5, 1), seed=7)):
        assert integer_operators(found) == planned(model)
        differing = {t: lsb for t, lsb in found.isolated.items() if lsb}
        assert set(differing) <= floats
        assert all(lsb == 1 for lsb in differing.values())
        if not floats:
            assert not any(found.cumulative.values())
        if not any(found.cumulative.values()):
            for output, (ours, theirs) in zip(graph.outputs, found.outputs, strict=True):
                exact = output not in floats
                torch.testing.assert_close(
                    ours, theirs, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6
                )


def test_differences_are_seen():
    """The harness itself: a weight that is changed after the file was written shows up."""
    model = quantized(ALL["segmentation"])
    before = compare(model, batches(ALL["segmentation"].shapes, (2,)))[0]
    original = model.program.layers["0"].weight.codes.clone()
    try:
        found = _with_other_simulation(model)
    finally:
        model.program.layers["0"].weight.codes.copy_(original)
    assert not any(before.cumulative.values())
    assert found.cumulative["0"] > 0
    assert found.isolated["0"] > 0
    assert found.isolated["2"] == 0


def _with_other_simulation(model):
    from networks import harness

    content, names = harness.exposed(model)
    (batch,) = batches(ALL["segmentation"].shapes, (2,))
    model.program.layers["0"].weight.codes[0].neg_()
    (declared,) = (i.name for i in model.program.graph.inputs)
    case = harness.Case(content, {declared: batch[0].numpy()})
    return harness.compared(model, batch, names, harness.run_all("native", [case])[0])
