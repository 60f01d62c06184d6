"""Token ids in, vectors out: an encoder with a mask through capture, integers, file and runtime."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.deploy.export.onnx import Onnx
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify import verify
from bitsmith.errors import DataError
from bitsmith.model.evaluate import predict
from bitsmith.model.graph import capture, run_float
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import ptq
from bitsmith.model.recipe import Recipe, Rule, weight_scheme
from bitsmith.model.store import load, save

WORDS, WIDTH, HEADS, LENGTH = 50, 16, 2, 24


class Encoder(nn.Module):
    """One layer of a BERT, without dropout; ids 0 are padding where no mask is given."""

    def __init__(
        self, attention: str = "matmul", positions: str = "arange", masked: float = 0.0
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.kinds, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH)
        self.middle = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.up, self.down = (
            nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH),
        )  # fmt: skip
        self.register_buffer("counted", torch.arange(LENGTH)[None])
        self.attention, self.positions, self.masked = attention, positions, masked

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = (ids != 0 if mask is None else mask).float()
        bias = (1 - mask[:, None, None, :]) * (self.masked or torch.finfo(torch.float32).min)
        at = torch.arange(ids.shape[1]) if self.positions == "arange" else None
        at = self.counted[:, : ids.shape[1]] if at is None else at
        x = self.norm(self.words(ids) + self.kinds(torch.zeros_like(ids)) + self.places(at))
        heads = (*ids.shape, HEADS, WIDTH // HEADS)
        q, k, v = (f(x).reshape(heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.attention == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        elif self.masked == -math.inf:
            hidden = (mask == 0)[:, None, None, :]
            y = (q @ k.transpose(2, 3)).masked_fill(hidden, -math.inf).softmax(-1) @ v
        else:
            y = (q @ k.transpose(2, 3) / math.sqrt(heads[-1]) + bias).softmax(-1) @ v
        x = self.middle(x + self.out(y.transpose(1, 2).reshape(x.shape)))
        x = (x + self.down(F.gelu(self.up(x)))) * mask[:, :, None]
        return F.normalize(x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1), dim=1)


def encoder(**options: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(**options).eval()


def sentences(n: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask [n, tokens], int64; every other row is padded to half its length."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (n, tokens), generator=g)
    ids[::2, tokens // 2 :] = 0
    return ids, (ids != 0).long()


BATCHES = [sentences(8, 6), sentences(8, 9, 1), sentences(8, 5, 2)]


@pytest.mark.parametrize(
    ("options", "integers"),  # six layers and two products; scaling the query apart is one more
    [({}, 8), ({"attention": "sdpa"}, 9), ({"positions": "table"}, 8)],
    ids=["matmul", "sdpa", "table"],
)
def test_a_file_of_any_batch_and_length_computes_what_the_simulation_computes(
    options, integers, tmp_path
):
    module = encoder(**options)
    model, path = ptq(module, "W8A8", BATCHES), tmp_path / "m.onnx"
    assert not Onnx().check(model)
    Onnx().write(model, path, {})
    found = verify(model, path, [sentences(5, 7, 3), sentences(1, 12, 4)])
    assert found.passed, found.failures
    assert found.executed_integer == found.planned_integer == integers
    assert {w.layer for w in found.worst_cases} == {"q", "k", "v", "out", "up", "down"}
    ids, mask = sentences(3, 11, 5)
    close = F.cosine_similarity(module(ids, mask), open_session(path)(ids, mask))
    assert close.min() > 0.99


@pytest.mark.parametrize(
    ("value", "refused"),
    [(0.0, ["add", "softmax"]), (-10_000.0, ["add", "softmax"]), (-math.inf, ["aten", "softmax"])],
)
def test_the_mask_is_never_given_codes(value, refused):
    model = ptq(encoder(masked=value), "W8A8", BATCHES)
    assert all(e.scale < 1 for e in model.program.encodings.values())
    assert sorted(row.op for row in model.coverage if "mask" in row.reason) == refused
    ids, mask = sentences(4, 8, 3)
    assert F.cosine_similarity(model(ids, mask), encoder(masked=value)(ids, mask)).min() > 0.99


def test_tables_are_rows_of_codes_in_the_file(tmp_path):
    module = encoder()
    model, path = ptq(module, "W8A8", BATCHES), tmp_path / "m.onnx"
    Onnx().write(model, path, {})
    table = Onnx().read(path)["words"]
    weight = module.words.weight.detach()
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert table.codes.dtype == torch.int8
    assert torch.equal(table.codes, (weight / steps).round().to(torch.int8))
    row = next(r for r in model.coverage if r.layer == "words")
    assert (row.op, row.outcome, row.weight_bits) == ("embedding", "float", 8.0)
    kinds = {i.name: i.data_type for i in onnx.load(path).graph.initializer}
    assert kinds["words.weight_codes"] == onnx.TensorProto.INT8
    assert "words.weight" not in kinds


def test_a_rule_keeps_a_table_in_float():
    rules = (Rule("op:embedding", None), Rule("*", weight_scheme(8)))
    recipe = Recipe("tables in float", rules, make_recipe("W8A8").static_activation)
    module = encoder()
    model = ptq(module, recipe, BATCHES)
    assert not {"words", "places", "kinds"} & set(model.program.layers)
    row = next(r for r in model.coverage if r.layer == "words")
    assert row.reason == "recipe tables in float: a rule keeps it in float"
    ids, mask = BATCHES[0]
    assert torch.equal(model.trace(ids, mask).reals["words"], module.words(ids))


def test_the_simulation_is_saved_and_loaded(tmp_path):
    model = ptq(encoder(), "W8A8", BATCHES)
    loaded = load(save(model, tmp_path / "folder"))
    assert torch.equal(model(*BATCHES[0]), loaded(*BATCHES[0]))
    assert loaded.program.graph.inputs[0].dtype == "int64"


def test_ids_alone_make_their_own_mask(tmp_path):
    module = encoder()
    model = ptq(module, "W8A8", [ids for ids, _ in BATCHES])
    Onnx().write(model, tmp_path / "m.onnx", {})
    ids, _ = sentences(4, 7, 9)
    ours, theirs = model(ids), open_session(tmp_path / "m.onnx")(ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_inputs_beside_labels_are_given_in_a_tuple_of_their_own():
    labelled = [(batch, torch.zeros(8).long()) for batch in BATCHES]
    module = encoder()
    a, b = ptq(module, "W8A8", labelled), ptq(module, "W8A8", BATCHES)
    assert a.program.encodings == b.program.encodings
    outputs, labels = predict(a, labelled)
    assert outputs.shape == (24, WIDTH)
    assert labels is not None
    assert len(labels) == 24


def test_capture_leaves_the_length_free():
    module = encoder()
    graph = capture(module, list(BATCHES[0]))
    assert [i.shape for i in graph.inputs] == [(-1, -1), (-1, -1)]
    ids, mask = sentences(2, 17, 6)
    torch.testing.assert_close(run_float(graph, [ids, mask])[0], module(ids, mask))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.full((8, 5), WORDS), torch.ones(8, 5).long()), "from 50 to 50; the table words"),
        ((torch.full((8, 5), -1), torch.ones(8, 5).long()), "ids from -1 to -1"),
        ((torch.ones(8, 5).long(),), "takes 2 inputs, a batch has 1"),
        ((torch.ones(8, 5), torch.ones(8, 5)), "is float32; the model was captured for int64"),
        ((torch.ones(8, 5, 1).long(), torch.ones(8, 5).long()), r"\[batch, any\]"),
    ],
    ids=["too large", "negative", "one input", "floats", "three axes"],
)  # fmt: skip
def test_bad_token_batches_are_named(batch, message):
    with pytest.raises(DataError, match=message):
        ptq(encoder(), "W8A8", [*BATCHES, batch])


def test_the_mean_of_a_norm_over_tokens_is_no_pool():
    """RMSNorm on [batch, tokens, width] looks like a pool over length with tokens as channels."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 4)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            return self.head(x / (x * x).mean(-1, keepdim=True).sqrt())

    torch.manual_seed(0)
    model = ptq(Normed().eval(), "W8A8", [ids for ids, _ in BATCHES])
    outcomes = {row.op: row.outcome for row in model.coverage}
    assert "global_avg_pool" not in outcomes
    assert outcomes["mean"] == "float"
    assert outcomes["linear"] == "integer"
