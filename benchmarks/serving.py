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
import contextlib
import json
import statistics
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
from pressing import CORES, HERE, Request, Result, in_turns, pin, press, press_stream, ratio, server_of, started, tell
from remote_loop import Loop
from reporting import keep, say
from service import free_port, running_service
from stream_load import OBSERVATION

POLICY = {"hidden": [64, 64]}
FLEET = 512
JSON = "application/json"


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
            "stream, 32 under way": lambda: press_stream(bench.port, bench.key, policy, 32, bench.options),
            ":act, one at a time": lambda: press(bench.port, [request], alone),
            "stream, one at a time": lambda: press_stream(bench.port, bench.key, policy, 1, bench.options),
        },
        bench.options.rounds,
    )
    tell(results)
    times = ratio(results, "stream, 32 under way", ":act")
    bench.report("stream", times, f"{times:.2f} times the messages per second of :act", "at least 2")
    longer = ratio(results, "stream, one at a time", ":act, one at a time", "p50_ms")
    bench.report("stream, p50", longer, f"{longer:.2f} times the round trip of :act, median", "at most 1")


def remote(bench: Bench) -> None:
    """A whole adaptation of an environment at the client against the same loop with neither service nor network."""
    supervisor = server_of(bench.port)[0].parent()
    pin(supervisor.children(recursive=True), [0])
    pin([psutil.Process()], [1])
    for environment in ("Pendulum-v1", "HalfCheetah-v5"):
        loop = Loop(bench.client, environment)
        sides: dict[str, Callable[[int], float]] = {
            "pure loop": loop.pure,
            "remote, by the stream": loop.with_service,
            "remote, acting locally": lambda seed, loop=loop: loop.with_service(seed, local=True),
        }
        for seed in range(3):  # The first few start threads and connections.
            for side in sides.values():
                side(seed)
        seconds = {name: list[float]() for name in sides}
        for seed in range(5 * bench.options.rounds):
            for name, side in sides.items():
                seconds[name].append(side(seed))
        for name, each in seconds.items():
            print(f"  {environment:<16}{name:<24}{1e3 * statistics.median(each):6.1f} ms", flush=True)
        pure, *others = seconds.items()
        for name, each in others:
            times = statistics.median(a / b for a, b in zip(each, pure[1], strict=True))
            text = f"{times:.2f} times the pure loop's time"
            bench.report(f"{name}, {environment}", times, text, "at most 1.5")
    pin([*supervisor.children(recursive=True), psutil.Process()], CORES)


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
    # The load has a core of its own beside one process, and takes of the same two cores beside two.
    raw = ratio(results, "two processes", "one process")
    times = statistics.median(
        b["requests_per_s"] * 2 / (2 - b["load_cores"]) / a["requests_per_s"]
        for a, b in zip(results["one process"], results["two processes"], strict=True)
    )
    text = f"{times:.2f} times the requests of one by what the load leaves of two cores; {raw:.2f} by two cores"
    bench.report("processes", times, text, "at least 1.6")


def training(bench: Bench) -> None:
    """Latency with a run in progress on the same machine against that without; the server and the load share cores."""
    [policy] = bench.policies(1)
    pin(server_of(bench.port), CORES)
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
    main()
