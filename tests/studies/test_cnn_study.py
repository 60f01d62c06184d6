"""The convolutional network: rounding by hand, the file in integers, and what observers leave."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitsmith.data import load_dataset
from bitsmith.errors import InputError
from bitsmith.insight.evaluation import Evaluation
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import uint8
from bitsmith.studies import Options, studies
from bitsmith.studies.cnn.findings import findings
from bitsmith.studies.cnn.networks import Judged, Subject, trained_subject
from bitsmith.studies.cnn.observers import Range, carried
from bitsmith.studies.cnn.static import static
from bitsmith.studies.cnn.weights import BITS, FORMS, simulations


@pytest.fixture(scope="module")
def subject():
    return trained_subject(load_dataset("digits"), Options(quick=True))


@pytest.fixture(scope="module")
def plain(subject):
    return subject.judge("float32", subject.module)


@pytest.fixture(scope="module")
def weights(subject, plain):
    return list(simulations(subject, plain))


@pytest.fixture(scope="module")
def integers(subject):
    return static(subject)


@pytest.fixture(scope="module")
def own(subject, integers):
    return carried(subject, integers)


def by_hand(w, bits, form):
    """Symmetric: narrow at 8 bits, full range below; asymmetric: the range holds 0. In NumPy."""
    top = 2 ** (bits - 1)
    if form == "symmetric":
        scale = np.float32(np.abs(w).max() / (127 if bits == 8 else top - 0.5))
        return np.clip(np.round(w / scale), -127 if bits == 8 else -top, top - 1) * scale
    low, high = min(w.min(), 0.0), max(w.max(), 0.0)
    scale = np.float32((high - low) / (2 * top - 1))
    zero = np.clip(np.round(-top - low / scale), -top, top - 1)
    return (np.clip(np.round(w / scale) + zero, -top, top - 1) - zero) * scale


def test_errors_of_weights_by_hand(subject, weights):
    assert [(s.bits, s.form) for s in weights] == [(b, f) for b in BITS for f in FORMS]
    for s in weights:
        for error, (name, layer) in zip(s.errors, subject.layers.items(), strict=True):
            w = layer.weight.detach().numpy()
            expected = np.abs(by_hand(w, s.bits, s.form) - w).mean()
            assert error.layer == name
            assert error.n == w.size
            assert error.mae == pytest.approx(expected, rel=1e-3)
            assert error.relative == pytest.approx(expected / np.abs(w).mean(), rel=1e-3)


def test_rounded_weights_are_what_is_judged_and_the_float_network_stays(subject, plain, weights):
    module = copy.deepcopy(subject.module)
    with torch.no_grad():
        for name, layer in module.named_modules():
            if name in subject.layers:
                layer.weight.copy_(torch.tensor(by_hand(layer.weight.numpy(), 4, "asymmetric")))
    found = next(s for s in weights if (s.bits, s.form) == (4, "asymmetric"))
    again = subject.judge("by hand", module)
    assert torch.allclose(found.judged.logits, again.logits, atol=1e-4)
    assert torch.equal(subject.judge("float32", subject.module).logits, plain.logits)


def test_the_file_is_the_simulation_bit_for_bit_and_runs_in_integers(integers):
    assert torch.equal(integers.runtime.logits, integers.simulated.logits)
    v = integers.verification
    assert v.passed
    assert v.executed_integer == v.planned_integer == 4
    assert integers.bytes < integers.float_bytes / 2


def test_layers_say_what_the_file_computes_with(subject, integers):
    program = integers.quantized.program
    assert [layer.name for layer in integers.layers] == ["conv1", "conv2", "fc1", "fc2"]
    assert [layer.op for layer in integers.layers] == [
        "conv + relu", "conv + relu", "linear + relu", "linear"
    ]  # fmt: skip
    assert integers.layers[-1].output is None
    for one, other in zip(integers.layers, integers.layers[1:], strict=False):
        assert one.output == other.input, "the pool and flatten keep the scale"
    assert integers.layers[0].input in program.encodings.values()
    for layer in integers.layers[:-1]:
        assert layer.output.zero_point == 0, "what follows ReLU begins at 0"


def test_codes_are_counted_where_values_are_rounded(subject, integers):
    first, *rest = integers.codes
    assert [c.name for c in integers.codes] == ["input", "conv1", "conv2", "fc1"]
    x = torch.cat([x for x, _ in subject.test.batches(64, limit=subject.compared)])
    codes = torch.clamp(torch.round(x / first.encoding.scale) + first.encoding.zero_point, 0, 255)
    assert first.counts.tolist() == torch.bincount(codes.long().flatten(), minlength=256).tolist()
    for own in rest:
        assert own.counts.sum() % len(x) == 0
        assert own.counts[0] == own.counts.max(), "ReLU makes zeros"


def test_a_float_network_that_still_rounds_is_the_file(plain, integers, own):
    assert torch.equal(own.rounding.logits, integers.runtime.logits)
    assert not torch.equal(own.rounding.logits, plain.logits)


def test_observers_move_ranges_and_the_order_of_batches_decides(subject, integers, own):
    assert any(r.before != r.after for r in own.ranges)
    assert not torch.equal(own.observing.logits, own.rounding.logits)
    assert not torch.equal(own.file.logits, integers.runtime.logits)
    model = TrainableModel(integers.quantized, ranges="moving_average").train()
    images = [x for x, _ in subject.test.batches(50, limit=subject.judged)]
    for x in reversed(images):
        model(x)
    backwards = [r.encoding() for r in model.own_ranges().values()]
    model = TrainableModel(integers.quantized, ranges="moving_average").train()
    for x in images:
        model(x)
    assert backwards != [r.encoding() for r in model.own_ranges().values()]


def test_change_of_a_range():
    found = Range("x", Encoding(0.01, 0, uint8), Encoding(0.012, 3, uint8))
    assert found.change == pytest.approx(20, rel=1e-4)


@pytest.fixture(scope="module")
def result():
    return studies["cnn"]().run(Options(quick=True, dataset="digits"))


def test_records(result):
    accuracies = [r for r in result.records if r.metric == "accuracy"]
    assert [r.method for r in accuracies] == ["float"] + ["ptq"] * 8
    for r in accuracies[1:]:
        assert r.delta == pytest.approx(r.value - r.reference, abs=1e-9)
        assert r.delta_low <= r.delta <= r.delta_high
    losses = [r for r in result.records if r.metric == "loss"]
    assert all(r.delta == pytest.approx(r.value - r.reference, abs=1e-9) for r in losses[1:])
    maes = {(r.layer, r.recipe): r.value for r in result.records if r.metric == "mae"}
    assert len(maes) == 4 * len(BITS) * len(FORMS)
    assert maes["conv2", "int8 symmetric"] < maes["conv2", "int4 symmetric"]
    changed = {r.reason: r.value for r in result.records if r.metric == "changed_predictions"}
    assert changed["against the simulation"] == 0
    assert changed["against float, values still rounded"] == 0
    assert next(r.value for r in result.records if r.metric == "executed_integer") == 4


def test_what_is_no_labelled_square_image_is_refused(tmp_path):
    study = studies["cnn"]()
    with pytest.raises(InputError, match=r"of 'moons' a sample is \[2\]"):
        study.run(Options(quick=True, dataset="moons"))
    x = np.zeros((40, 1, 4, 8), np.float32)
    np.savez(tmp_path / "bare.npz", x_train=x, x_test=x)
    with pytest.raises(InputError, match=r"it has no labels and a sample is \[1, 4, 8\]"):
        study.run(Options(quick=True, dataset=str(tmp_path / "bare.npz")))


def judged(predictions, labels, logits):
    predictions, labels = torch.tensor(predictions), torch.tensor(labels)
    evaluation = Evaluation("x", "x", None, predictions, predictions == labels, None, {})
    losses = torch.linspace(0.1, 0.2, len(predictions), dtype=torch.float64)
    return Judged(logits, losses, evaluation)


def test_findings_say_what_was_counted(subject, plain, weights, integers, own):
    said = findings(subject, plain, weights, integers, own)
    n = plain.evaluation.n
    assert f"0 of {n} predictions differ" in said[5]
    assert "on 0 images" in said[6]
    assert "measures nothing" in said[6]
    assert all(re.search(r"\d.*\.$", sentence) for sentence in said)


def test_findings_do_not_hide_a_file_that_differs(subject, plain, weights, integers, own):
    wrong = integers.simulated.evaluation.predictions.clone()
    wrong[0] += 1
    other = replace(
        integers.simulated, evaluation=replace(integers.simulated.evaluation, predictions=wrong)
    )
    said = findings(subject, plain, weights, replace(integers, simulated=other), own)
    assert said[5].startswith("The file is not what the simulation says: 1 of")
    moved = replace(own, rounding=replace(own.rounding, logits=own.rounding.logits + 0.5))
    said = findings(subject, plain, weights, integers, moved)
    assert "misses what both sides have in common" in said[6]
    assert "measures nothing" not in said[6]


def test_losses_are_compared_image_by_image():
    logits = torch.zeros(6, 3)
    one = judged([0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 1], logits)
    base = replace(one, losses=one.losses - 0.05, logits=logits + 1)
    split = load_dataset("digits").split("test")
    found = Subject(torch.nn.Identity(), split, split, 1, 6, 1, 0).against(one, base)
    assert found.loss == pytest.approx((0.05, 0.05, 0.05))
    assert found.logits == 1
    assert (found.accuracy.delta, found.accuracy.changed) == (0, 0)
