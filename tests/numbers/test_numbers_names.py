"""The floor's public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bitsmith.numbers as numbers
from bitsmith.numbers.formats import formats


def test_all_names_exist_once() -> None:
    assert len(numbers.__all__) == len(set(numbers.__all__))
    assert all(hasattr(numbers, name) for name in numbers.__all__)
    assert all(getattr(numbers, name) == formats[name] for name in formats)


@pytest.mark.parametrize("family", ["formats", "calibrators"])
def test_no_name_hides_a_subpackage(family: str) -> None:
    assert getattr(numbers, family).__name__ == f"bitsmith.numbers.{family}"


def test_leaves_are_imported_on_the_first_look_up_only() -> None:
    code = (
        "import sys, bitsmith.numbers.calibrators as c\n"
        "leaf = 'bitsmith.numbers.calibrators.mse'\n"
        "assert leaf not in sys.modules\n"
        "assert 'mse' in c.calibrators and leaf in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
