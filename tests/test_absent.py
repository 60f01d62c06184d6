"""What a run of the tests does where data, a package or the network is absent."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

TESTS = {
    "test_data.py": """
        import pytest

        @pytest.mark.parametrize("n", [1, 2])
        def test_real(n):
            pytest.skip("no such.npz in BITSMITH_DATA")

        @pytest.mark.skipif(True, reason="signals of POSIX")
        def test_elsewhere(): ...
    """,
    "test_one.py": """
        import pytest

        def test_there(): ...

        def test_absent():
            pytest.importorskip("no_such_package")
    """,
    "test_whole.py": """
        import pytest

        pytest.importorskip("no_such_package.part")

        def test_first(): ...

        def test_second(): ...
    """,
}


def run_of(folder: Path, *arguments: str) -> str:
    for name, text in TESTS.items():
        (folder / name).write_text("\n".join(line[8:] for line in text.splitlines()))
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["one process", "two"])
def test_what_was_not_run_is_listed_and_counted(tmp_path: Path, arguments: tuple[str, ...]):
    if arguments:
        pytest.importorskip("xdist")
    printed = run_of(tmp_path, *arguments)
    assert "3 tests and 1 whole file not run" in printed
    listed = printed[printed.index("not run:") :].splitlines()[1:6]
    assert listed == [
        "test_data.py::test_real[1]: no such.npz in BITSMITH_DATA",
        "test_data.py::test_real[2]: no such.npz in BITSMITH_DATA",
        "test_one.py::test_absent: could not import 'no_such_package': "
        "No module named 'no_such_package'",
        "test_whole.py: could not import 'no_such_package.part': No module named 'no_such_package'",
        "BITSMITH_DATA names the folder of the data, see docs/bad-input.md; "
        "make installs the packages.",
    ]


def test_other_machines_look_absent():
    with pytest.raises(urllib.error.URLError, match="tests use no network, and ask for example"):
        urllib.request.urlopen("https://example.org/cifar-10-binary.tar.gz", timeout=5)
