"""The commands: for each, its arguments and what it calls."""

from __future__ import annotations

import argparse
from typing import Any

from headstart_client.adaptation_commands import add_adaptations
from headstart_client.apply_commands import add_apply
from headstart_client.client import Client
from headstart_client.evaluation_commands import add_evaluations
from headstart_client.groups import Group, add_command, add_limit, limited
from headstart_client.inputs import SPLITS, numbers, pair, parameter_value, read_object, read_tasks
from headstart_client.output import Output, fields, listing, record, table
from headstart_client.pulling import add_pull
from headstart_client.run_commands import add_runs
from headstart_client.tasks import Task
from headstart_client.wire import parse


def add_commands(parent: Any, options: argparse.ArgumentParser) -> None:
    """Add every command that asks a service."""
    _add_environments(Group(parent, "environments", "the models that tasks can run in", options))
    _add_tasks(Group(parent, "tasks", "register, find and delete tasks", options))
    _add_families(Group(parent, "families", "distributions over tasks, and drawing from them", options))
    add_runs(Group(parent, "runs", "background meta-training", options))
    _add_models(Group(parent, "models", "models, their versions and aliases", options))
    add_adaptations(parent, options)
    add_evaluations(parent, options)
    add_pull(parent, options)
    _add_act(add_command(parent, "act", _act, "ask a policy for actions", options))


def _add_environments(group: Group) -> None:
    add_limit(group.verb("list", _list_environments, "the environments that the service knows"))
    shown = group.verb("get", _get_environment, "one environment: its parameters, with ranges and units")
    shown.add_argument("environment", help="id: CartPole-v1")


def _list_environments(client: Client, args: argparse.Namespace) -> Output:
    columns = ["id", "title", "default_horizon"]
    return listing("environments", limited(client.environments.list(), args.limit), columns)


def _get_environment(client: Client, args: argparse.Namespace) -> Output:
    found = client.environments.get(args.environment)
    header = ["parameter", "default", "low", "high", "unit", "choices", "description"]
    rows = [[p.name, p.default, p.low, p.high, p.unit, p.choices, p.description] for p in found.parameters]
    others = fields({name: value for name, value in found.raw.items() if name != "parameters"})
    return Output(found.raw, f"{others}\n\n{table(header, rows)}")


def _add_tasks(group: Group) -> None:
    found = group.verb("list", _list_tasks, "the tasks that are registered")
    found.add_argument("--family", help="only of this family")
    found.add_argument("--split", choices=SPLITS, help="only of this split")
    found.add_argument(
        "--label", action="append", type=pair, metavar="KEY=VALUE", help="only with this label; repeat for more"
    )
    add_limit(found)
    group.verb("get", _get_task, "one task").add_argument("task", help="id or name")
    made = group.verb("create", _create_task, "register a task; the same definition again is the same task")
    made.add_argument("--environment", required=True, help="id of its environment: CartPole-v1")
    made.add_argument("--name", help="made from its definition where not given")
    made.add_argument(
        "--parameter",
        action="append",
        type=pair,
        metavar="NAME=VALUE",
        help="the default where not given; repeat for more",
    )
    made.add_argument("--reward", metavar="EXPRESSION", help="the environment's own where not given")
    made.add_argument("--discount", type=float, help="in (0, 1]")
    made.add_argument("--horizon", type=int, help="steps")
    made.add_argument("--family", help="name of the family that it belongs to")
    made.add_argument("--split", choices=SPLITS, help="its part of the family (default: train)")
    made.add_argument("--label", action="append", type=pair, metavar="KEY=VALUE", help="to find it by; repeat for more")
    batch = group.verb("import", _import_tasks, "register many tasks; as often as you like")
    batch.add_argument("file", metavar="FILE", help="definitions, as .json or .jsonl; - for stdin")
    add_apply(group)
    group.verb("delete", _delete_task, "hide a task").add_argument("task", help="id or name")


