"""``transformers`` loads and runs what was written: weights bit-equal, logits the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bitsmith.deploy.export.compressed_tensors import check, read, write
from bitsmith.numbers import (
    PerChannel,
    PerGroup,
    PerTensor,
    QTensor,
    Scheme,
    bf16,
    dequantize,
    fp16,
    int2,
    int3,
    int4,
    int8,
    integer_format,
    quantize,
    uint1,
    uint3,
    uint4,
)

pytest.importorskip("compressed_tensors")
transformers = pytest.importorskip("transformers")

G32 = Scheme(int4, granularity=PerGroup(32))
ROWS8 = Scheme(int8, granularity=PerChannel(0))
IDS = torch.randint(0, 80, (2, 17), generator=torch.Generator().manual_seed(1))


def llama(tied: bool) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=80,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
        dtype="float32",
    )
    return transformers.LlamaForCausalLM(config).eval()


def kinds(model: nn.Module) -> dict[str, list[str]]:
    """Return the arguments ``linears`` and ``embeddings``."""
    return {
        key: [name for name, module in model.named_modules() if isinstance(module, kind)]
        for key, kind in (("linears", nn.Linear), ("embeddings", nn.Embedding))
    }


def stream(model: nn.Module, schemes: dict[str, Scheme]) -> dict[str, QTensor | torch.Tensor]:
    """Return the model's parameters; each is quantized by the first of ``schemes`` it contains."""
    found: dict[str, QTensor | torch.Tensor] = {}
    for name, value in model.named_parameters():
        scheme = next((s for part, s in schemes.items() if part in name), None)
        found[name] = value.detach() if scheme is None else quantize(value.detach(), scheme)
    return found


def loaded(model, tensors, folder: Path, dynamic=(), **how):
    """Write, read back, load with transformers, and put our values into ``model``."""
    config = model.config.to_dict()
    write(tensors, folder, **kinds(model), config=config, dynamic=dynamic)
    for name, value in read(folder).items():
        if isinstance(value, QTensor):
            assert value.scheme == tensors[name].scheme
            assert torch.equal(value.codes, tensors[name].codes)
            assert torch.equal(value.scale, tensors[name].scale)
            assert torch.equal(value.zero_point, tensors[name].zero_point)
        else:
            assert torch.equal(value, tensors[name])
    auto = {"LlamaForCausalLM": "AutoModelForCausalLM", "BertModel": "AutoModel"}
    other, info = getattr(transformers, auto[type(model).__name__]).from_pretrained(
        folder, output_loading_info=True, **how
    )
    assert not any(info.values())
    for name, parameter in model.named_parameters():
        if isinstance(tensors[name], QTensor):
            parameter.data = tensors[name].dequantize().to(parameter.dtype)
    return other.eval()


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(ids)[0]


def agree(model: nn.Module, other: nn.Module, ids: torch.Tensor = IDS) -> None:
    """Same logits, then (running decompresses) the same weights, bit for bit."""
    ours = logits(model, ids)
    torch.testing.assert_close(logits(other, ids), ours, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


PROJ = "_proj"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "scheme",
    [
        G32,
        Scheme(int4, granularity=PerChannel(0)),
        Scheme(int4, granularity=PerTensor()),
        Scheme(int4, False, PerGroup(32)),
        Scheme(uint4, False, PerChannel(0)),
        Scheme(int8, False, PerTensor()),
        Scheme(int4, granularity=PerGroup(16), scale_format=fp16),
        ROWS8,
        *(Scheme(integer_format(b, True), granularity=PerGroup(32)) for b in (2, 3, 5, 6, 7)),
        Scheme(uint1, False, PerGroup(16)),
        Scheme(uint3, False, PerChannel(0)),
    ],
    ids=str,
)
def test_llama(tmp_path, scheme, tied):
    model = llama(tied)
    tensors = stream(model, {PROJ: scheme})
    agree(model, loaded(model, tensors, tmp_path / "out"))


@pytest.mark.parametrize(
    "schemes",
    [
        {PROJ: G32, "lm_head": G32},
        {"down_proj": ROWS8, PROJ: G32},
        {"0.self_attn": Scheme(int3, granularity=PerGroup(16)), "mlp": ROWS8, "lm_head": G32},
        {PROJ: G32, "lm_head": G32, "embed": G32},
        {PROJ: Scheme(uint3, False, PerGroup(16)), "embed": Scheme(uint3, False, PerGroup(16))},
    ],
    ids=" ".join,
)
def test_llama_in_several_schemes(tmp_path, schemes):
    model = llama(tied=False)
    agree(model, loaded(model, stream(model, schemes), tmp_path / "out"))


