"""Servers on cores of their own, loads on others, sides that take turns: what measurements of serving stand on."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

HERE = Path(__file__).parent

CORES = sorted(os.sched_getaffinity(0))
"""What there was when this began."""

Request = tuple[str, dict[str, str], str]
"""Path, headers, body."""

Result = dict[str, float]


def server_of(port: int) -> list[psutil.Process]:
    """The processes that listen on a port."""
    listening = [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN"]
    found = {connection.pid for connection in listening if connection.pid is not None}
    # A supervisor has the socket too, and does not answer on it; of several that share it, one may be all that is told.
    processes = {psutil.Process(pid) for pid in found}
    family = processes | {process.parent() or process for process in processes}
    apis = {child for process in family for child in process.children() if "api" in child.cmdline()}
    return sorted(apis or processes, key=lambda process: process.pid)


def pin(processes: list[psutil.Process], cores: list[int]) -> None:
    """Give processes these cores alone, where the machine has them."""
    there = [core for core in cores if core in CORES] or CORES
    for process in processes:
        for thread in process.threads():
            os.sched_setaffinity(thread.id, there)
        process.cpu_affinity(there)


def cpu_s(processes: list[psutil.Process]) -> float:
    """CPU time that processes have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def press(port: int, requests: list[Request], options: argparse.Namespace, core: int | None = 1) -> Result:
    """Load a server with requests, from a core of the load's own unless that is None."""
    command = [str(HERE / "load.py"), str(port), str(options.connections), str(options.seconds)]
    return _loaded(port, command, options, core, json.dumps(requests))


def press_stream(port: int, key: str, policy: str, under_way: int, options: argparse.Namespace) -> Result:
    """Load a stream with so many messages under way."""
    command = [str(HERE / "stream_load.py"), str(port), key, policy, str(under_way), str(options.seconds)]
    return _loaded(port, command, options, 1)


def _loaded(port: int, command: list[str], options: argparse.Namespace, core: int | None, input_: str = "") -> Result:
    """What a load in a process of its own prints, and the CPU time that the server used for each request."""
    processes = server_of(port)
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    before = cpu_s(processes)
    done = subprocess.run(
        [*pinned, sys.executable, *command], input=input_, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr or done.stdout)
    result: Result = json.loads(done.stdout)
    # The warm-up second counts on both sides of each division, as a share of the whole.
    result["load_cores"] = result.pop("cpu_s", 0.0) / (options.seconds + 1)
    result["cpu_us"] = 1e6 * (cpu_s(processes) - before) / (result["requests_per_s"] * (options.seconds + 1))
    return result


def in_turns(sides: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Every side once a round."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            results[name].append(side())
    return results


def ratio(results: dict[str, list[Result]], of: str, to: str, what: str = "requests_per_s") -> float:
    """Median over rounds of one side's number to another's."""
    return statistics.median(a[what] / b[what] for a, b in zip(results[of], results[to], strict=True))


def tell(results: dict[str, list[Result]]) -> None:
    """A line for each side."""
    for name, rounds in results.items():
        median = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        print(
            f"  {name:<24}{median['requests_per_s']:9.0f} /s {median['cpu_us']:7.0f} CPU us each"
            f"   p50 {median['p50_ms']:.2f} ms   p99 {median['p99_ms']:.2f} ms",
            flush=True,
        )


@contextlib.contextmanager
def started(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """A server on core 0, once it listens."""
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not server_of(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.2)
        time.sleep(1.0)
        pin(server_of(port), [0])
        yield
    finally:
        server.terminate()
        server.wait(30)
