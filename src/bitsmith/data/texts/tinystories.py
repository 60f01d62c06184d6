"""TinyStories: short stories in the words of a small child (Eldan and Li, arXiv:2305.07759)."""

from __future__ import annotations

from typing import final

from bitsmith.data.npz import read_npz
from bitsmith.data.texts import TextDataset, find_text
from bitsmith.data.token_rows import TokenRows

__all__ = ["TinyStories"]

_FILE = "tinystories-val-a-tok512.npz"
MOST_TOKENS = 512


@final
class TinyStories(TextDataset, name="tinystories"):
    """A sample of TinyStories' validation split: 511 texts in the 512 pieces of stories260k.

    Read from ``tinystories-val-a-tok512.npz`` (``ids`` uint16, ``offsets`` int32 [N + 1]); every
    row begins with BOS (1) and is cut at the 512 tokens that the model takes. There is no split
    to calibrate on: text that the model itself writes serves
    (:func:`bitsmith.zoo.models.stories260k.generate`).
    """

    splits = ("validation",)

    def read(self, split: str) -> TokenRows:
        path = find_text(
            self.name,
            _FILE,
            "the validation split of TinyStories in llama2.c's vocabulary of 512 pieces, as "
            "arrays ids and offsets",
        )
        arrays = read_npz(path, ("ids", "offsets"))
        origin = f"file {path.name}, sample of TinyStories' validation split"
        rows = TokenRows(self.name, split, arrays["ids"], arrays["offsets"], origin)
        return rows.cut(MOST_TOKENS)
