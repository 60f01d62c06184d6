"""``bitsmith study all``: one page of every study, what is kept, what a next run takes over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitsmith.errors import DataError, SchemeError
from bitsmith.studies import studies
from bitsmith.studies.memory import Memory

TWO = ("study", "all", "--quick", "--only", "memory,numbers")
KEPT = Path("kept") / "seed-0-quick"

#: A study that goes on for as long as there is no file of that name.
WAITING = """
import os, time
from pathlib import Path
from typing import final
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.studies import Study, StudyResult


@final
class Waiting(Study, name="waiting"):
    title = "A study that waits until it is told to go on"
    text = "It is long enough to be interrupted, which is what it is for and nothing else."
    figures = ("line",)

    def measure(self, options):
        go = Path(os.environ["GO"])
        Path(os.environ["BEGUN"]).touch()
        while not go.exists():
            time.sleep(0.02)
        record = Record(metric="mae", value=1.0)
        figure = Figure("line", "Line", "A line.", lambda c: c.subplots().plot([0, 1]))
        return StudyResult([Table("T", ["a"], [["1"]])], [figure], [record], ["It is 1."])
"""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def no_leftovers(out: Path) -> bool:
    return not [p for p in out.rglob("*") if p.name.startswith(".")]


def test_one_page_of_all_that_are_asked_for(run, out, tmp_path):
    ran = run(*TWO, "--seed", 3, "--out", out, "--json", tmp_path / "all.json")
    assert ran.code == 0, ran.err
    assert "1 of 2  memory: done in" in ran.out
    assert "2 of 2  numbers: done in" in ran.out
    page = (out / "report.html").read_text(encoding="utf-8")
    chosen = [studies[name] for name in ("memory", "numbers")]
    assert all(study.title in page for study in chosen)
    assert page.count("<svg") == sum(len(study.figures) for study in chosen)
    assert "bitsmith study memory --seed 3 --quick" in page
    assert not re.search(r'<script|<link|@import|url\((?!#)|(src|href)="(?!#)', page)
    names = sorted(p.name for p in (out / "kept" / "seed-3-quick").iterdir())
    assert names == ["memory.json", "numbers.json"]
    assert no_leftovers(out)
    records = json.loads((tmp_path / "all.json").read_text())["records"]
    ends = {r["study"]: r["outcome"] for r in records if r.get("metric") == "seconds"}
    assert ends == {"memory": "done", "numbers": "done"}
    own = run("study", "memory", "--quick", "--seed", 3, "--json", "-").json["records"]
    assert [r for r in records if r["study"] == "memory"][1:] == own


def test_every_registered_study_is_chosen(monkeypatch, run, out):
    """Without --only: by being registered, in the order of their names; none is really run."""

    def absent(self, options=None):
        raise DataError(f"no data for {self.name}")

    monkeypatch.setattr("bitsmith.studies.Study.run", absent)
    ran = run("study", "all", "--out", out)
    assert ran.code == 0, ran.err
    said = re.findall(r"^\d+ of \d+  (\S+): left out in .* \(no data for (\S+)\);", ran.out, re.M)
    assert said == [(name, name) for name in studies]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f"no data for {name}" in page for name in studies)


def test_what_is_kept_is_taken_over_as_it_was(run, out):
    first = run(*TWO, "--out", out, "--json", "-")
    before = {p.name: p.read_bytes() for p in (out / KEPT).iterdir()}
    articles = re.findall(r"<article>.*?</article>", (out / "report.html").read_text(), re.S)
    ran = run(*TWO, "--out", out, "--json", "-")
    assert ran.code == 0, ran.err
    assert "memory: taken over from 2" in ran.err
    assert "numbers: taken over from 2" in ran.err
    assert {p.name: p.read_bytes() for p in (out / KEPT).iterdir()} == before
    again = (out / "report.html").read_text()
    assert re.findall(r"<article>.*?</article>", again, re.S) == articles
    assert len(articles) == 2
    measured = [[r for r in j.json["records"] if "outcome" not in r] for j in (first, ran)]
    assert measured[0] == measured[1]
    assert measured[0]


def test_another_seed_and_a_full_run_keep_what_there_is(run, out):
    only = ("study", "all", "--only", "memory", "--out", out)
    for more in (["--quick"], [], ["--quick", "--seed", 1]):
        assert "memory: done" in run(*only, *more).out
    for more in (["--quick"], [], ["--quick", "--seed", 1]):
        assert "memory: taken over" in run(*only, *more).out


def spoil_version(path: Path) -> None:
    head, _, rest = path.read_text().partition("\n")
    path.write_text(re.sub(r"bitsmith \S+", "bitsmith 0.0.1", head) + "\n" + rest)


def spoil_value(path: Path) -> None:
    text = path.read_text()
    assert "17.5" in text
    path.write_text(text.replace("17.5", "18.5"))


SPOILT = {
    "another version": (spoil_version, "was written by bitsmith 0.0.1"),
    "cut off": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "damaged"),
    "edited": (spoil_value, "damaged"),
    "empty": (lambda p: p.write_bytes(b""), "damaged"),
    "not text": (lambda p: p.write_bytes(b"\xff\xfe\0"), "damaged"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_taken_over_is_made_anew_and_said(run, out, name):
    spoil, said = SPOILT[name]
    run(*TWO, "--out", out)
    path = out / KEPT / "memory.json"
    whole = path.read_bytes()
    spoil(path)
    ran = run(*TWO, "--out", out)
    assert ran.code == 0, ran.err
    (note,) = [line for line in ran.out.splitlines() if line.startswith("note: ")]
    assert said in note
    assert "memory is run anew" in note
    assert "memory: done" in ran.out
    assert "numbers: taken over" in ran.out
    assert "18.5" not in (out / "report.html").read_text()
    assert len(path.read_bytes()) == pytest.approx(len(whole), abs=200)


def test_a_study_that_was_changed_is_run_anew(run, out, monkeypatch):
    run(*TWO, "--out", out)
    monkeypatch.setattr("bitsmith.insight.report.surroundings.source_digest", lambda cls: "other")
    ran = run(*TWO, "--out", out)
    assert ran.out.count("was made by other source code of the study") == 2


def test_data_that_was_changed_or_is_new(run, out, tmp_path, monkeypatch):
    """The study granularity leaves a part out without published weights."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("BITSMITH_DATA", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ("study", "all", "--quick", "--only", "granularity,memory", "--out", out)
    assert run(*command).code == 0
    assert run(*command).out.count("taken over") == 2
    (data / "new.npz").write_bytes(b"1")
    ran = run(*command)
    assert "parts were left out, and there is now" in ran.out
    assert "granularity: done" in ran.out
    assert "memory: taken over" in ran.out, "it lacked nothing"
    assert run(*command).out.count("taken over") == 2
    (data / "new.npz").write_bytes(b"22")
    ran = run(*command)
    assert "changed since" in ran.out
    assert "granularity: done" in ran.out


