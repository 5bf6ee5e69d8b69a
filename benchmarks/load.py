"""Load: one request after the other on each of several connections, by wrk where it is installed, else by this.

Run:    python benchmarks/load.py PORT CONNECTIONS SECONDS < requests.json
        where requests.json is a list of [path, headers, body], sent in turns.
Prints: one JSON object: requests, requests_per_s, p50_ms, p99_ms, cpu_s (of the load itself).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import uvloop

Request = tuple[str, dict[str, str], str]

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


class Connection(asyncio.Protocol):
    """Sends a request, waits for the whole answer, sends the next."""

    def __init__(self, requests: Iterator[bytes], latencies: list[float]) -> None:
        self.requests = requests
        self.latencies = latencies
        self.buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.started = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().index(b"content-length:") + 15
        if len(body) < int(head[at:].split(b"\r\n", 1)[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"the server answered {self.buffer[:500]!r}")
        self.buffer = b""
        self.latencies.append(time.perf_counter() - self.started)
        self.send()


async def load(port: int, connections: int, seconds: float, requests: list[Request]) -> dict[str, float]:
    """Measure after a second of warming up."""
    loop, latencies = asyncio.get_running_loop(), list[float]()
    turns = itertools.cycle([_bytes(port, *request) for request in requests])
    opened = [
        await loop.create_connection(lambda: Connection(turns, latencies), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.sleep(1.0)
    latencies.clear()
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed, measured = time.perf_counter() - started, sorted(latencies)
    for transport, _ in opened:
        transport.abort()
    return {
        "requests": len(measured),
        "requests_per_s": len(measured) / elapsed,
        "p50_ms": 1e3 * measured[len(measured) // 2],
        "p99_ms": 1e3 * measured[len(measured) * 99 // 100],
    }


def wrk(port: int, connections: int, seconds: float, requests: list[Request]) -> dict[str, float]:
    """The same by wrk, which warms up before in a run of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        entries = [
            f"wrk.format('POST', {json.dumps(path)}, {_table(headers)}, {json.dumps(body)})"
            for path, headers, body in requests
        ]
        script.write("local requests, i = nil, 0\n")
        script.write(f"init = function(args) requests = {{ {', '.join(entries)} }} end\n")
        script.write("request = function() i = i % #requests + 1; return requests[i] end\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", "--latency", "-s", script.name, f"http://127.0.0.1:{port}"]
        subprocess.run([*command, "-d1s"], check=True, capture_output=True)
        output = subprocess.run([*command, f"-d{seconds:g}s"], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(output)
    latencies = {
        share: float(number) * _UNITS_MS[unit]
        for share, number, unit in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s|m)\b", output)
    }
    requests_, elapsed, unit = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", output).groups()  # type: ignore[union-attr]
    seconds = float(elapsed) * _UNITS_MS[unit] / 1e3
    return {
        "requests": int(requests_),
        "requests_per_s": int(requests_) / seconds,
        "p50_ms": latencies["50"],
        "p99_ms": latencies["99"],
    }


def _table(headers: dict[str, str]) -> str:
    return "{" + ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()) + "}"


def _bytes(port: int, path: str, headers: dict[str, str], body: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def main(port: str, connections: str, seconds: str) -> None:
    """Measure and print."""
    arguments: tuple[Any, ...] = (int(port), int(connections), float(seconds), json.load(sys.stdin))
    result = wrk(*arguments) if shutil.which("wrk") else uvloop.run(load(*arguments))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps(result | {"cpu_s": sum(each.ru_utime + each.ru_stime for each in usage)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
