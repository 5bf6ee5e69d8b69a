"""Connections on which the head of a request never comes, to a server that looks at them five times a second."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from fastapi import FastAPI

from app.heads import Heads

ASK = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    config = uvicorn.Config(app, port=0, log_config=None, ws="websockets-sansio", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    config.callback_notify, config.timeout_notify = Heads(server).look, 0.2  # type: ignore[assignment]
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(5)
    return connection


def ask(connection: socket.socket) -> bytes:
    connection.sendall(ASK)
    return connection.recv(65536)


@pytest.mark.parametrize("sent", [b"", ASK[:-2]])
@pytest.mark.parametrize("requests_before", [0, 1])
def test_a_connection_on_which_no_head_comes_is_closed(port: int, sent: bytes, requests_before: int) -> None:
    with connect(port) as connection:
        for _ in range(requests_before):
            assert ask(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_connection_with_a_request_now_and_then_stays(port: int) -> None:
    with connect(port) as connection:
        for _ in range(12):
            assert ask(connection).startswith(b"HTTP/1.1 200")
            time.sleep(0.1)


def test_a_request_whose_body_is_still_to_come_is_waited_for(
    port: int, admin_headers: Callable[[], dict[str, str]]
) -> None:
    with connect(port) as connection:
        head = ["POST /v1/tasks HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 2"]
        head += [f"{name}: {value}" for name, value in admin_headers().items()]
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        time.sleep(1.0)
        connection.sendall(b"{}")
        assert connection.recv(65536).startswith(b"HTTP/1.1 422")
