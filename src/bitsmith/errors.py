"""Every error bitsmith raises on purpose.

::

    BitsmithError                 exit code 2 from the command line, unless said otherwise
    ├── InputError (ValueError)   something handed in is wrong
    │   ├── UnknownNameError      no such format, recipe, target, data set, model …
    │   ├── SchemeError           a combination that cannot exist, a range that makes no sense
    │   ├── RecipeError           a rule that matches nothing, grammar that does not parse
    │   ├── DataError             data missing, empty, not finite, of the wrong shape
    │   └── WeightsError          a weights file that is damaged, unsafe or does not fit
    ├── CaptureError              the model cannot be traced; names the source line
    ├── ExportError               lists everything the file format cannot represent
    ├── RuntimeMissingError       an optional runtime is not installed
    └── CheckFailedError          exit code 1: the check that was asked for did not hold

A message names the thing, the rule, the values seen and the remedy, and lists every
offender at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BitsmithError",
    "CaptureError",
    "CheckFailedError",
    "DataError",
    "ExportError",
    "InputError",
    "RecipeError",
    "RuntimeMissingError",
    "SchemeError",
    "UnknownNameError",
    "WeightsError",
]


class BitsmithError(Exception):
    """Base of all errors that bitsmith raises on purpose."""

    exit_code = 2


class InputError(BitsmithError, ValueError):
    """Something that was handed in is wrong; the message says what and how to mend it."""


class UnknownNameError(InputError):
    """A name that is not in a registry.

    >>> print(UnknownNameError("calibrator", "percentle", ["mse", "percentile"]))
    unknown calibrator 'percentle'; did you mean 'percentile'? known: mse, percentile
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        super().__init__(f"unknown {kind} {name!r}{hint} known: {', '.join(names) or 'none'}")


class SchemeError(InputError):
    """A scheme that cannot exist, or a range no scheme can represent."""


class RecipeError(InputError):
    """A recipe that does not parse, or whose rule matches nothing."""


class DataError(InputError):
    """Data that is missing, empty, not finite or of the wrong shape."""


class WeightsError(InputError):
    """A weights file that is damaged, unsafe or does not fit the model."""


class CaptureError(BitsmithError):
    """The model cannot be captured as a graph; the message names the source line."""


class ExportError(BitsmithError):
    """A file format cannot represent the model; every offender is listed."""


class RuntimeMissingError(BitsmithError):
    """An optional runtime or library is needed and not installed."""


class CheckFailedError(BitsmithError):
    """The check that was asked for ran, and did not hold."""

    exit_code = 1