def _list_tasks(client: Client, args: argparse.Namespace) -> Output:
    tasks = client.tasks.list(family=args.family, split=args.split, labels=_mapping(args.label))
    columns = ["name", "environment", "family", "split", "horizon", "discount", "parameters", "labels"]
    return listing("tasks", limited(tasks, args.limit), columns)


def _get_task(client: Client, args: argparse.Namespace) -> Output:
    return record(client.tasks.get(args.task))


def _create_task(client: Client, args: argparse.Namespace) -> Output:
    parameters = {name: parameter_value(value) for name, value in args.parameter or ()}
    task = client.tasks.create(
        args.environment,
        name=args.name,
        parameters=parameters or None,
        reward=args.reward,
        discount=args.discount,
        horizon=args.horizon,
        family=args.family,
        split=args.split,
        labels=_mapping(args.label),
    )
    return record(task)


def _import_tasks(client: Client, args: argparse.Namespace) -> Output:
    # A task with a digest was listed by a service; the members that it gave it are not part of the
    # definition.
    items = [parse(Task, item) if "digest" in item else item for item in read_tasks(args.file)]
    tasks = client.tasks.create_many(items)
    return Output({"tasks": [task.raw for task in tasks]}, f"{len(tasks)} tasks stand")


def _delete_task(client: Client, args: argparse.Namespace) -> Output:
    client.tasks.delete(args.task)
    return Output({"deleted": args.task}, f"deleted {args.task}")


def _add_families(group: Group) -> None:
    add_limit(group.verb("list", _list_families, "the families that are registered"))
    group.verb("get", _get_family, "one family").add_argument("family", help="name")
    group.verb("create", _create_family, "register a family").add_argument(
        "file", metavar="FILE", help="the request body as JSON: name, environment, parameters, ...; - for stdin"
    )
    drawn = group.verb("sample", _sample_family, "draw tasks and register them, repeatably")
    drawn.add_argument("family", help="name")
    drawn.add_argument("--count", type=int, required=True, help="1 to 1000")
    drawn.add_argument("--seed", type=int, default=0, help="another seed, other tasks (default: %(default)s)")
    drawn.add_argument("--split", choices=SPLITS, default="train", help="which part (default: %(default)s)")


def _list_families(client: Client, args: argparse.Namespace) -> Output:
    columns = ["name", "environment", "preset", "horizon", "parameters"]
    return listing("task_families", limited(client.families.list(), args.limit), columns)


def _get_family(client: Client, args: argparse.Namespace) -> Output:
    return record(client.families.get(args.family))


def _create_family(client: Client, args: argparse.Namespace) -> Output:
    return record(client.families.submit(read_object(args.file)))


def _sample_family(client: Client, args: argparse.Namespace) -> Output:
    tasks = client.families.sample(args.family, args.count, seed=args.seed, split=args.split)
    return listing("tasks", tasks, ["name", "environment", "split", "parameters"])


def _add_models(group: Group) -> None:
    add_limit(group.verb("list", _list_models, "every model"))
    versions = group.verb("versions", _list_versions, "versions of a model")
    add_limit(versions)
    for parser in (versions, group.verb("get", _get_model, "one model")):
        parser.add_argument("model", help="name")
    fetch = group.verb("fetch", _fetch_version, "download a version's files, checked against their digests")
    fetch.add_argument("--out", required=True, metavar="FOLDER", help="folder to put them in")
    lineage = group.verb("lineage", _get_lineage, "where a version comes from")
    for parser in (group.verb("version", _get_version, "one version"), lineage, fetch):
        parser.add_argument("reference", help="MODEL/VERSION, MODEL@ALIAS, or MODEL for its newest version")
    _add_aliases(Group(group.verbs, "alias", "movable pointers to versions", group.options))


def _list_models(client: Client, args: argparse.Namespace) -> Output:
    columns = ["name", "latest_version", "aliases", "created_at"]
    return listing("models", limited(client.models.list(), args.limit), columns)


def _get_model(client: Client, args: argparse.Namespace) -> Output:
    return record(client.models.get(args.model))


