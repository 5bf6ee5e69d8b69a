"""The commands about evaluations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headstart_client.client import Client
from headstart_client.evaluations import Evaluation
from headstart_client.exit_codes import Exit
from headstart_client.groups import Group, add_command, add_limit, limited
from headstart_client.inputs import SPLITS, STATES, UsageError, object_or_word, pair, read_object
from headstart_client.methods import add_budget, budget_of
from headstart_client.output import Output, listing, record, table
from headstart_client.progress import figure
from headstart_client.waiting import goes_on

SUFFICIENT = {"better": ("better",), "better-or-equal": ("better", "no difference shown")}
"""Verdicts that satisfy ``--fail-unless``."""


def add_evaluations(parent: Any, options: argparse.ArgumentParser) -> None:
    """Add ``evaluate`` and ``evaluations``."""
    _add_evaluate(add_command(parent, "evaluate", _evaluate, "measure versions and policies on tasks", options))
    group = Group(parent, "evaluations", "measurements of versions and policies", options)
    found = group.verb("list", _list_evaluations, "evaluations, newest first")
    found.add_argument("--name", help="only of this protocol")
    found.add_argument("--state", choices=STATES, help="only in this state")
    add_limit(found)
    download = group.verb("download", _download_evaluation, "fetch its report, plots, tables and runs")
    for parser in (
        group.verb("get", _get_evaluation, "one evaluation with its results"),
        group.verb("cancel", _cancel_evaluation, "ask an evaluation to stop"),
        download,
    ):
        parser.add_argument("evaluation", help="id")
    download.add_argument(
        "--out",
        "--to",
        dest="out",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where to put them (default: here)",
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subjects",
        nargs="*",
        metavar="SUBJECT",
        help="MODEL@ALIAS, MODEL/VERSION, MODEL, or policy:ID; the first is compared with the others",
    )
    parser.add_argument(
        "--file", metavar="FILE", help="the whole request as JSON, or an evaluation to repeat; - for stdin"
    )
    tasks = parser.add_argument_group("tasks, by one of family, task and label")
    tasks.add_argument("--family", help="draw fresh tasks of this family")
    tasks.add_argument("--split", choices=SPLITS, help="of the family (default: test)")
    tasks.add_argument("--count", type=int, help="how many (default: 20)")
    tasks.add_argument("--task-seed", type=int, help="what they are drawn with")
    tasks.add_argument("--task", action="append", help="id or name; repeat for more")
    tasks.add_argument("--label", action="append", type=pair, metavar="NAME=VALUE", help="tasks with all of these")
    how = parser.add_argument_group("how they are adapted")
    how.add_argument(
        "--method", action="append", help="inner-loop, ppo, dqn or sac, or JSON; repeat for more (default: inner-loop)"
    )
    add_budget(how)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--name", help="of the protocol, to find its evaluations by")
    what.add_argument("--seeds", type=int, help="adaptations to each task (default: 3)")
    what.add_argument("--seed", type=int, help="of all randomness")
    what.add_argument("--threshold", type=float, metavar="RETURN", help="report the steps until this is reached")
    what.add_argument("--multitask", metavar="VERSION", help="a baseline that the learner multitask made")
    what.add_argument("--no-scratch", dest="scratch", action="store_false", default=None, help="without new policies")
    what.add_argument("--training-tasks", type=int, metavar="N", help="for the gap to training tasks (default: 20)")
    parser.add_argument(
        "--fail-unless", choices=SUFFICIENT, help=f"exit with {Exit.NOT_SHOWN} where the verdict is another"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to put report.html")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="when to give up waiting; it goes on")


def _evaluate(client: Client, args: argparse.Namespace) -> Output:
    request = _request(args)
    if args.fail_unless and len(request.get("subjects", ())) < 2:
        raise UsageError("--fail-unless needs two subjects: the verdict is on the first against the second")
    evaluation = client.evaluations.submit(request)
    show = _line_on(sys.stderr) if sys.stderr.isatty() and not args.json else None
    with goes_on(f"evaluation {evaluation.id}", f"headstart evaluations cancel {evaluation.id}"):
        evaluation = client.evaluations.wait(evaluation, args.timeout, show=show)
    if args.report is not None:
        client.evaluations.download(evaluation, args.report)
    code, notes = 0, [f"warning: {warning}" for warning in evaluation.warnings]
    if args.fail_unless and evaluation.verdict not in SUFFICIENT[args.fail_unless]:
        code = Exit.NOT_SHOWN
        notes.append(f"headstart: the verdict is {evaluation.verdict!r}, but --fail-unless {args.fail_unless}")
    if evaluation.leakage:
        code = Exit.LEAKED
        notes += [f"LEAKAGE: {leak.detail}" for leak in evaluation.leakage]
    return Output(evaluation.raw, _text(evaluation), code, tuple(notes))


def _request(args: argparse.Namespace) -> Mapping[str, Any]:
    """What to send: the file's members, and over them what the command line says."""
    request: dict[str, Any] = {}
    if args.file is not None:
        read = dict(read_object(args.file))
        protocol = read.get("protocol", read)
        if not isinstance(protocol, dict):
            raise UsageError(f"{args.file}: protocol must be an object")
        request = dict(protocol)
    if args.subjects:
        request["subjects"] = [
            {"policy": each.removeprefix("policy:")} if each.startswith("policy:") else each for each in args.subjects
        ]
    tasks = {
        "family": args.family,
        "split": args.split,
        "count": args.count,
        "seed": args.task_seed,
        "ids": args.task,
        "labels": None if args.label is None else dict(args.label),
    }
    if chosen := {name: value for name, value in tasks.items() if value is not None}:
        request["tasks"] = chosen
    budget = budget_of(args)
    if args.method or budget:
        named = [object_or_word(each, "--method") for each in args.method or ["inner-loop"]]
        request["methods"] = [({"name": each} if isinstance(each, str) else dict(each)) | budget for each in named]
    for name in ("name", "seeds", "seed", "threshold", "multitask", "scratch", "training_tasks"):
        if (value := getattr(args, name)) is not None:
            request[name] = value
    return request


