"""What every test runs under: no network, one place for shared data, a count of the tests that used it."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import pytest

# Side by side, each process keeps to one core; torch reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("LATENTSB_TEST_DATA", Path(__file__).parents[1] / ".." / "shared")).resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared test data (`LATENTSB_TEST_DATA`)."""
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no shared test data at {SHARED}; set LATENTSB_TEST_DATA")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    ran = sum("shared" in r.keywords for r in terminalreporter.stats.get("passed", []))
    skipped = sum("shared" in r.keywords for r in terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"tests on shared data: {ran} ran, {skipped} skipped ({SHARED})")


def _local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a path of a Unix socket
    host = address[0]
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may download: a connection that leaves this machine fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if not _local(address):
            raise RuntimeError(f"a test tried to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
