"""Cells: kept as they end, in processes, within memory; killed runs go on."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from bitsmith.errors import SchemeError
from bitsmith.insight import cells as module
from bitsmith.insight.cells import Cell, default_memory, default_processes, run_cells


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    return tmp_path / "cells"


def cell(value, memory=0.1, work=1.0):
    return Cell({"value": value}, memory, work)


calls = []


def square(key):
    calls.append(key["value"])
    if key["value"] < 0:
        raise SchemeError("no roots below zero")
    return {"square": key["value"] ** 2, "threads": torch.get_num_threads()}


def run(values, processes=1, memory=1.0, measure=square, **given):
    return run_cells("test", [cell(v, **given) for v in values], measure, processes=processes,
                     memory=memory)  # fmt: skip


def test_answers_come_in_order_and_are_kept(cache):
    calls.clear()
    told = []
    given = [cell(3), cell(1, work=5.0), cell(2)]
    first = run_cells("test", given, square, processes=1, memory=1, advance=told.append)
    assert [a["square"] for a in first] == [9, 1, 4]
    assert calls == [1, 3, 2]  # the longest first
    assert told == [1, 1, 1]
    assert len(list(cache.iterdir())) == 3
    calls.clear()
    assert run([3, 1, 2]) == first
    assert calls == []
    assert [a["square"] for a in run([3, 7])] == [9, 49]
    assert calls == [7]


def test_one_thread_and_then_as_before():
    before = torch.get_num_threads()
    assert run([5])[0]["threads"] == 1
    assert torch.get_num_threads() == before


def test_a_refusal_is_an_answer_and_other_errors_are_not(cache):
    assert run([-1, 2])[0] == {"refused": "no roots below zero"}
    assert len(list(cache.iterdir())) == 1

    def broken(key):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run([8], measure=broken)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: "{", "is damaged"),
        (lambda held: "", "is damaged"),
        (lambda held: "[1, 2]", "is damaged"),
        (lambda held: json.dumps(held | {"bitsmith": "0.0.0"}), "was written by bitsmith 0.0.0"),
        (lambda held: json.dumps(held | {"format": 99}), "made anew"),
        (lambda held: json.dumps(held | {"key": {"value": 5}}), "another measurement"),
        (lambda held: json.dumps(held | {"answer": 3}), "another measurement"),
    ],
)
def test_a_file_of_no_use_is_made_anew(cache, caplog, change, said):
    first = run([4])
    path = next(cache.iterdir())
    path.write_text(change(json.loads(path.read_text())))
    calls.clear()
    with caplog.at_level(logging.WARNING):
        assert run([4]) == first
    assert calls == [4]
    assert said in caplog.text
    assert run([4]) == first
    assert calls == [4]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(module, "cache_folder", lambda: blocked)
    with caplog.at_level(logging.WARNING):
        assert run([2])[0]["square"] == 4
    assert "is not kept" in caplog.text


def test_what_needs_more_memory_than_there_may_be_is_refused_and_not_kept(cache):
    answers = run_cells("test", [cell(1, memory=2.0), cell(2)], square, processes=1, memory=0.5)
    assert "takes about 2 GB, and the limit is 0.5 GB" in answers[0]["refused"]
    assert answers[1]["square"] == 4
    assert len(list(cache.iterdir())) == 1
    assert run([1], memory=5.0)[0]["square"] == 1


def test_defaults_are_of_this_machine():
    assert 1 <= default_processes() <= (os.cpu_count() or 1)
    assert default_memory() > 0


SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    from bitsmith.insight.cells import Cell, run_cells
    from bitsmith.errors import SchemeError

    def work(key):
        Path(key["folder"], f"began-{key['value']}-{os.getpid()}").touch()
        if key["value"] == "die":
            os._exit(7)
        if key["value"] == "slow":
            time.sleep(600)
        if key["value"] == "refuse":
            raise SchemeError("it cannot be")
        if key["value"] == "break":
            raise ZeroDivisionError("by hand")
        return {"process": os.getpid()}

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        folder, names, memory = sys.argv[1], sys.argv[2].split(","), float(sys.argv[3])
        cells = [Cell({"value": n, "folder": folder}, 1.0) for n in names]
        answers = run_cells("script", cells, work, processes=2, memory=memory)
        print([a.get("refused", a.get("process") != os.getpid()) for a in answers])
"""


@pytest.fixture
def start(tmp_path):
    """Start the script with a cache of its own."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    started = []

    def begin(names, memory=8.0):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), names, str(memory)],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "own")},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def began(folder, name):
    return [int(p.name.rpartition("-")[2]) for p in folder.glob(f"began-{name}-*")]


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_run_goes_on_and_leaves_no_process_behind(tmp_path, start):
    process = start("a,slow,b")
    kept = tmp_path / "own" / "bitsmith" / "cells"
    until(lambda: kept.is_dir() and len(list(kept.glob("*.json"))) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    slow = began(tmp_path, "slow")
    until(lambda: not any(map(alive, slow)), 30)
    times = {p: p.stat().st_mtime_ns for p in kept.glob("*.json")}
    again = start("a,b,refuse")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert out.strip() == "[True, True, 'it cannot be']"
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert [len(began(tmp_path, n)) for n in ("a", "b")] == [1, 1]


def test_a_process_that_ends_without_an_answer_is_told(tmp_path, start):
    process = start("a,die,break")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ended without an answer (exit code 7" in err or "ZeroDivisionError: by hand" in err


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_memory_decides_how_many_run_side_by_side(tmp_path, start):
    process = start("slow,a", memory=1.5)  # each takes 1
    until(lambda: began(tmp_path, "slow"))
    time.sleep(1.0)
    assert not began(tmp_path, "a")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    slow = began(tmp_path, "slow")
    until(lambda: not any(map(alive, slow)), 30)
