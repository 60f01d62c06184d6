"""stories260K: a Llama (arXiv:2302.13971) of 260,032 parameters that writes children's stories.

Trained by A. Karpathy (llama2.c) on TinyStories (Eldan and Li, arXiv:2305.07759) over a vocabulary
of 512 pieces. It has what large models have: RMSNorm, rotary positions (arXiv:2104.09864),
grouped-query attention (arXiv:2305.13245), SwiGLU (arXiv:2002.05202), and an output head that is
the embedding. Parameter names are those of the published weights.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.errors import DataError, InputError
from bitsmith.zoo.models import ZooModel

__all__ = ["Llama", "Stories260K", "generate"]

VOCABULARY, POSITIONS, WIDTH, INNER, LAYERS = 512, 512, 64, 172, 5
HEADS, KEY_HEADS, HEAD = 8, 4, 8
EPSILON, THETA = 1e-5, 10_000.0
#: Begins every story.
BOS = 1

Cache = dict[int, tuple[Tensor, Tensor]]
How = Literal["sdpa", "matmul"]


@final
class RmsNorm(nn.Module):
    """``weight · x / sqrt(mean(x²) + 1e-5)`` over the last axis (arXiv:1910.07467)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, 64]``."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * self.weight


@final
class Attention(nn.Module):
    """Eight query heads over four key and value heads; queries see no later token."""

    def __init__(self, index: int, attention: How) -> None:
        super().__init__()
        self.wq = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.wk = nn.Linear(WIDTH, KEY_HEADS * HEAD, bias=False)
        self.wv = nn.Linear(WIDTH, KEY_HEADS * HEAD, bias=False)
        self.wo = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.index = index
        self.attention = attention

    def forward(
        self, x: Tensor, angles: Tensor, bias: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """Return ``[B, T, 64]``.

        Args:
            x: ``[B, T, 64]``.
            angles: of the positions, ``[T, 4]``.
            bias: ``[T, past + T]``: 0, and minus infinity on later tokens; None: there is no
                past, and the fused operator knows which tokens are later.
            cache: keys and values of earlier tokens by layer; these are added to it.
        """
        batch, tokens, _ = x.shape
        q = _rotate(self.wq(x).reshape(batch, tokens, HEADS, HEAD).transpose(1, 2), angles)
        k = _rotate(self.wk(x).reshape(batch, tokens, KEY_HEADS, HEAD).transpose(1, 2), angles)
        v = self.wv(x).reshape(batch, tokens, KEY_HEADS, HEAD).transpose(1, 2)
        if cache is not None:
            if self.index in cache:
                past_k, past_v = cache[self.index]
                k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
            cache[self.index] = (k, v)
        shared = HEADS // KEY_HEADS
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        if self.attention == "matmul" and bias is not None:
            scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(HEAD) + bias
            mixed = torch.matmul(torch.softmax(scores, -1), v)  # [B, heads, T, 8]
        else:
            causal = bias is None
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
        y: Tensor = self.wo(mixed.transpose(1, 2).reshape(batch, tokens, HEADS * HEAD))
        return y


@final
class FeedForward(nn.Module):
    """``w2(silu(w1(x)) · w3(x))``."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(WIDTH, INNER, bias=False)
        self.w2 = nn.Linear(INNER, WIDTH, bias=False)
        self.w3 = nn.Linear(WIDTH, INNER, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, T, 64]``."""
        y: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y


@final
class Block(nn.Module):
    """Attention, then the two-branch layers, each on the normed input and added to it."""

    def __init__(self, index: int, attention: How) -> None:
        super().__init__()
        self.attention = Attention(index, attention)
        self.feed_forward = FeedForward()
        self.attention_norm = RmsNorm()
        self.ffn_norm = RmsNorm()

    def forward(
        self, x: Tensor, angles: Tensor, bias: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """Return ``[B, T, 64]``; the arguments are those of the attention."""
        x = x + self.attention(self.attention_norm(x), angles, bias, cache)
        y: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return y


@final
class Llama(nn.Module):
    """Five blocks; the output head is the embedding's own tensor.

    Args:
        attention: ``"sdpa"`` calls PyTorch's fused operator, which never holds the T×T scores
            and is several times as fast; ``"matmul"`` writes attention out as two matrix products
            and a softmax. Equal up to rounding.

    Raises:
        InputError: another name of ``attention``.

    >>> Llama().eval()(torch.tensor([[1, 403, 407]])).shape
    torch.Size([1, 3, 512])
    """

    def __init__(self, attention: How = "sdpa") -> None:
        super().__init__()
        if attention not in ("sdpa", "matmul"):
            raise InputError(f"attention is 'sdpa' or 'matmul', not {attention!r}")
        self.attention = attention
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block(index, attention) for index in range(LAYERS))
        self.norm = RmsNorm()
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.output.weight = self.tok_embeddings.weight
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``[batch, tokens, 512]`` of the token after each of ``ids``.

        Args:
            ids: int64 ``[batch, tokens]``, the first of each row BOS (1). A row that is padded
                at its end gives what it gives unpadded.

        Raises:
            DataError: not ``[batch, tokens]``, or more than 512 tokens.
        """
        return self.step(ids, None)

    def step(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """Return logits as :meth:`forward`, for tokens that follow those in ``cache``.

        Args:
            ids: int64 ``[batch, tokens]``.
            cache: starts as ``{}``; the keys and values of ``ids`` are added.
        """
        past = cache[0][0].shape[2] if cache else 0
        if ids.ndim != 2 or past + ids.shape[1] > POSITIONS:
            raise DataError(
                f"token ids are [batch, tokens] with at most {POSITIONS} tokens, not "
                f"{list(ids.shape)} after {past}; cut the text"
            )
        x = self.tok_embeddings(ids)
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)
        rates = THETA ** (-torch.arange(0, HEAD, 2, device=ids.device) / HEAD)
        angles = positions[:, None] * rates
        bias = None
        if past or self.attention == "matmul":
            later = torch.arange(past + ids.shape[1], device=ids.device) > positions[:, None]
            bias = torch.zeros_like(later, dtype=x.dtype).masked_fill(later, -math.inf)
        for block in self.layers:
            x = block(x, angles, bias, cache)
        logits: Tensor = self.output(self.norm(x))
        return logits


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Return ``x`` ``[B, heads, T, 8]``, each pair of neighbours turned by its angle ``[T, 4]``."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


@torch.no_grad()
def generate(
    model: Llama, n: int, *, length: int = 256, seed: int = 0, temperature: float = 1.0
) -> Tensor:
    """Return ``n`` texts that the model writes, int64 ``[n, length]``, each beginning with BOS.

    Every token is drawn from ``softmax(logits / temperature)``; after the end of a story the
    model begins another, as in the stream that it was trained on. Calibrating on such text needs
    no data and touches no sample that later judges the model (Liu et al., arXiv:2305.17888,
    section 3.1).

    Args:
        model: in evaluation mode.
        n: how many.
        length: tokens of each, 1 to 512.
        seed: of the draw; the same seed gives the same texts on one machine.
        temperature: 0 takes the most likely token.

    Raises:
        InputError: a number outside its range.
    """
    if n < 1 or not 1 <= length <= POSITIONS or not 0 <= temperature < math.inf:
        raise InputError(
            f"n is at least 1, length 1 to {POSITIONS} and temperature 0 or more and finite, not "
            f"{n}, {length} and {temperature}"
        )
    generator = torch.Generator().manual_seed(seed)
    token = torch.full((n, 1), BOS)
    written, cache = [token], Cache()
    while len(written) < length:
        logits = model.step(token, cache)[:, -1].float()
        if temperature == 0:
            token = logits.argmax(1, keepdim=True)
        else:
            token = torch.multinomial(
                torch.softmax(logits / temperature, 1), 1, generator=generator
            )
        written.append(token)
    return torch.cat(written, 1)


@final
class Stories260K(ZooModel, name="stories260k"):
    """A Llama of 0.26 million parameters; 1.4909 nats per token on the TinyStories sample."""

    input_shape = None
    dataset = "tinystories"
    weights_file = "stories260k.safetensors"

    @classmethod
    def build(cls) -> nn.Module:
        return Llama()