def _list_versions(client: Client, args: argparse.Namespace) -> Output:
    columns = ["version", "aliases", "run", "metrics.return_before", "metrics.return_after", "created_at"]
    return listing("versions", limited(client.versions.list(args.model), args.limit), columns)


def _get_version(client: Client, args: argparse.Namespace) -> Output:
    return record(client.versions.get(args.reference))


def _get_lineage(client: Client, args: argparse.Namespace) -> Output:
    return record(client.versions.lineage(args.reference))


def _fetch_version(client: Client, args: argparse.Namespace) -> Output:
    paths = [str(path) for path in client.versions.download(args.reference, args.out)]
    return Output({"files": paths}, "\n".join(paths))


def _add_aliases(group: Group) -> None:
    moved = group.verb("set", _set_alias, "point an alias at a version; made if it is new")
    rolled = group.verb("rollback", _rollback_alias, "point an alias back at its previous version")
    removed = group.verb("delete", _delete_alias, "remove an alias; its history stays")
    past = group.verb("history", _list_alias_events, "every change of an alias, newest first")
    for parser in (moved, rolled, removed, past, group.verb("get", _get_alias, "one alias")):
        parser.add_argument("model", help="name")
        parser.add_argument("alias", help="name")
    moved.add_argument("version", type=int, help="number of the version")
    moved.add_argument("--require-evaluation", metavar="ID", help="only if this evaluation speaks for the version")
    for parser in (moved, rolled, removed):
        parser.add_argument("--if-match", metavar="ETAG", help="only if it is still where this etag was read")
    add_limit(past)
    found = group.verb("list", _list_aliases, "aliases of a model")
    found.add_argument("model", help="name")
    add_limit(found)


def _set_alias(client: Client, args: argparse.Namespace) -> Output:
    required = args.require_evaluation
    moved = client.aliases.set(
        args.model, args.alias, args.version, if_match=args.if_match, require_evaluation=required
    )
    return record(moved)


def _get_alias(client: Client, args: argparse.Namespace) -> Output:
    alias = client.aliases.get(args.model, args.alias)
    document = {**alias.raw, "etag": alias.etag}
    return Output(document, fields(document))


def _list_aliases(client: Client, args: argparse.Namespace) -> Output:
    columns = ["alias", "version", "updated_at"]
    return listing("aliases", limited(client.aliases.list(args.model), args.limit), columns)


def _list_alias_events(client: Client, args: argparse.Namespace) -> Output:
    events = limited(client.aliases.history(args.model, args.alias), args.limit)
    return listing("events", events, ["at", "action", "version", "previous_version", "by"])


def _rollback_alias(client: Client, args: argparse.Namespace) -> Output:
    return record(client.aliases.rollback(args.model, args.alias, if_match=args.if_match))


def _delete_alias(client: Client, args: argparse.Namespace) -> Output:
    client.aliases.delete(args.model, args.alias, if_match=args.if_match)
    return Output({"deleted": args.alias}, f"deleted {args.model}@{args.alias}")


def _add_act(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", help="id; or MODEL/VERSION or MODEL@ALIAS for a bare initialisation")
    parser.add_argument(
        "--observation",
        action="append",
        required=True,
        type=numbers,
        metavar="NUMBERS",
        help="like 0.1,0,-0.2,0; give it again for more of them",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--deterministic", dest="sample", action="store_false", help="the likeliest (default)")
    how.add_argument("--sample", action="store_true", help="one drawn from its distribution")
    parser.set_defaults(sample=False)
    parser.add_argument("--seed", type=int, help="with --sample: makes it repeatable")


def _act(client: Client, args: argparse.Namespace) -> Output:
    answer = client.act(args.policy, args.observation, deterministic=not args.sample, seed=args.seed)
    values = [None] * len(answer.actions) if answer.values is None else answer.values.tolist()
    rows = list(zip(answer.actions.tolist(), answer.log_probs.tolist(), values, strict=True))
    return Output(answer.raw, table(["action", "log_prob", "value"], rows))


def _mapping(pairs: list[tuple[str, str]] | None) -> dict[str, str] | None:
    return dict(pairs) if pairs else None
