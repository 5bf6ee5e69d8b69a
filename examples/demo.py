"""The whole story in three minutes: register, meta-train, version, adapt to tasks never seen, act.

Starts a server of its own on SQLite under var/demo. Exits with 1 unless adapting helps clearly: the mean return after
one inner step must be above both the return before it and what the same budget buys a random initialisation, with
intervals that do not touch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from headstart_client import Adaptation, Client, HeadstartError, Metric

DATA = Path("var/demo")
PICTURE = DATA / "demo.png"
FAMILY, MODEL, HELD_OUT = "cartpole-reversed", "cartpole", 20
POLICY = {"hidden": [64, 32], "activation": "tanh"}
METHOD = {"name": "inner-loop", "steps": 1, "episodes": 20, "learning_rate": 1.0}

Interval = tuple[float, float, float]


def start_server() -> tuple[subprocess.Popen[bytes], Client]:
    """A server on a free port, and a client with its administrator's key."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    DATA.mkdir(parents=True, exist_ok=True)
    environ = os.environ | {"HEADSTART_DATA": str(DATA), "HEADSTART_PORT": str(port), "HEADSTART_DATABASE_URL": ""}
    command = [str(Path(sys.executable).with_name("headstart-server")), "serve"]
    with (DATA / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(HeadstartError, FileNotFoundError):
            client = Client(f"http://127.0.0.1:{port}", (DATA / "admin.key").read_text().strip())
            if client.health().ready:
                return server, client
        time.sleep(0.1)
    server.kill()
    sys.exit(f"the server did not start; {DATA / 'server.log'} says why")


def interval(returns: list[float]) -> Interval:
    """Mean over tasks with its 95 % bootstrap interval (percentiles of 10,000 resamples of the tasks)."""
    x = np.array(returns)
    means = x[np.random.default_rng(0).integers(0, len(x), (10_000, len(x)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(x.mean()), float(low), float(high)


def after(adaptation: Adaptation) -> float:
    """Mean return of fresh episodes of the adapted policy."""
    assert adaptation.after is not None
    return adaptation.after.mean_return


def draw(metrics: list[Metric], before: Interval, adapted: Interval, scratch: Interval) -> None:
    """Save the learning curve and the result on the held-out tasks."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=[3, 2], layout="constrained", sharey=True)
    seconds = [m.seconds for m in metrics]
    left.plot(seconds, [m.values["return_after"] for m in metrics], label="after one inner step", color="#1b7f5c")
    left.plot(seconds, [m.values["return_before"] for m in metrics], label="before adapting", color="#b04a3a")
    left.set(xlabel="seconds of meta-training", ylabel="mean return of 200", title="Training tasks", ylim=(0, 210))
    left.legend(loc="center right", frameon=False)
    names = ["before\nadapting", "after one\ninner step", "same budget\nfrom scratch"]
    for place, (mean, low, high) in enumerate((before, adapted, scratch)):
        error = [[mean - low], [high - mean]]
        right.bar(place, mean, yerr=error, capsize=5, color=["#b04a3a", "#1b7f5c", "#8a8a8a"][place])
        right.annotate(f"{mean:.0f}", (place, high), (0, 5), textcoords="offset points", ha="center")
    right.set(xticks=range(3), xticklabels=names, title=f"{HELD_OUT} held-out tasks, 95 % intervals")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=150)


def tell(client: Client) -> bool:
    """Tell the story; return whether adapting clearly helped."""
    training = client.families.sample(FAMILY, 40, seed=0, split="train")
    held_out = client.families.sample(FAMILY, HELD_OUT, seed=0, split="test")
    print(f"1. registered {len(training)} tasks to train on and {len(held_out)} held-out ones of {FAMILY}, such as")
    for task in held_out[:2]:
        motor, length = task.parameters["force_mag"], task.parameters["length"]
        print(f"     {task.name}: a motor of {motor:+.0f} N, a pole of half-length {length:.2f} m")

    print("2. meta-training an initialisation on the training tasks")
    run = client.runs.create(
        MODEL,
        learner={"name": "maml", "inner_steps": 1, "inner_learning_rate": METHOD["learning_rate"]},
        policy=POLICY,
        tasks={"family": FAMILY, "split": "train", "registered": True},
        stop={"iterations": 60, "seconds": 75},
        seed=0,
    ).wait(progress=True)
    version = client.versions.get(f"{MODEL}/{run.version}")
    client.aliases.set(MODEL, "champion", version)
    steps = run.progress.environment_steps
    print(f"3. version {version.reference}, now {MODEL}@champion: {steps:,} steps in {run.progress.seconds:.0f} s")

    print(f"4. adapting to each of {HELD_OUT} tasks it has never seen: one inner step on 20 episodes")
    adapted = [client.adapt(f"{MODEL}@champion", task, method=METHOD, seed=1) for task in held_out]
    scratch = [client.adapt(None, task, method=METHOD, policy=POLICY, seed=1) for task in held_out]

    one = adapted[0]
    action = client.act(one, [0.01, 0.0, 0.02, 0.0])
    side = "right" if action.actions[0] == 1 else "left"
    print(f"5. policy {one.policy}: the pole leans right, so it pushes {side} (value {action.values[0]:.0f})\n")

    rows = {
        "(a) initialisation, before adapting": interval([a.before.mean_return for a in adapted if a.before]),
        "(b) after one inner step": interval([after(a) for a in adapted]),
        "(c) same budget, random initialisation": interval([after(a) for a in scratch]),
    }
    print(f"{HELD_OUT} held-out tasks of {FAMILY}: mean return (of 200) and 95 % interval")
    for name, (mean, low, high) in rows.items():
        print(f"  {name:<40} {mean:6.1f}   [{low:.1f}, {high:.1f}]")
    a, b, c = rows.values()
    draw(list(client.runs.metrics(run)), a, b, c)
    print(f"\nlearning curve: {PICTURE}")
    return b[1] > a[2] and b[1] > c[2]


def main() -> None:
    """Run the demo."""
    started = time.monotonic()
    server, client = start_server()
    try:
        with client:
            helped = tell(client)
    except HeadstartError as error:
        sys.exit(f"the demo failed: {error}")
    finally:
        server.terminate()
        server.wait(30)
    print(f"done in {time.monotonic() - started:.0f} s")
    if not helped:
        sys.exit("adapting did not clearly help")


if __name__ == "__main__":
    main()
