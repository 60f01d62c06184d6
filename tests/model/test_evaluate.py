"""Predictions over batches, of modules and of any other callable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitsmith.data import load_dataset
from bitsmith.errors import DataError
from bitsmith.model.evaluate import accuracy, correct, predict

X = torch.arange(12.0).reshape(6, 2)
Y = torch.tensor([0, 1, 0, 1, 0, 1])


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [(X[:4], Y[:4]), (X[4:], Y[4:])]


@pytest.mark.parametrize("progress", [False, True])
def test_outputs_and_labels_are_those_of_one_big_batch(progress: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    logits, labels = predict(model, pairs(), progress=progress)
    torch.testing.assert_close(logits, model(X).detach())
    assert labels is not None
    assert labels.tolist() == Y.tolist()
    assert not logits.requires_grad


@pytest.mark.parametrize("batches", [[X], [(X,)], [(X, None)], [[X, None]], iter([X]), [X.numpy()]])
def test_unlabelled_batches_in_every_form(batches: object) -> None:
    logits, labels = predict(lambda x: x * 2, batches)  # type: ignore[arg-type]  # a function
    assert torch.equal(logits, X * 2)
    assert labels is None


def test_inputs_by_name() -> None:
    def model(*, scale: Tensor, x: Tensor) -> Tensor:
        return x * scale

    logits, labels = predict(model, [({"x": X, "scale": X.numpy() + 1}, Y)])
    assert torch.equal(logits, X * (X + 1))
    assert labels is not None
    assert labels.tolist() == Y.tolist()


def test_any_callable_and_numpy_outputs() -> None:
    logits, _ = predict(lambda x: x.numpy() + np.float32(1), pairs())
    assert torch.equal(logits, X + 1)


def test_one_batch_is_taken_at_a_time() -> None:
    events: list[str] = []

    def stream() -> object:
        for i in range(3):
            events.append(f"take {i}")
            yield X

    def model(x: Tensor) -> Tensor:
        events.append("run")
        return x

    predict(model, stream())  # type: ignore[arg-type]  # a function, no module
    assert events == ["take 0", "run", "take 1", "run", "take 2", "run"]


def test_modes_come_back_one_by_one_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    model.train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, _ = predict(model, pairs())
    second, _ = predict(model, pairs())
    assert torch.equal(first, second)  # no dropout
    assert [m.training for m in model.modules()] == [True, True, True, False]
    with pytest.raises(RuntimeError, match="shapes"):
        predict(model, [torch.zeros(2, 5)])
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_correct_against_a_loop() -> None:
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(1))
    best = [max(range(7), key=row.__getitem__) for row in logits.tolist()]
    expected = [a == b for a, b in zip(best, labels.tolist(), strict=True)]
    assert correct(logits, labels).tolist() == expected
    assert 0 < sum(expected) < 200


def test_of_equal_logits_the_first_counts() -> None:
    ties = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    assert correct(ties, torch.tensor([0, 2])).tolist() == [True, False]


def test_accuracy_of_nearest_mean_on_digits_against_scikit_learn() -> None:
    from sklearn.neighbors import NearestCentroid

    digits = load_dataset("digits")
    train, test = digits.split("train"), digits.split("test")
    flat = train.x.reshape(train.n, -1)
    oracle = NearestCentroid().fit(flat, train.y)
    centres = torch.from_numpy(oracle.centroids_).float()

    def model(x: Tensor) -> Tensor:
        return -torch.cdist(x.flatten(1), centres)

    ours = accuracy(model, test.batches(100))
    theirs = 100 * oracle.score(test.x.reshape(test.n, -1), test.y)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert ours > 80


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        ([(X, Y), (X, None)], "1 of 2 batches have labels"),
        ([(X, Y[:3])], "6 samples and labels of shape"),
        ([(X, Y, Y)], "3 parts"),
        ([((X, X[:4]), Y)], r"shape \(6, 2\), \(4, 2\); each must have one row per sample"),
        ([{"a": X, "b": torch.tensor(1.0)}], r"\(6, 2\), \(\); each must have"),
        ([torch.tensor(1.0)], "one row per sample"),
        ([{}], "inputs of shape nothing"),
    ],
)
def test_bad_batches(batches: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        predict(nn.Identity(), batches)


@pytest.mark.parametrize("output", [torch.tensor(1.0), torch.zeros(5, 2)])
def test_outputs_that_are_not_one_per_sample(output: Tensor) -> None:
    with pytest.raises(DataError, match="first axis must be the samples"):
        predict(lambda _: output, pairs())


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(6, 2), torch.zeros(5, dtype=torch.int64), "samples, classes"),
        (torch.zeros(6), Y, "samples, classes"),
        (torch.zeros(6, 2), Y + 1, "there are 1 to 2"),
        (torch.zeros(6, 2), Y - 1, "there are -1 to 0"),
        (torch.zeros(0, 2), Y[:0], "no labels"),
        (torch.tensor([[0.0, torch.nan]] * 3 + [[0.0, 1.0]] * 3), Y, "3 of 6 samples are NaN"),
        (torch.tensor([[0.0, torch.inf]] * 6), Y, "6 of 6"),
    ],
)
def test_what_cannot_be_judged(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        correct(logits, labels)


def test_accuracy_needs_labels() -> None:
    with pytest.raises(DataError, match="needs labels"):
        accuracy(nn.Identity(), [X])
