"""A real service to measure: `headstart-server serve` on SQLite in a temporary folder, on a free port."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from headstart_client import Client, HeadstartError


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_service(**settings: str) -> Iterator[tuple[Client, int, str]]:
    """Start a service, wait until it is ready, and stop it afterwards.

    Args:
        **settings: Environment variables beside those that say where it is.

    Yields:
        A client with the administrator's key, the port, and the key.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as folder:
        port = free_port()
        environ = os.environ | {"HEADSTART_DATA": folder, "HEADSTART_PORT": str(port), "HEADSTART_DATABASE_URL": ""}
        environ |= settings
        command = [str(Path(sys.executable).with_name("headstart-server")), "serve"]
        server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(HeadstartError, FileNotFoundError):
                    key = (Path(folder) / "admin.key").read_text().strip()
                    client = Client(f"http://127.0.0.1:{port}", key)
                    client.health()
                    break
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the service did not start")
                time.sleep(0.1)
            with client:
                yield client, port, key
        finally:
            server.terminate()
            server.wait(30)