def test_a_study_that_fails_is_listed_and_the_rest_goes_on(run, out, monkeypatch, tmp_path):
    for error, reason in (
        (ZeroDivisionError("by <zero>"), "ZeroDivisionError: by <zero> (test_study_all.py, line "),
        (SchemeError("no such thing"), "no such thing"),
    ):

        def fails(self, options, error=error):
            raise error

        monkeypatch.setattr(Memory, "measure", fails)
        ran = run(*TWO, "--out", out, "--json", tmp_path / "all.json")
        assert ran.code == 1
        assert ran.err.startswith(f"error: 1 of 2 studies failed: memory: {reason}")
        assert "Traceback" not in ran.err
        page = (out / "report.html").read_text(encoding="utf-8")
        assert reason.replace("<", "&lt;").replace(">", "&gt;") in page
        assert studies["numbers"].title in page
        records = json.loads((tmp_path / "all.json").read_text())["records"]
        (ended,) = [r for r in records if r["study"] == "memory"]
        assert ended["outcome"] == "failed"
        assert ended["reason"].startswith(reason)
        assert not (out / KEPT / "memory.json").exists()
    monkeypatch.undo()
    assert "memory: done" in run(*TWO, "--out", out).out


def test_data_that_is_absent_is_no_failure(run, out, monkeypatch):
    def absent(self, options):
        raise DataError("no fashion_mnist.npz")

    monkeypatch.setattr(Memory, "measure", absent)
    ran = run(*TWO, "--out", out)
    assert ran.code == 0
    assert "memory: left out" in ran.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "no fashion_mnist.npz" in page
    assert "left out" in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["all", "--dataset", "digits", "--out", "x"], "leave out --dataset, or name one study"),
        (["all", "--set", "bits=3", "--out", "x"], "leave out --set, or name one study"),
        (["all", "--set", "b=3", "--dataset", "d", "--out", "x"], "--dataset and --set"),
        (["all", "--only", "memroy,numbers", "--out", "x"], "did you mean 'memory'"),
        (["all", "--only", " , ", "--out", "x"], "names of studies with commas"),
        (["all", "--quick"], "--out DIR"),
        (["memory", "--only", "numbers"], "--only is of all"),
        (["al", "--out", "x"], "unknown study 'al'"),
    ],
)
def test_what_is_refused_leaves_nothing(run, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    ran = run("study", *given)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Memory, "measure", lambda *_: pytest.fail("it was run"))
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert run(*TWO, "--out", taken).code == 2
    (tmp_path / "o" / "report.html").mkdir(parents=True)
    assert "it is a folder" in run(*TWO, "--out", tmp_path / "o").err
    assert taken.read_text() == "mine"


