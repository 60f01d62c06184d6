"""The documentation is true: its Python runs, and its commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bitsmith.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\n\s*$")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return ``(line, code)`` of every block of a language that is to be run."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start(2)), found[2])
        for found in BLOCK.finditer(text)
        if found[1] == language and not NOT_RUN.search(text[: found.start()])
    ]


def with_blocks(language: str) -> list[object]:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in PAGES
        if blocks(page, language)
    ]


def as_program(page: Path) -> str:
    """Return the page's Python, each line at its line in the page, so that errors point there."""
    lines = [""] * (page.read_text().count("\n") + 1)
    for start, code in blocks(page, "python"):
        for offset, line in enumerate(code.splitlines()):
            lines[start + offset] = line
    return "\n".join(lines)


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path):
    # A process of its own: what a page registers must not reach other tests.
    program = tmp_path / f"{page.stem.replace('-', '_')}_page.py"
    program.write_text(as_program(page))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:bitsmith", program.name],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{page.relative_to(ROOT)} (same line numbers):\n{done.stderr}"


@pytest.mark.parametrize("page", with_blocks("sh"))
def test_commands_of_a_page_exist_with_their_options(page: Path):
    commands = typer.main.get_group(app).commands
    for _, code in blocks(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["bitsmith"] or words[1].startswith("-"):
                continue
            assert words[1] in commands, line
            options = {name for p in commands[words[1]].params for name in (*p.opts, "--help")}
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= options, f"{line}: no {sorted(given - options)}"


def test_a_broken_snippet_is_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\nassert x == 2\n```\n")
    assert as_program(page).splitlines()[3:5] == ["x = 1", "assert x == 2"]
    page.write_text("<!-- not run: needs data -->\n\n```python\nassert False\n```\n")
    assert blocks(page, "python") == []
