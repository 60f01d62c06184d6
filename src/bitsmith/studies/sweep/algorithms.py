"""The names of algorithms that a sweep takes: ``auto``, or a rounding with what goes with it."""

from __future__ import annotations

from bitsmith.algorithms.rounding import Rounding
from bitsmith.errors import InputError

__all__ = ["AUTO", "check_algorithm", "flag", "rounding_of"]

AUTO = "auto"
#: Beside a rounding: channels get like ranges first; biases take back mean errors after.
_BESIDE = ("equalize", "bias")


def check_algorithm(text: str) -> None:
    """Refuse what is no algorithm.

    Raises:
        InputError: an unknown rounding; two of them; something twice.

    >>> check_algorithm("gptq+bias")
    """
    if text == AUTO:
        return
    parts = text.split("+")
    roundings = [p for p in parts if p not in _BESIDE]
    if len(roundings) != 1 or len(set(parts)) < len(parts):
        raise InputError(
            f"an algorithm is {AUTO}, or one rounding and, each at most once, "
            f"{' and '.join(_BESIDE)}, as in nearest+bias"
        )
    Rounding.registry[roundings[0]]


def rounding_of(text: str) -> str | None:
    """Return the rounding that is asked for; None: what bitsmith chooses."""
    return None if text == AUTO else next(p for p in text.split("+") if p not in _BESIDE)


def flag(text: str, part: str) -> bool | None:
    """Return whether a part goes with the rounding; None: what bitsmith chooses."""
    return None if text == AUTO else part in text.split("+")
