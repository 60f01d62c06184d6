"""The tables of the documentation show what ``benchmarks/results`` holds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _check(script: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(script), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tables_are_what_is_recorded() -> None:
    done = _check(ROOT / "benchmarks" / "tables.py")
    assert done.returncode == 0, done.stderr


def test_a_number_that_was_not_measured_is_found(tmp_path: Path) -> None:
    for name in ("benchmarks", "docs/how-it-works"):
        target = tmp_path / name
        target.mkdir(parents=True)
    for name in (
        "README.md",
        "docs/how-it-works/below-eight-bits.md",
        "benchmarks/tables.py",
        "benchmarks/low_bit.py",
        "benchmarks/record.py",
    ):
        (tmp_path / name).write_text((ROOT / name).read_text())
    results = tmp_path / "benchmarks" / "results"
    results.mkdir()
    recorded = (ROOT / "benchmarks/results/low_bit.json").read_text()
    (results / "low_bit.json").write_text(recorded.replace('"accuracy": 91', '"accuracy": 95'))
    done = _check(tmp_path / "benchmarks" / "tables.py")
    assert done.returncode == 1
    assert "README.md" in done.stderr
