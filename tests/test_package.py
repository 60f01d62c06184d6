"""The flat namespace of the package: what it promises is there, and nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import bitsmith


def test_every_public_name_resolves() -> None:
    assert set(bitsmith.__all__) <= set(dir(bitsmith))
    for name in bitsmith.__all__:
        assert getattr(bitsmith, name) is not None, name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(bitsmith.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    seen = {alias.name for node in imports for alias in node.names}
    assert seen | {"__version__"} == set(bitsmith.__all__)


def test_a_missing_name_is_an_attribute_error() -> None:
    assert not hasattr(bitsmith, "no_such_name")


def test_importing_does_not_import_pytorch() -> None:
    code = "import sys, bitsmith; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
