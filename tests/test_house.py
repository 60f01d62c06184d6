"""The rules of the house that no linter checks."""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
LONGEST = 300
FORBIDDEN = {"utils", "util", "helpers", "common", "core", "backends", "misc"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def classes(path: Path) -> list[ast.ClassDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]


def words(nodes: list[ast.expr]) -> set[str]:
    """Return the last name of each expression: ``abc.ABC`` gives ``ABC``."""
    named = [n.func if isinstance(n, ast.Call) else n for n in nodes]
    named = [n.value if isinstance(n, ast.Subscript) else n for n in named]
    return {n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "") for n in named}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_has_one_subject_and_fits_a_reader(path: Path):
    assert len(path.read_text().splitlines()) <= LONGEST


def test_no_place_for_leftovers():
    parts = {part for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & FORBIDDEN


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_class_is_abstract_or_final(path: Path):
    """Abstract: has an abstract method. The error tree is meant to be subclassed."""
    if path.name == "errors.py":
        return
    for found in classes(path):
        methods = [n for n in found.body if isinstance(n, ast.FunctionDef)]
        abstract = any("abstractmethod" in words(m.decorator_list) for m in methods)
        final = "final" in words(found.decorator_list)
        private = found.name.startswith("_") or words(found.bases) & {"TypedDict", "Protocol"}
        assert abstract != final or private, f"{found.name} is abstract or @final, not both"


def test_members_of_a_family_do_not_import_each_other():
    """A leaf is a module whose class statement registers: ``class Digits(Dataset, name=…)``."""
    families: defaultdict[Path, set[Path]] = defaultdict(set)
    for path in SOURCES:
        registers = [k for c in classes(path) for k in c.keywords if k.arg == "name"]
        if registers and path.stem != "__init__":
            families[path.parent].add(path)
    assert any(folder.name == "data" for folder in families)
    for leaves in families.values():
        for one, other in itertools.permutations(leaves, 2):
            module = ".".join(other.relative_to(ROOT / "src").with_suffix("").parts)
            imported = {
                node.module
                for node in ast.walk(ast.parse(one.read_text()))
                if isinstance(node, ast.ImportFrom)
            }
            assert module not in imported, f"{name(one)} imports {module}"


def test_every_silenced_check_has_a_reason():
    """``# type: ignore[code]  # why``, and likewise for the linter."""
    mark = re.compile(r"#\s*(?:type: ignore|noqa)(?P<code>\S*(?: [A-Z]+\d+)?)(?P<reason>.*)")
    bare = [
        f"{name(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := mark.search(line)) and not re.match(r"\s+#\s+\w", found["reason"])
    ]
    assert bare == []


def test_no_function_is_there_twice():
    """Of three statements or more, whatever it is called."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[ast.get_docstring(node) is not None :]
                if sum(isinstance(n, ast.stmt) for b in body for n in ast.walk(b)) >= 3:
                    written = "\n".join(map(ast.dump, body))
                    places[written].append(f"{name(path)}: {node.name}")
    assert [twice for twice in places.values() if len(twice) > 1] == []


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_tests_lie_where_their_subject_does(path: Path):
    """``tests/numbers/integer/test_x.py`` is about ``src/bitsmith/numbers/integer``."""
    place = path.parent.relative_to(ROOT / "tests")
    if str(place) in (".", "docs"):
        return
    mirrored = ROOT / "src" / "bitsmith" / place
    assert mirrored.is_dir() or mirrored.with_suffix(".py").is_file()


def test_the_documentation_names_no_place_of_one_machine():
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *SOURCES]
    assert [name(p) for p in pages if "/work/" in p.read_text() or "/home/" in p.read_text()] == []
