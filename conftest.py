"""Every run alike: the same examples each time, no network, no silence about what was not run."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("same-each-time", derandomize=True, deadline=None)
settings.load_profile("same-each-time")

DATA = "BITSMITH_DATA"
#: What pytest.importorskip says of a package, and the tests of one that carries data.
NO_PACKAGE = ("could not import ", "needs the package ")


def _on_this_machine(host: Any) -> bool:
    try:
        return host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Let every other machine look absent, so that a network changes no result and no time."""
    resolve = socket.getaddrinfo

    def refused(host: Any, *args: Any, **kwargs: Any) -> Any:
        if _on_this_machine(host.decode() if isinstance(host, bytes) else host):
            return resolve(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_NONAME, f"tests use no network, and ask for {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refused)
        for proxy in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(proxy, raising=False)
            patch.delenv(proxy.upper(), raising=False)
        yield


def pytest_runtest_setup() -> None:
    """Seed every test and doctest alike, whatever its process ran before."""
    random.seed(0)
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped because data or a package is absent, before the closing line."""
    tests: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        reason = str(reason).removeprefix("Skipped: ")
        if DATA in reason or reason.startswith(NO_PACKAGE):
            whole = isinstance(report, pytest.CollectReport)
            (files if whole else tests)[f"{report.nodeid}: {reason}"] += 1
    if not tests and not files:
        return
    counted = [
        f"{n} {kind}{'' if n == 1 else 's'}"
        for n, kind in ((tests.total(), "test"), (files.total(), "whole file"))
        if n
    ]
    terminalreporter.section(f"{' and '.join(counted)} not run: data or a package is absent")
    for line in [*sorted(tests), *sorted(files)]:
        terminalreporter.write_line(line)
    terminalreporter.write_line(
        f"{DATA} names the folder of the data, see docs/bad-input.md; make installs the packages."
    )