def _text(evaluation: Evaluation) -> str:
    result = evaluation.result or {}
    rows = [
        [
            method,
            name,
            _interval(found["before"]["mean"]),
            _interval(found["after"]["mean"]),
            f"{found['worse']['estimate']:.0%}",
            found["gap"] and found["gap"]["estimate"],
            found["regret"] and found["regret"]["mean"]["estimate"],
            *([_steps(found["threshold"])] if found["threshold"] else []),
        ]
        for method, measured in result.get("methods", {}).items()
        for name, found in measured["subjects"].items()
    ]
    header = ["method", "subject", "before", "after", "made_worse", "gap", "regret"]
    header += ["steps_to_threshold"] if rows and len(rows[0]) > len(header) else []
    verdicts = [
        f"{each['first']} against {each['second']} by {method}: {each['verdict']}; mean difference "
        f"{_interval(each['difference'])}, probability of improvement {_interval(each['probability'])}"
        for method, measured in result.get("methods", {}).items()
        for each in measured["comparisons"]
    ]
    return "\n".join([f"evaluation {evaluation.id}", "", table(header, rows), "", *verdicts])


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"


def _steps(threshold: Mapping[str, Any]) -> str:
    total = sum(map(len, threshold["environment_steps"]))
    median = threshold["median_environment_steps"]
    reached = total - threshold["censored"]
    return f"{'not reached by half' if median is None else median} ({reached} of {total} got there)"


def _line_on(stream: Any) -> Callable[[Evaluation], None]:
    """What keeps one line up to date with how far an evaluation is."""

    def show(evaluation: Evaluation) -> None:
        progress = evaluation.progress
        share = progress.done / progress.total if progress.total else 0.0
        stream.write(f"\r{evaluation.state} {figure(100 * share)} %  {progress.done} of {progress.total}\x1b[K")
        if evaluation.finished:
            stream.write("\r\x1b[K")
        stream.flush()

    return show


def _list_evaluations(client: Client, args: argparse.Namespace) -> Output:
    found = limited(client.evaluations.list(name=args.name, state=args.state), args.limit)
    return listing("evaluations", found, ["id", "name", "state", "progress.done", "progress.total", "verdict"])


def _get_evaluation(client: Client, args: argparse.Namespace) -> Output:
    evaluation = client.evaluations.get(args.evaluation)
    return Output(evaluation.raw, _text(evaluation)) if evaluation.result else record(evaluation)


def _cancel_evaluation(client: Client, args: argparse.Namespace) -> Output:
    return record(client.evaluations.cancel(args.evaluation))


def _download_evaluation(client: Client, args: argparse.Namespace) -> Output:
    paths = [str(path) for path in client.evaluations.download_all(args.evaluation, args.out)]
    return Output({"files": paths}, "\n".join(paths))
