"""The commands about adaptations and the policies that they yield."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart_client.adaptations import COLLECTING, Adaptation
from headstart_client.client import Client
from headstart_client.groups import Group, add_command, add_limit, limited
from headstart_client.inputs import UsageError, object_or_word
from headstart_client.methods import add_budget, budget_of
from headstart_client.output import Output, fields, listing, record, table
from headstart_client.progress import amount, figure
from headstart_client.waiting import goes_on

FORMATS = ("json", "gif", "mp4")


def add_adaptations(parent: Any, options: argparse.ArgumentParser) -> None:
    """Add ``adapt``, ``adaptations`` and ``policies``."""
    _add_adapt(add_command(parent, "adapt", _adapt, "adapt a model to a task; yields a policy", options))
    group = Group(parent, "adaptations", "uses of a version on a task", options)
    add_limit(group.verb("list", _list_adaptations, "adaptations, newest first"))
    for parser in (
        group.verb("get", _get_adaptation, "one adaptation"),
        group.verb("cancel", _cancel_adaptation, "ask an adaptation to stop"),
    ):
        parser.add_argument("adaptation", help="id")
    group = Group(parent, "policies", "what adaptations yield", options)
    add_limit(group.verb("list", _list_policies, "policies that stand, newest first"))
    publish = group.verb("publish", _publish_policy, "make a policy the next version of a model")
    for parser in (
        group.verb("get", _get_policy, "one policy"),
        group.verb("delete", _delete_policy, "remove a policy"),
        publish,
    ):
        parser.add_argument("policy", help="id")
    publish.add_argument("model", help="name; made if it is new")
    _add_rollout(group.verb("rollout", _roll_out, "run fresh episodes of a policy, or have them drawn"))


def _add_adapt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="MODEL@ALIAS, MODEL/VERSION, or MODEL for its newest version")
    parser.add_argument(
        "--policy",
        help="instead of a model: id of the policy to go on from, or a new one's architecture as JSON: {...}",
    )
    parser.add_argument("--task", required=True, help="id or name, or a definition as JSON: {...}")
    parser.add_argument(
        "--method", default="inner-loop", help="inner-loop, ppo, dqn or sac, or JSON (default: %(default)s)"
    )
    add_budget(parser)
    parser.add_argument("--seed", type=int, help="of all randomness")
    parser.add_argument("--ttl-seconds", type=int, help="how long to keep the policy")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="when to give up waiting; it goes on")


def _add_rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", help="id")
    parser.add_argument("--format", choices=FORMATS, help="by default what the name of --out ends in, else json")
    parser.add_argument("--episodes", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--task", help="id or name; by default the task it was adapted to")
    parser.add_argument("--sample", action="store_true", help="draw actions; by default the likeliest ones")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same episodes")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write it; a gif or mp4 is written here by default"
    )


def _adapt(client: Client, args: argparse.Namespace) -> Output:
    if (args.model is None) == (args.policy is None):
        raise UsageError("give a MODEL or --policy, one of them")
    show = _line_on(sys.stderr) if sys.stderr.isatty() and not args.json else None
    adaptation = client.adaptations.create(
        args.model,
        object_or_word(args.task, "--task"),
        method=object_or_word(args.method, "--method"),
        seed=args.seed,
        ttl_seconds=args.ttl_seconds,
        policy=None if args.policy is None else object_or_word(args.policy, "--policy"),
        wait=show is None,
        timeout_s=args.timeout,
        **budget_of(args),
    )
    if show is not None and adaptation.state != COLLECTING:
        with goes_on(f"adaptation {adaptation.id}", f"headstart adaptations cancel {adaptation.id}"):
            adaptation = client.adaptations.wait(adaptation, args.timeout, show=show)
    lines = {
        "policy": adaptation.policy,
        "model": f"{adaptation.model}/{adaptation.version}" if adaptation.model else None,
        "return before": adaptation.before and adaptation.before.mean_return,
        "return after": adaptation.after and adaptation.after.mean_return,
        "environment steps": adaptation.curve[-1].environment_steps if adaptation.curve else None,
        "stopped by": adaptation.stopped_by,
        "seconds": adaptation.seconds,
    }
    return Output(adaptation.raw, fields({name: value for name, value in lines.items() if value is not None}))


def _line_on(stream: Any) -> Callable[[Adaptation], None]:
    """What keeps one line up to date with how far an adaptation is."""
    started_s = time.monotonic()

    def show(adaptation: Adaptation) -> None:
        method = adaptation.method.get("name", "adaptation")
        line = f"{method}: {adaptation.state}"
        if adaptation.state == "running" and adaptation.curve:
            progress = adaptation.progress
            line = f"{method} {progress.fraction:4.0%}  {amount(progress.environment_steps)} steps"
            line += f"  return {figure(adaptation.curve[-1].mean_return or 0.0)}"
        stream.write(f"\r{line}  {time.monotonic() - started_s:.0f} s\x1b[K")
        if adaptation.finished:
            stream.write("\r\x1b[K")
        stream.flush()

    return show


def _list_adaptations(client: Client, args: argparse.Namespace) -> Output:
    columns = [
        "id",
        "state",
        "model",
        "version",
        "method=method.name",
        "progress.fraction",
        "after.mean_return",
        "policy",
    ]
    return listing("adaptations", limited(client.adaptations.list(), args.limit), columns)


def _get_adaptation(client: Client, args: argparse.Namespace) -> Output:
    return record(client.adaptations.get(args.adaptation))


def _cancel_adaptation(client: Client, args: argparse.Namespace) -> Output:
    return record(client.adaptations.cancel(args.adaptation))


def _list_policies(client: Client, args: argparse.Namespace) -> Output:
    columns = ["id", "model", "version", "adaptation", "created_at", "expires_at"]
    return listing("policies", limited(client.policies.list(), args.limit), columns)


def _get_policy(client: Client, args: argparse.Namespace) -> Output:
    return record(client.policies.get(args.policy))


def _delete_policy(client: Client, args: argparse.Namespace) -> Output:
    client.policies.delete(args.policy)
    return Output({"deleted": args.policy}, f"deleted {args.policy}")


def _publish_policy(client: Client, args: argparse.Namespace) -> Output:
    return record(client.policies.publish(args.policy, args.model))


def _roll_out(client: Client, args: argparse.Namespace) -> Output:
    suffix = args.out.suffix[1:] if args.out is not None else ""
    format = args.format or (suffix if suffix in FORMATS else "json")
    options = {"episodes": args.episodes, "seed": args.seed, "deterministic": not args.sample, "task": args.task}
    if format != "json":
        to = args.out or Path(f"rollout-{args.policy}-seed-{args.seed}.{format}")
        client.policies.video(args.policy, to, format=format, **options)
        return Output({"file": str(to), "size_bytes": to.stat().st_size}, f"wrote {to}")
    rollout = client.policies.rollout(args.policy, **options)
    if args.out is not None:
        args.out.write_text(json.dumps(rollout.raw))
        return Output({"file": str(args.out), "size_bytes": args.out.stat().st_size}, f"wrote {args.out}")
    rows = [
        [number, len(episode), episode.episode_return, "terminated" if episode.terminated else "truncated"]
        for number, episode in enumerate(rollout.episodes)
    ]
    return Output(rollout.raw, table(["episode", "steps", "return", "end"], rows))