def test_a_data_folder_that_is_none(run, out, monkeypatch):
    monkeypatch.setenv("BITSMITH_DATA", str(out / "none"))
    ran = run(*TWO, "--out", out)
    assert ran.code == 2
    assert "not a folder; correct or unset it" in ran.err
    assert not out.exists()


def test_a_result_that_cannot_be_kept_is_on_the_page_all_the_same(run, out):
    out.mkdir()
    (out / "kept").write_text("mine")
    ran = run(*TWO, "--out", out)
    assert ran.code == 0, ran.err
    assert "note: the result of memory is not kept" in ran.out
    assert studies["memory"].title in (out / "report.html").read_text()


def test_no_study_has_the_name_of_all_of_them():
    assert "all" not in studies


class Process:
    """The command line in a process of its own, with a study that waits."""

    def __init__(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "waiting_study.py").write_text(WAITING)
        self.go, self.begun = tmp_path / "go", tmp_path / "begun"
        # In the background of a shell without job control, SIGINT is ignored from the start.
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += "import waiting_study; from bitsmith.cli import main; sys.exit(main())"
        self._command = [sys.executable, "-c", code, "study", "all", "--quick"]
        self._command += ["--only", "memory,waiting", "--out", str(out)]
        self._given = {"GO": str(self.go), "BEGUN": str(self.begun), "MPLBACKEND": "TkAgg"}
        self._given["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
        self._folder = tmp_path

    def start(self) -> subprocess.Popen[str]:
        given = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | self._given
        return subprocess.Popen(
            self._command, env=given, cwd=self._folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def interrupted(self, how: signal.Signals) -> tuple[int, str, str]:
        """Start it and send the signal in the middle of the second study."""
        process = self.start()
        deadline = time.monotonic() + 240
        while not self.begun.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(how)
        try:
            said, complained = process.communicate(timeout=240)
        finally:
            process.kill()
        return process.returncode, said, complained


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_interrupted_and_started_again_it_goes_on(tmp_path, out, how):
    """Without a display, too."""
    process = Process(tmp_path, out)
    code, said, complained = process.interrupted(how)
    assert "1 of 2  memory: done in" in said
    if how == signal.SIGINT:
        assert code == 130
        assert complained.startswith("error: interrupted; 1 of 2 studies are kept in ")
        assert "the same command goes on from there" in complained
    assert "Traceback" not in complained
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["memory.json"]
    process.go.touch()
    again = process.start()
    said, complained = again.communicate(timeout=240)
    assert again.returncode == 0, complained
    assert "1 of 2  memory: taken over from 2" in said
    assert "2 of 2  waiting: done in" in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 2
    assert "<dt>taken over from earlier runs</dt><dd>memory</dd>" in page
    assert no_leftovers(out)
