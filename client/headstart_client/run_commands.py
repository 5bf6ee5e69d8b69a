"""The commands about runs."""

from __future__ import annotations

import argparse
import json
import sys

from headstart_client._sync.runs import Run, Runs
from headstart_client.client import Client
from headstart_client.groups import Group, add_limit, limited
from headstart_client.inputs import STATES, object_or_word, read_object
from headstart_client.output import Output, fields, listing, record, table
from headstart_client.waiting import goes_on


def add_runs(group: Group) -> None:
    """Add the verbs of ``runs``."""
    start = group.verb("start", _start_run, "start meta-training")
    start.add_argument(
        "file", metavar="FILE", help="the request body as JSON: model, learner, tasks, stop, ...; - for stdin"
    )
    start.add_argument("--learner", metavar="LEARNER", help="instead of the file's: name, or JSON with its options")
    start.add_argument("--device", choices=("auto", "cpu", "cuda"), help="instead of the file's")
    start.add_argument("--watch", action="store_true", help="wait for it to end")
    start.add_argument("--timeout", type=float, metavar="SECONDS", help="with --watch: when to give up")
    start.add_argument("--idempotency-key", metavar="KEY", help="the same key again gives the same run")
    found = group.verb("list", _list_runs, "runs, past and present")
    found.add_argument("--state", choices=STATES, help="only in this state")
    found.add_argument("--model", help="only of this model")
    add_limit(found)
    watch = group.verb("watch", _watch_run, "wait for a run to end, showing how far it is and its curve")
    watch.set_defaults(indent=None)
    watch.add_argument("--timeout", type=float, metavar="SECONDS", help="when to give up; the run goes on")
    metrics = group.verb("metrics", _list_metrics, "a run's metrics so far")
    metrics.add_argument("--after", type=int, metavar="SEQUENCE", help="only later rows")
    add_limit(metrics)
    others = [
        group.verb("get", _get_run, "one run"),
        group.verb("cancel", _cancel_run, "ask a run to stop"),
        group.verb("evaluation", _show_evaluation, "returns of every held-out task in a run's best iteration"),
    ]
    for parser in (watch, metrics, *others):
        parser.add_argument("run", help="id")


def _start_run(client: Client, args: argparse.Namespace) -> Output:
    body = dict(read_object(args.file))
    if args.learner is not None:
        learner = object_or_word(args.learner, "--learner")
        body["learner"] = {"name": learner} if isinstance(learner, str) else learner
    if args.device is not None:
        body["device"] = args.device
    run = client.runs.submit(body, idempotency_key=args.idempotency_key)
    return _ended(run.wait(args.timeout, progress=True)) if args.watch else record(run)


def _list_runs(client: Client, args: argparse.Namespace) -> Output:
    runs = limited(client.runs.list(state=args.state, model=args.model), args.limit)
    columns = ["id", "model", "state", "version", "progress.iterations", "metrics.return_after", "created_at"]
    return listing("runs", runs, columns)


def _get_run(client: Client, args: argparse.Namespace) -> Output:
    return record(client.runs.get(args.run))


def _watch_run(client: Client, args: argparse.Namespace) -> Output:
    if args.json:
        _tell(client.runs, args.run, args.timeout)
        return record(client.runs.wait(args.run, progress=False))
    return _ended(client.runs.wait(args.run, args.timeout, progress=True))


def _tell(runs: Runs, name: str, timeout_s: float | None) -> None:
    """Write what happens to a run, an object on each line, until it has ended."""
    with goes_on(f"run {name}", f"headstart runs cancel {name}"):
        for item in runs.follow(name, timeout_s):
            # The run as it ended is the result of the command.
            if not (isinstance(item, Run) and item.finished):
                sys.stdout.write(json.dumps(item.raw) + "\n")
                sys.stdout.flush()


def _ended(run: Run) -> Output:
    """What a run has come to, for somebody who has watched it."""
    version = f"{run.model}/{run.version}" if run.version else None
    lines = {
        "run": run.id,
        "version": version,
        "stopped by": run.stopped_by,
        "return before": run.metrics.get("return_before"),
        "return after": run.metrics.get("return_after"),
    }
    if run.best is not None:
        lines |= {"best iteration": run.best.iteration, "held-out return": run.best.held_out_return_after}
    return Output(run.raw, fields(lines))


def _cancel_run(client: Client, args: argparse.Namespace) -> Output:
    return record(client.runs.cancel(args.run))


def _list_metrics(client: Client, args: argparse.Namespace) -> Output:
    rows = list(limited(client.runs.metrics(args.run, after=args.after), args.limit))
    names = sorted({name for row in rows for name in row.values})
    columns = ["sequence", "iteration", "environment_steps", "seconds", *(f"values.{name}" for name in names)]
    return listing("metrics", rows, columns)


def _show_evaluation(client: Client, args: argparse.Namespace) -> Output:
    tasks, best = client.runs.evaluation_tasks(args.run), client.runs.get(args.run).best
    row = None if best is None else next(client.runs.metrics(args.run, after=best.iteration - 1), None)
    if row is None or row.evaluation is None:
        return Output({"iteration": None, "tasks": []}, "not evaluated yet")
    by_step = row.evaluation.mean_return
    items = [
        {**task, "mean_return": returns} for task, returns in zip(tasks.tasks, zip(*by_step, strict=True), strict=True)
    ]
    header = ["parameters", "before", *(f"step_{step}" for step in range(1, len(by_step)))]
    text = table(header, [[item["parameters"], *item["mean_return"]] for item in items])
    return Output({"iteration": row.iteration, "tasks": items}, text)
