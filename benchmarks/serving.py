"""Acting, as those who call the service see it: against a bare endpoint, a model server, one policy, one process.

The server has core 0 to itself and the load core 1, unless said otherwise; sides take turns, so that a machine that
drifts slows both. The policy has 4-64-64-(2+1) units, an observation of 4 numbers a request, 32 connections. Load is
wrk's where that is installed.

Run:    python benchmarks/serving.py [act mixed fleet stream remote processes training memory ...]
            [--rounds 5] [--seconds 4] [--connections 32] [--mlserver PYTHON] [--json FILE]
        where PYTHON is an interpreter that has MLServer, of an environment of its own (pip install mlserver==1.7.1);
        without it that side is left out.
Prints: a line for each number, medians over rounds, with its goal.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
from headstart_client import Client
from learning import add_json
from reporting import keep, say
from service import free_port, running_service

HERE = Path(__file__).parent
POLICY = {"hidden": [64, 64]}
OBSERVATION = [0.0123, -0.1534, 0.0271, 0.2943]
FLEET = 512
JSON = "application/json"

Request = tuple[str, dict[str, str], str]
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
    there = [core for core in cores if core in os.sched_getaffinity(0)] or list(os.sched_getaffinity(0))
    for process in processes:
        for thread in process.threads():
            os.sched_setaffinity(thread.id, there)
        process.cpu_affinity(there)


def cpu_s(processes: list[psutil.Process]) -> float:
    """CPU time that processes have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def press(port: int, requests: list[Request], options: argparse.Namespace, core: int | None = 1) -> Result:
    """Load a server; adds the CPU time that it used for each request."""
    processes = server_of(port)
    command = [sys.executable, str(HERE / "load.py"), str(port), str(options.connections), str(options.seconds)]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    before = cpu_s(processes)
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr or done.stdout)
    result: Result = json.loads(done.stdout)
    # The warm-up second counts on both sides of the division, as a share of the whole.
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


class Bench:
    """A running service with policies to act with, and what was measured."""

    def __init__(self, client: Client, port: int, key: str, options: argparse.Namespace) -> None:
        self.client, self.port, self.key, self.options = client, port, key, options
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": JSON}
        self.numbers: dict[str, float] = {}
        self._task = client.tasks.create("CartPole-v1", name="bench", horizon=10)
        self._policies: list[str] = []

    def policies(self, count: int) -> list[str]:
        """So many different adapted policies."""
        while len(self._policies) < count:
            asked = [self._task] * min(1000, count - len(self._policies))
            seed = len(self._policies)
            method = {"name": "inner-loop", "episodes": 2, "evaluation_episodes": 1}
            done = self.client.adaptations.create_many(None, asked, policy=POLICY, method=method, seed=seed)
            self._policies += [str(each.policy) for each in done]
        return self._policies[:count]

    def act_request(self, policy: str) -> Request:
        """A request for one action."""
        return f"/v1/policies/{policy}:act", self.headers, json.dumps({"observations": [OBSERVATION]})

    def fleet_request(self, policies: list[str]) -> Request:
        """A request for an action of each policy."""
        pairs = [{"policy": policy, "observation": OBSERVATION} for policy in policies]
        return "/v1/policies:act", self.headers, json.dumps({"pairs": pairs})

    def act_with_all(self, policies: list[str]) -> None:
        """Have every policy act once, so that all are hot."""
        for start in range(0, len(policies), 1000):
            path, headers, body = self.fleet_request(policies[start : start + 1000])
            url = f"http://127.0.0.1:{self.port}{path}"
            httpx.post(url, content=body, headers=headers, timeout=120).raise_for_status()

    def report(self, name: str, value: float, text: str, goal: str) -> None:
        """Print a number and keep it."""
        self.numbers[name] = value
        print(f"{name}: {text} (goal: {goal})", flush=True)


