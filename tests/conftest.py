"""Every run alike: the same examples each time, and no silence about what was not run."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings

settings.register_profile("same-each-time", derandomize=True, deadline=None)
settings.load_profile("same-each-time")

DATA = "BITSMITH_DATA"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped because data is absent, before the closing line."""
    missing: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        if DATA in str(reason):
            missing[f"{report.nodeid}: {reason}"] += 1
    if not missing:
        return
    terminalreporter.section(f"{missing.total()} tests not run because data is absent")
    for line, _ in sorted(missing.items()):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"{DATA} names the folder that holds it; see docs/bad-input.md.")
