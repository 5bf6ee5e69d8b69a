"""`:act` for one observation against a bare uvicorn endpoint that returns a constant, one process each.

Both take turns, so that a machine that drifts slows both; 32 connections by default.

Run:    python benchmarks/bench_act.py [--rounds 5] [--seconds 4] [--connections 32]
Prints: requests per second, CPU microseconds a request and latencies of each (medians), and the ratio of the rates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from headstart_client import Client
from service import free_port, running_service

HERE = Path(__file__).parent
POLICY = {"hidden": [64, 64]}


def request_bytes(port: int, path: str, key: str) -> bytes:
    """One POST of one observation of CartPole."""
    body = b'{"observations":[[0.0123,-0.1534,0.0271,0.2943]]}'
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def measure(port: int, server: psutil.Process, request: bytes, options: argparse.Namespace) -> dict[str, float]:
    """Load one server; adds the CPU time that its process used for each request."""
    command = [sys.executable, str(HERE / "load.py"), str(port), str(options.connections), str(options.seconds)]
    before = server.cpu_times()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
        output, _ = load.communicate(request)
    if load.returncode:
        sys.exit(1)
    after = server.cpu_times()
    result: dict[str, float] = json.loads(output)
    # The warm-up second counts on both sides of the division, as a share of the whole.
    requests = result["requests_per_s"] * (options.seconds + 1)
    result["cpu_us"] = 1e6 * (after.user + after.system - before.user - before.system) / requests
    return result


def listener(port: int) -> psutil.Process:
    """The process that listens on a port."""
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            return psutil.Process(connection.pid)
    raise RuntimeError(f"nobody listens on port {port}")


def policy_to_act(client: Client) -> str:
    """Adapt a new policy of 4-64-64-(2+1) units."""
    task = client.tasks.create("CartPole-v1", name="bench")
    return str(client.adapt(None, task, policy=POLICY, steps=1, episodes=2).policy)


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    bare_port = free_port()
    uvicorn = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(bare_port), "--no-access-log"]
    quiet = ["--loop", "uvloop", "--http", "httptools", "--log-level", "error"]
    with running_service() as (client, port, key), subprocess.Popen([*uvicorn, *quiet], cwd=HERE) as bare:
        path = f"/v1/policies/{policy_to_act(client)}:act"
        time.sleep(1)
        sides = {
            "bare uvicorn": (bare_port, psutil.Process(bare.pid), request_bytes(bare_port, "/", "hs_0")),
            ":act": (port, listener(port), request_bytes(port, path, key)),
        }
        results: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, (at, server, request) in sides.items():
                results[name].append(measure(at, server, request, options))
        bare.terminate()
    for name, rounds in results.items():
        median = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        print(
            f"{name:<14}{median['requests_per_s']:8.0f} requests/s {median['cpu_us']:7.0f} CPU us a request"
            f"   p50 {median['p50_ms']:.1f} ms   p99 {median['p99_ms']:.1f} ms"
        )
    pairs = list(zip(results[":act"], results["bare uvicorn"], strict=True))
    rates = [a["requests_per_s"] / b["requests_per_s"] for a, b in pairs]
    costs = [b["cpu_us"] / a["cpu_us"] for a, b in pairs]
    print(f"act: {statistics.median(rates):.3f} of a bare endpoint's requests per second (goal: at least 0.2)")
    print(f"act: {statistics.median(costs):.3f} of it by CPU time")


if __name__ == "__main__":
    main()