@contextlib.contextmanager
def bare_uvicorn() -> Iterator[int]:
    """A bare endpoint; its port."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(port), "--no-access-log"]
    quiet = ["--loop", "uvloop", "--http", "httptools", "--log-level", "error", "--no-server-header"]
    with started([*command, *quiet], port, HERE):
        yield port


@contextlib.contextmanager
def mlserver(python: str, parameters: bytes) -> Iterator[int]:
    """MLServer with the same policy, in process; its port."""
    ports = [free_port() for _ in range(3)]
    with tempfile.TemporaryDirectory(prefix="headstart-mlserver-") as folder:
        (Path(folder) / "policy.safetensors").write_bytes(parameters)
        settings = {"debug": False, "parallel_workers": 0, "metrics_endpoint": None}
        settings |= dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
        (Path(folder) / "settings.json").write_text(json.dumps(settings))
        model = {"name": "policy", "implementation": "mlserver_policy.PolicyModel"}
        (Path(folder) / "model-settings.json").write_text(json.dumps(model))
        (Path(folder) / "mlserver_policy.py").write_bytes((HERE / "mlserver_policy.py").read_bytes())
        with started([str(Path(python).parent / "mlserver"), "start", folder], ports[0], Path(folder)):
            yield ports[0]


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


def act(bench: Bench) -> None:
    """`:act` against a bare endpoint and MLServer."""
    options = bench.options
    [policy] = bench.policies(1)
    pin(server_of(bench.port), [0])
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(bare_uvicorn())
        request = bench.act_request(policy)
        sides = {
            "bare uvicorn": lambda: press(bare, [("/", bench.headers, request[2])], options),
            ":act": lambda: press(bench.port, [request], options),
        }
        if options.mlserver:
            path = stack.enter_context(tempfile.TemporaryDirectory())
            file = bench.client.policies.download(policy, Path(path) / "policy.safetensors")
            peer = stack.enter_context(mlserver(options.mlserver, file.read_bytes()))
            tensor = {"name": "observation", "shape": [1, 4], "datatype": "FP32", "data": OBSERVATION}
            body = json.dumps({"inputs": [tensor]})
            asked: Request = ("/v2/models/policy/infer", {"Content-Type": JSON}, body)
            sides["MLServer"] = lambda: press(peer, [asked], options)
        results = in_turns(sides, options.rounds)
    tell(results)
    share = ratio(results, ":act", "bare uvicorn")
    bench.report("act", share, f"{share:.3f} of a bare endpoint's requests per second", "at least 0.4")
    slower = ratio(results, ":act", "bare uvicorn", "p99_ms")
    bench.report("act p99", slower, f"{slower:.2f} times a bare endpoint's", "at most 3")
    if "MLServer" in results:
        faster = ratio(results, ":act", "MLServer")
        bench.report("act, MLServer", faster, f"{faster:.1f} times MLServer's requests per second", "at least 6")


def mixed(bench: Bench) -> None:
    """Traffic over a thousand policies, once hot, against that over one."""
    policies = bench.policies(1000)
    bench.act_with_all(policies)
    pin(server_of(bench.port), [0])
    results = in_turns(
        {
            "one policy": lambda: press(bench.port, [bench.act_request(policies[0])], bench.options),
            "a thousand policies": lambda: press(bench.port, [bench.act_request(p) for p in policies], bench.options),
        },
        bench.options.rounds,
    )
    tell(results)
    share = ratio(results, "a thousand policies", "one policy")
    bench.report("mixed", share, f"{share:.3f} of the requests per second of one policy", "at least 0.85")


def fleet(bench: Bench) -> None:
    """512 different policies in one request against 512 requests."""
    # As they come: not one after the other in memory.
    policies = [bench.policies(1000)[i] for i in np.random.default_rng(0).permutation(1000)[:FLEET]]
    pin(server_of(bench.port), [0])
    alone = argparse.Namespace(**vars(bench.options) | {"connections": 1})
    results = in_turns(
        {
            ":act": lambda: press(bench.port, [bench.act_request(p) for p in policies], bench.options),
            "fleet of 512": lambda: press(bench.port, [bench.fleet_request(policies)], alone),
        },
        bench.options.rounds,
    )
    tell(results)
    each = statistics.median(r["cpu_us"] / FLEET for r in results["fleet of 512"])
    bench.report("fleet", each, f"{each:.2f} microseconds of CPU a pair, JSON and all", "at most 4")
    times = statistics.median(
        f["requests_per_s"] * FLEET / a["requests_per_s"]
        for a, f in zip(results[":act"], results["fleet of 512"], strict=True)
    )
    text = f"1/{times:.1f} of the time of 512 acts on {bench.options.connections} connections"
    bench.report("fleet, time", times, text, "at most 1/20")


def stream(bench: Bench) -> None:
    """Messages of one stream against requests."""
    [policy] = bench.policies(1)
    pin(server_of(bench.port), [0])
    alone = argparse.Namespace(**vars(bench.options) | {"connections": 1})
    request = bench.act_request(policy)
    results = in_turns(
        {
            ":act": lambda: press(bench.port, [request], bench.options),
            "stream, 32 under way": lambda: press_stream(bench, policy, 32),
            ":act, one at a time": lambda: press(bench.port, [request], alone),
            "stream, one at a time": lambda: press_stream(bench, policy, 1),
        },
        bench.options.rounds,
    )
    tell(results)
    times = ratio(results, "stream, 32 under way", ":act")
    bench.report("stream", times, f"{times:.2f} times the messages per second of :act", "at least 2")
    longer = ratio(results, "stream, one at a time", ":act, one at a time", "p50_ms")
    bench.report("stream, p50", longer, f"{longer:.2f} times the round trip of :act, median", "at most 1")


def press_stream(bench: Bench, policy: str, under_way: int) -> Result:
    """Load a stream with so many messages under way, in a process of its own on core 1."""
    processes = server_of(bench.port)
    command = ["taskset", "-c", "1", sys.executable, __file__, "--stream", str(bench.port), bench.key, policy]
    before = cpu_s(processes)
    done = subprocess.run(
        [*command, str(under_way), str(bench.options.seconds)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    result: Result = json.loads(done.stdout)
    result["cpu_us"] = 1e6 * (cpu_s(processes) - before) / (result["requests_per_s"] * (bench.options.seconds + 1))
    return result


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


async def load_stream(port: int, key: str, policy: str, under_way: int, seconds: float) -> Result:
    """Measure a stream after a second of warming up."""
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


def remote(bench: Bench) -> None:
    """A whole adaptation of an environment at the client against the same loop with neither service nor network."""
    from remote_loop import Loop

    pin([psutil.Process()], [1])
    loop = Loop(bench.client)
    with_service, pure = [], []
    for seed in range(3 + 5 * bench.options.rounds):
        pure.append(loop.pure(seed))
        with_service.append(loop.with_service(seed))
    # The first few start threads and connections.
    pairs = list(zip(with_service, pure, strict=True))[3:]
    times = statistics.median(a / b for a, b in pairs)
    print(f"  pure loop {1e3 * statistics.median(b for _, b in pairs):6.1f} ms")
    print(f"  remote    {1e3 * statistics.median(a for a, _ in pairs):6.1f} ms")
    bench.report("remote", times, f"{times:.2f} times the pure loop's time", "at most 1.5")
    pin([psutil.Process()], sorted(os.sched_getaffinity(os.getppid())))


def processes(bench: Bench) -> None:
    """Two API processes on two cores against one on one core."""
    [policy] = bench.policies(1)
    pin(server_of(bench.port), [0])
    with running_service(HEADSTART_API_PROCESSES="2") as (client, port, key):
        two = Bench(client, port, key, bench.options)
        [other] = two.policies(1)
        pin(server_of(port)[:1], [0])
        pin(server_of(port)[1:], [1])
        results = in_turns(
            {
                "one process": lambda: press(bench.port, [bench.act_request(policy)], bench.options),
                "two processes": lambda: press(port, [two.act_request(other)], bench.options, core=None),
            },
            bench.options.rounds,
        )
    tell(results)
    raw = ratio(results, "two processes", "one process")
    # The load has a core to itself beside one process, and takes of both beside two: by CPU time it does not count.
    times = statistics.median(
        2 * a["cpu_us"] / b["cpu_us"] for a, b in zip(results["one process"], results["two processes"], strict=True)
    )
    text = (
        f"{times:.2f} times the requests of one for the time of two cores ({raw:.2f} with the load on the same cores)"
    )
    bench.report("processes", times, text, "at least 1.6")


def training(bench: Bench) -> None:
    """Latency with a run in progress on the same machine against that without; the server and the load share cores."""
    [policy] = bench.policies(1)
    everywhere = sorted(os.sched_getaffinity(0))
    pin(server_of(bench.port), everywhere)
    request = [bench.act_request(policy)]
    steady = argparse.Namespace(**vars(bench.options) | {"connections": 4})

    def beside_a_run() -> Result:
        run = bench.client.runs.create(
            "bench", learner={"name": "maml"}, tasks={"family": "cartpole-physics"}, stop={"seconds": 120}
        )
        while bench.client.runs.get(run).progress.iterations < 2:
            time.sleep(0.2)
        try:
            return press(bench.port, request, steady, core=None)
        finally:
            bench.client.runs.cancel(run)
            while not bench.client.runs.get(run).finished:
                time.sleep(0.1)

    sides = {"without a run": lambda: press(bench.port, request, steady, core=None), "with a run": beside_a_run}
    results = in_turns(sides, bench.options.rounds)
    tell(results)
    times = ratio(results, "with a run", "without a run", "p99_ms")
    bench.report("training", times, f"p99 with a run in progress {times:.2f} times that without", "at most 3")


def memory(bench: Bench) -> None:
    """Ten thousand hot policies."""
    count = 10_000
    with running_service(HEADSTART_HOT_BYTES=str(2**30)) as (client, port, key):
        full = Bench(client, port, key, bench.options)
        policies = full.policies(count)
        pin([psutil.Process()], [1])
        # Whatever making them took is not what keeping them takes.
        [api] = server_of(port)
        api.kill()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (client.health().ready and server_of(port) != [api]):
            time.sleep(0.5)
        [api] = server_of(port)
        client.act(policies[0], OBSERVATION)
        empty = api.memory_info().rss
        full.act_with_all(policies)
        taken = (api.memory_info().rss - empty) / 1e6
    bench.report("memory", taken, f"{taken:.0f} MB for {count} hot policies above the empty server", "at most 400")


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part for part in (act, mixed, fleet, stream, remote, processes, training, memory)
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--mlserver", help="Python of an environment that has MLServer")
    add_json(parser)
    options = parser.parse_args()
    with running_service() as (client, port, key):
        bench = Bench(client, port, key, options)
        for name in options.parts or PARTS:
            say(f"{name}: {(PARTS[name].__doc__ or '').strip()}")
            PARTS[name](bench)
        keep(options.json, bench.numbers)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stream"]:
        import uvloop

        _, _, port_, key_, policy_, under_way_, seconds_ = sys.argv
        print(json.dumps(uvloop.run(load_stream(int(port_), key_, policy_, int(under_way_), float(seconds_)))))
    else:
        main()
