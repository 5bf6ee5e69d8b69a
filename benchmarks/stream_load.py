"""Load on one stream: so many messages under way, for some seconds, after one of warming up.

Run:    python benchmarks/stream_load.py PORT KEY POLICY UNDER_WAY SECONDS
Prints: one JSON object: requests_per_s, p50_ms, p99_ms.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time

import uvloop

OBSERVATION = [0.0123, -0.1534, 0.0271, 0.2943]


class Stream(asyncio.Protocol):
    """A client of one stream that does no more than it must: it sends one frame again and again, and counts answers."""

    def __init__(self, port: int, key: str, policy: str, under_way: int, latencies: list[float]) -> None:
        payload = json.dumps({"observation": OBSERVATION}).encode()
        mask = b"\1\2\3\4"
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.frame = bytes([0x81, 0x80 | len(payload)]) + mask + masked
        upgrade = {
            "Host": f"127.0.0.1:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Authorization": f"Bearer {key}",
        }
        lines = [f"GET /v1/policies/{policy}/stream HTTP/1.1", *(f"{name}: {value}" for name, value in upgrade.items())]
        self.handshake = ("\r\n".join(lines) + "\r\n\r\n").encode()
        self.under_way, self.latencies = under_way, latencies
        self.buffer, self.sent_at, self.open = b"", list[float](), False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self.handshake)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.open:
            head, found, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if not found:
                self.buffer = head
                return
            if b"101" not in head.split(b"\r\n")[0]:
                sys.exit(head.decode())
            self.open = True
            self.send(self.under_way)
        count = 0
        while len(self.buffer) >= 4:
            short = self.buffer[1] < 126
            size = self.buffer[1] if short else int.from_bytes(self.buffer[2:4])
            end = size + (2 if short else 4)
            if len(self.buffer) < end:
                break
            if self.buffer[0] != 0x81 or b'"action"' not in self.buffer[:end]:
                sys.exit(f"the server answered {self.buffer[:200]!r}")
            self.buffer = self.buffer[end:]
            count += 1
        if count:
            now = time.perf_counter()
            self.latencies += [now - at for at in self.sent_at[:count]]
            del self.sent_at[:count]
            self.send(count)

    def send(self, count: int) -> None:
        self.sent_at += [time.perf_counter()] * count
        self.transport.write(self.frame * count)


async def load_stream(port: int, key: str, policy: str, under_way: int, seconds: float) -> dict[str, float]:
    """Measure."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(
        lambda: Stream(port, key, policy, under_way, latencies), "127.0.0.1", port
    )
    await asyncio.sleep(1.0)
    latencies.clear()
    started_at = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed, measured = time.perf_counter() - started_at, sorted(latencies)
    transport.abort()
    return {
        "requests_per_s": len(measured) / elapsed,
        "p50_ms": 1e3 * measured[len(measured) // 2],
        "p99_ms": 1e3 * measured[len(measured) * 99 // 100],
    }


if __name__ == "__main__":
    _, port_, key_, policy_, under_way_, seconds_ = sys.argv
    print(json.dumps(uvloop.run(load_stream(int(port_), key_, policy_, int(under_way_), float(seconds_)))))