def test_what_check_refuses_transformers_cannot_load(tmp_path, monkeypatch):
    """Embeddings with a scheme of their own: once this loads, the refusal has no reason."""
    model = llama(tied=False)
    tensors = stream(model, {"embed": ROWS8, PROJ: G32})
    assert check(tensors, **kinds(model))
    writer = "bitsmith.deploy.export.compressed_tensors"
    monkeypatch.setattr(f"{writer}.settings.loads_dequantized", lambda *_: [])
    monkeypatch.setattr(f"{writer}.survey.loads_dequantized", lambda *_: [])
    with pytest.raises(AttributeError, match="Embedding"):
        loaded(model, tensors, tmp_path / "out")


def test_half_precision_is_the_nearest(tmp_path):
    model = llama(tied=False)
    model.config.dtype = "bfloat16"
    scheme = Scheme(int4, granularity=PerGroup(32), scale_format=bf16)
    tensors = stream(model, {PROJ: scheme})
    model.bfloat16()
    other = loaded(model, tensors, tmp_path / "out")
    assert logits(other).dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


@pytest.mark.parametrize(("scales", "dtype"), [(fp16, torch.float16), (bf16, torch.bfloat16)])
def test_dequantized_while_loading_in_the_type_of_the_scales(tmp_path, scales, dtype):
    model = llama(tied=False)
    tensors = stream(model, {PROJ: Scheme(int4, False, PerGroup(16), scale_format=scales)})
    other = loaded(model, tensors, tmp_path / "out")
    for name, parameter in model.named_parameters():
        if isinstance(tensors[name], QTensor):
            parameter.data = parameter.to(dtype).float()
    agree(model, other)


def test_bert_with_embeddings(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=80,
        dtype="float32",
    )
    model = transformers.BertModel(config).eval()
    tensors = stream(model, {"LayerNorm": None, "bias": None, "weight": ROWS8})
    assert sum(isinstance(v, QTensor) for v in tensors.values()) == 3 + 12 + 1
    agree(model, loaded(model, tensors, tmp_path / "out"))


def test_inputs_quantized_on_the_fly(tmp_path):
    model = llama(tied=True)
    tensors = stream(model, {PROJ: ROWS8})
    dynamic = [name for name in tensors if PROJ in name]
    other = loaded(model, tensors, tmp_path / "out", dynamic)

    def per_token(module, inputs):
        (x,) = inputs  # the library's rule: scale absmax/127.5, codes −128 … 127
        scale = x.abs().amax(-1, keepdim=True) / 127.5
        codes = torch.round(x / scale).clamp(-128, 127)
        return (dequantize(codes, scale, torch.zeros(1, dtype=torch.int32)),)

    weights_only = logits(model)
    for name, module in model.named_modules():
        if f"{name}.weight" in dynamic:
            module.register_forward_pre_hook(per_token)
    agree(model, other)
    assert (logits(other) - weights_only).abs().max() > 1e-4


def test_inputs_quantized_on_the_fly_in_some_layers(tmp_path):
    model = llama(tied=False)
    tensors = stream(model, {"mlp": ROWS8, "self_attn": Scheme(int2, granularity=PerGroup(16))})
    dynamic = [name for name in tensors if "mlp" in name]
    other = loaded(model, tensors, tmp_path / "out", dynamic)
    assert (logits(other) - logits(model)).abs().max() < 0.02
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


def stories() -> nn.Module:
    """Return the stories260k weights in transformers' Llama class."""
    path = Path(os.environ.get("BITSMITH_DATA", "")) / "stories260k.safetensors"
    if not path.is_file():
        pytest.skip("needs stories260k.safetensors in the folder BITSMITH_DATA")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=512,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "tok_embeddings": "embed_tokens",
    }
    state = {}
    for name, value in load_file(path).items():
        if name.endswith(("wq.weight", "wk.weight")):  # rotary pairs: interleaved → halves
            value = value.view(-1, 4, 2, 64).transpose(1, 2).reshape(value.shape)
        for old, new in names.items():
            name = name.replace(old, new)
        state[f"model.{name}"] = value
    model = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return model


@pytest.mark.parametrize(
    "schemes",
    [
        # Rows of 172 have no groups of 32: groups of 43 there.
        {"down_proj": Scheme(int4, granularity=PerGroup(43)), PROJ: G32},
        {PROJ: Scheme(int4, False, PerChannel(0))},
        {PROJ: ROWS8},
    ],
    ids=["int4 in groups", "int4 asymmetric per row", "int8 per row"],
)
def test_stories260k(tmp_path, schemes):
    np = pytest.importorskip("numpy")
    model = stories()
    other = loaded(model, stream(model, schemes), tmp_path / "out")
    with np.load(Path(os.environ["BITSMITH_DATA"]) / "tinystories-val-a-tok512.npz") as held:
        ids = torch.from_numpy(held["ids"][: held["offsets"][1]].astype("int64"))[None, :512]
    agree(model, other, ids)
    with torch.no_grad():
        loss = float(other(ids, labels=ids).loss)
    assert 1.0 < loss < 2.0  # the trained model's, not one of random weights (6.2)
