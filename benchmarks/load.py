"""A small HTTP load generator: one request after the other on each of several connections.

Run by the benchmarks as a process of its own, so that it never shares an interpreter with what it measures.

Run:    python benchmarks/load.py PORT CONNECTIONS SECONDS < request
Prints: one JSON object: requests, requests_per_s, p50_ms, p99_ms.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop


class Connection(asyncio.Protocol):
    """Sends the request, waits for the whole answer, sends it again."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self.request = request
        self.latencies = latencies
        self.buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.started = time.perf_counter()
        self.transport.write(self.request)

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


async def load(port: int, connections: int, seconds: float, request: bytes) -> dict[str, float]:
    """Measure after a second of warming up."""
    loop, latencies = asyncio.get_running_loop(), list[float]()
    opened = [
        await loop.create_connection(lambda: Connection(request, latencies), "127.0.0.1", port)
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


if __name__ == "__main__":
    arguments = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(uvloop.run(load(*arguments, sys.stdin.buffer.read()))))
