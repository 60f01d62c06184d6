"""stories260K against llama2.c's published text and transformers' Llama; what it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.zoo import load_model
from bitsmith.zoo.models.stories260k import Llama, generate

# What llama2.c's own test expects of 200 steps at temperature 0 without a prompt.
EXPECTED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She "
    'said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    "do.\"\nLily didn't want to help her mom, so she"
)


def data_file(name: str) -> Path:
    folder = os.environ.get("BITSMITH_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"needs {name} in the folder BITSMITH_DATA")
    return Path(folder) / name


@pytest.fixture(scope="module")
def trained() -> Llama:
    module = load_model("stories260k", data_file("stories260k.safetensors")).module
    assert isinstance(module, Llama)
    return module


def some_ids(batch: int = 3, tokens: int = 40) -> Tensor:
    ids = torch.randint(3, 512, (batch, tokens), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 1
    return ids


def test_greedy_text_is_the_published_one(trained: Llama) -> None:
    pieces = json.loads(data_file("stories260k-tokenizer.json").read_text())["pieces"]
    ids = generate(trained, 1, length=201, temperature=0)[0]
    text = "".join(pieces[i] for i in ids[1:].tolist()).replace("<0x0A>", "\n")
    assert text.removeprefix(" ") == EXPECTED


def halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder rows from neighbouring pairs to two halves per head, as transformers rotates."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@torch.no_grad()
def test_equals_the_llama_of_transformers(trained: Llama) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    own = dict(trained.named_parameters())
    state = {"model.embed_tokens.weight": own["tok_embeddings.weight"]}
    state |= {
        "lm_head.weight": own["tok_embeddings.weight"],
        "model.norm.weight": own["norm.weight"],
    }
    for i in range(5):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        attention, mlp = f"{theirs}self_attn.", f"{theirs}mlp."
        state |= {
            f"{attention}q_proj.weight": halves(own[f"{ours}attention.wq.weight"], 8),
            f"{attention}k_proj.weight": halves(own[f"{ours}attention.wk.weight"], 4),
            f"{attention}v_proj.weight": own[f"{ours}attention.wv.weight"],
            f"{attention}o_proj.weight": own[f"{ours}attention.wo.weight"],
            f"{mlp}gate_proj.weight": own[f"{ours}feed_forward.w1.weight"],
            f"{mlp}down_proj.weight": own[f"{ours}feed_forward.w2.weight"],
            f"{mlp}up_proj.weight": own[f"{ours}feed_forward.w3.weight"],
            f"{theirs}input_layernorm.weight": own[f"{ours}attention_norm.weight"],
            f"{theirs}post_attention_layernorm.weight": own[f"{ours}ffn_norm.weight"],
        }
    other = transformers.LlamaForCausalLM(config).eval()
    other.load_state_dict(state, strict=True)
    ids = some_ids(tokens=512)
    torch.testing.assert_close(trained(ids), other(ids).logits, rtol=0, atol=2e-4)


@torch.no_grad()
def test_written_out_attention_and_the_cache_give_the_same() -> None:
    fused, plain = Llama().eval(), Llama("matmul").eval()
    plain.load_state_dict(fused.state_dict())
    ids = some_ids()
    expected = fused(ids)
    torch.testing.assert_close(plain(ids), expected, rtol=0, atol=1e-5)
    for module in (fused, plain):
        cache: dict[int, tuple[Tensor, Tensor]] = {}
        parts = [module.step(part, cache) for part in ids.split([1, 20, 1, 18], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="'sdpa' or 'matmul', not 'flash'"):
        Llama("flash")  # type: ignore[arg-type]  # on purpose


@torch.no_grad()
def test_no_token_sees_a_later_one() -> None:
    module, ids = Llama().eval(), some_ids()
    changed = ids.clone()
    changed[:, 25:] = 7
    torch.testing.assert_close(module(changed)[:, :25], module(ids)[:, :25], rtol=0, atol=1e-6)


def test_the_head_is_the_embedding() -> None:
    module = Llama()
    assert module.output.weight is module.tok_embeddings.weight
    assert sum(p.numel() for p in module.parameters()) == 260_032


class TestGenerate:
    def test_same_seed_same_texts(self) -> None:
        module = Llama().eval()
        texts = generate(module, 3, length=20, seed=5)
        assert texts.shape == (3, 20)
        assert texts.dtype == torch.int64
        assert (texts[:, 0] == 1).all()
        assert torch.equal(generate(module, 3, length=20, seed=5), texts)
        assert not torch.equal(generate(module, 3, length=20, seed=6), texts)
        assert generate(module, 2, length=1).tolist() == [[1], [1]]

    def test_draws_from_the_models_own_distribution(self, trained: Llama) -> None:
        """The first token after BOS: shares of 4,000 draws against the probabilities."""
        drawn = generate(trained, 4000, length=2)[:, 1]
        with torch.no_grad():
            expected = torch.softmax(trained(torch.tensor([[1]]))[0, 0], 0)
        shares = torch.bincount(drawn, minlength=512) / 4000
        assert float((shares - expected).abs().max()) < 4 * (0.25 / 4000) ** 0.5

    @pytest.mark.parametrize(
        "wrong", [{"n": 0}, {"length": 0}, {"length": 513}, {"temperature": -1.0}]
    )
    def test_numbers_outside_their_range(self, wrong: dict[str, int]) -> None:
        with pytest.raises(InputError, match="temperature 0 or more"):
            generate(Llama(), **({"n": 1} | wrong))
