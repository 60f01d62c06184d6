"""Names, files and functions: what a user may write for data."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bitsmith.data import datasets, load_dataset
from bitsmith.errors import DataError, UnknownNameError

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'cifar10'.*digits.*moons"):
        load_dataset("cifar-10")


def test_unknown_name_lists_texts_too() -> None:
    with pytest.raises(UnknownNameError, match=r"known: cifar10.*stsb, tinystories"):
        load_dataset("nosuch")


def test_registered_names() -> None:
    assert {"cifar10", "digits", "fashion-mnist", "mnist", "moons"} <= set(datasets)


def test_npz_with_one_split_must_be_told_which(tmp_path: Path) -> None:
    path = save(tmp_path / "one.npz", x=X, y=Y)
    with pytest.raises(DataError, match="train or test"):
        load_dataset(path)
    dataset = load_dataset(path, split="test")
    assert dataset.splits == ("test",)
    split = dataset.split("test")
    np.testing.assert_array_equal(split.x, X)
    assert split.classes == 3
    with pytest.raises(UnknownNameError, match="known: test"):
        dataset.split("train")


def test_npz_with_two_splits(tmp_path: Path) -> None:
    path = save(tmp_path / "two.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])
    dataset = load_dataset(path)
    assert [dataset.split(s).n for s in dataset.splits] == [6, 2]
    assert dataset.split("train") is dataset.split("train")
    with pytest.raises(UnknownNameError):
        load_dataset(path, split="val")


def test_npz_without_labels(tmp_path: Path) -> None:
    assert load_dataset(save(tmp_path / "a.npz", x=X), split="train").split("train").y is None


def test_npz_of_bytes_with_its_own_normalization(tmp_path: Path) -> None:
    x = np.full((2, 3, 4, 4), 255, np.uint8)
    mean = np.array([0.0, 0.5, 1.0])
    path = save(tmp_path / "u8.npz", x=x, mean=mean, std=np.full(3, 0.5))
    ((batch, _),) = load_dataset(path, split="test").split("test").batches(2)
    assert batch[1, :, 2, 3].tolist() == [2.0, 1.0, 0.0]
    alone = save(tmp_path / "alone.npz", x=x, mean=mean)
    with pytest.raises(DataError, match="mean alone"):
        load_dataset(alone, split="test").split("test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({"images": X}, "holds images; it must hold x"), ({"x": X, "x_test": X}, "which samples")],
)
def test_npz_that_holds_other_things(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(save(tmp_path / "odd.npz", **arrays), split="test")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_dataset(str(tmp_path / "none.npz"), split="test")


class Harm:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = save(tmp_path / "pickled.npz", x=np.array([[Harm(trace)]], dtype=object), y=Y[:1])
    with pytest.raises(DataError, match="pickled"):
        load_dataset(path, split="test").split("test")
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Harm(trace)))
    with pytest.raises(DataError, match="not a readable"):
        load_dataset(str(bare), split="test")
    hidden = tmp_path / "hidden.npz"
    with zipfile.ZipFile(hidden, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Harm(trace)))
    with pytest.raises(DataError):
        load_dataset(str(hidden), split="test").split("test")
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated_npz(tmp_path: Path, share: float) -> None:
    whole = Path(save(tmp_path / "whole.npz", x=X, y=Y)).read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="truncated"):
        load_dataset(str(cut), split="test")


def test_flipped_bit_in_the_values_is_found(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "flip.npz", x=X, y=Y))
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()) + 5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="CRC"):
        load_dataset(str(path), split="test").split("test")


def test_header_that_claims_the_impossible(tmp_path: Path) -> None:
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (2**48, 3)}
    np.lib.format.write_array_header_1_0(header, claim)
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 12)
    with pytest.raises(DataError):
        load_dataset(str(path), split="test").split("test")


FUNCTIONS = """
import numpy as np, torch
X = np.arange(12, dtype=np.float32).reshape(4, 3)
def arrays(split): return X, np.array([0, 1, 0, 1]) if split == "train" else None
def tensors(split): return torch.from_numpy(X), torch.tensor([0, 1, 0, 1])
def batches(split): return ((torch.from_numpy(X[i:i + 2]), torch.tensor([0, 1])) for i in (0, 2))
def bare(split): return [X[:3], X[3:]]
def lists(split): return [[X[:3]], [X[3:]]]
def nothing(split): return []
def word(split): return 3
def words(split): return ["a", "b"]
def uneven(split): return [X, X[:, :2]]
def half(split): return [(X, np.zeros(4, int)), (X, None)]
def broken(split): return {}[split]
number = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "functions_for_load_dataset"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("function", ["arrays", "tensors", "batches", "bare", "lists"])
def test_functions(module: str, function: str) -> None:
    dataset = load_dataset(f"{module}:{function}")
    split = dataset.split("train")
    assert split.name == "train"
    np.testing.assert_array_equal(split.x, np.arange(12).reshape(4, 3))
    labelled = function in ("arrays", "tensors", "batches")
    assert (split.y is not None) == labelled
    if labelled:
        assert split.y.tolist() == [0, 1, 0, 1]
    if function == "arrays":
        assert dataset.split("test").y is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "0 batches"),
        ("word", "returned int"),
        ("words", "batch 0 is not"),
        ("uneven", "different shapes"),
        ("half", "1 of them with labels"),
        ("broken", "KeyError: 'train'"),
    ],
)
def test_functions_that_return_no_data(module: str, function: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(f"{module}:{function}").split("train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_at_all:f", "ModuleNotFoundError"),
        ("{module}:absent", "AttributeError"),
        ("{module}:number", "int, which cannot be called"),
        (":f", "ValueError"),
    ],
)
def test_functions_that_are_not_there(module: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(name.format(module=module))


def test_split_given_for_a_data_set_that_knows_its_own() -> None:
    assert load_dataset("moons", split="test").splits == ("train", "test")
    with pytest.raises(UnknownNameError, match="known: test, train"):
        load_dataset("moons", split="dev")


def test_model_ready_means_no_further_change() -> None:
    split = load_dataset("moons").split("train")
    ((x, _),) = split.batches(split.n)
    assert torch.equal(x, torch.from_numpy(split.x))
