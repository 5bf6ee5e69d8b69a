from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import ScriptedServer

from headstart_client import Client, Retry


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the keys or the service of whoever runs it."""
    for name in ("HEADSTART_URL", "HEADSTART_API_KEY", "HEADSTART_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """Ctrl-C reaches what the tests start, also where a shell runs them in the background and has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, "hs_test", timeout_s=5, retry=Retry(first_s=0.001)) as client:
        yield client
