"""Outputs appear together or not at all."""

import os
from pathlib import Path

import pytest

from bitsmith.cli.staging import Staging
from bitsmith.errors import InputError


def write(staging: Staging, path: Path, text: str) -> None:
    staging.path(path).write_text(text)


def test_all_appear_at_the_end(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with Staging([a, None, b]) as staging:
        write(staging, a, "1")
        write(staging, b, "2")
        assert not a.exists()
        assert staging.path(a).name == "a"
    assert (a.read_text(), b.read_text()) == ("1", "2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_output_that_was_not_written_does_not_appear(tmp_path):
    with Staging([tmp_path / "a"]):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_nothing_changes_when_the_work_fails(tmp_path, error):
    a = tmp_path / "a"
    a.write_text("before")

    def work() -> None:
        with Staging([a, tmp_path / "b"]) as staging:
            write(staging, a, "after")
            raise error

    with pytest.raises(error):
        work()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "before")]


@pytest.mark.parametrize("failing", range(1, 6))
def test_a_rename_that_fails_puts_everything_back(tmp_path, monkeypatch, failing):
    """Whichever rename fails, files and folders are as before."""
    a, folder, new = tmp_path / "a", tmp_path / "m.bitsmith", tmp_path / "new"
    a.write_text("before")
    folder.mkdir()
    (folder / "graph.json").write_text("old")
    real, calls = os.replace, iter(range(1, 100))

    def replace(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)

    def work() -> None:
        with Staging([a, folder, new]) as staging:
            write(staging, a, "after")
            staging.path(folder).mkdir()
            (staging.path(folder) / "graph.json").write_text("new")
            write(staging, new, "new")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m.bitsmith"]
    assert a.read_text() == "before"
    assert (folder / "graph.json").read_text() == "old"


@pytest.mark.parametrize(("name", "replaced"), [("graph.json", True), ("quantization.json", True),
                                                ("mine.txt", False)])  # fmt: skip
def test_only_folders_that_bitsmith_wrote_are_replaced(tmp_path, name, replaced):
    folder = tmp_path / "m.bitsmith"
    folder.mkdir()
    (folder / name).write_text("old")
    if not replaced:
        with pytest.raises(InputError, match="not a folder that bitsmith wrote"):
            Staging([folder])
        return
    with Staging([folder]) as staging:
        staging.path(folder).mkdir()
        (staging.path(folder) / "new").write_text("new")
    assert [p.name for p in folder.iterdir()] == ["new"]


def test_lists_everything_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as caught:
        Staging([tmp_path / "none" / "a", tmp_path / "folder"])
    assert "none" in str(caught.value)
    assert "is a folder" in str(caught.value)
    with pytest.raises(InputError, match="two outputs"):
        Staging([tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "a"])


def test_two_names_of_one_place_are_two_outputs_in_one(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    z = tmp_path / "z.onnx"
    for other in (tmp_path / "sub" / ".." / "z.onnx", tmp_path / "link" / "z.onnx"):
        with pytest.raises(InputError, match="two outputs"):
            Staging([z, other])
    Staging([z, tmp_path / "sub" / "z.onnx"])


def test_an_output_inside_another_is_refused(tmp_path):
    folder = tmp_path / "z.onnx.bitsmith"
    folder.mkdir()
    (folder / "graph.json").write_text("old")
    with pytest.raises(InputError, match="is inside of"):
        Staging([tmp_path / "z.onnx", folder, folder / "z.json"])


def test_a_dash_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="only --json"):
        Staging([Path("-")])
