"""``tasks apply``: what files define is made to stand, for pipelines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from headstart_client.applied import Applied, Finding
from headstart_client.client import Client
from headstart_client.definitions import Definition, Definitions, read_definitions
from headstart_client.errors import Conflict, Problem
from headstart_client.exit_codes import Exit
from headstart_client.groups import Group
from headstart_client.output import Output, table


def add_apply(group: Group) -> None:
    """Add ``apply``."""
    parser = group.verb("apply", _apply, "make families and tasks stand as files define them, all of them or none")
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        required=True,
        dest="files",
        metavar="FILE",
        help="YAML or JSON with families, tasks or both; a folder of such files; - for stdin; repeat for more",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it would come to, and change nothing")


def _apply(client: Client, args: argparse.Namespace) -> Output:
    definitions = read_definitions(args.files)
    applied = _ask(client, definitions, args.dry_run)
    created = "created" if applied.applied else "would be created"
    outcomes = {"created": created, "unchanged": "unchanged", "conflict": "conflict"}
    rows = [
        [kind, finding.name, outcomes.get(finding.outcome, finding.outcome), "; ".join(_reasons(definition, finding))]
        for kind, definition, finding in _pairs(definitions, applied)
    ]
    counts = {outcome: applied.count(outcome) for outcome in outcomes}
    summary = ", ".join(f"{count} {outcomes[outcome]}" for outcome, count in counts.items())
    summary += "" if applied.applied else "; nothing was changed"
    document = {
        "applied": applied.applied,
        "counts": counts,
        "families": _listed(definitions.families, applied.families),
        "tasks": _listed(definitions.tasks, applied.tasks),
    }
    text = f"{table(['kind', 'name', 'outcome', 'difference'], rows)}\n\n{summary}"
    if not counts["conflict"]:
        return Output(document, text)
    note = f"headstart: {counts['conflict']} in conflict with what stands; nothing was changed"
    return Output(document, text, Exit.IN_CONFLICT, (note,))


def _ask(client: Client, definitions: Definitions, dry_run: bool) -> Applied:
    families = [each.body for each in definitions.families]
    tasks = [each.body for each in definitions.tasks]
    try:
        try:
            return client.tasks.apply(tasks, families, dry_run=dry_run)
        except Conflict:
            # The refusal names what differs; a dry run also says what the rest would come to.
            found = client.tasks.apply(tasks, families, dry_run=True)
            if not found.count("conflict"):
                raise
            return found
    except Problem as problem:
        raise definitions.located(problem) from problem


def _pairs(definitions: Definitions, applied: Applied) -> Iterator[tuple[str, Definition, Finding]]:
    for definition, finding in zip(definitions.families, applied.families, strict=True):
        yield "family", definition, finding
    for definition, finding in zip(definitions.tasks, applied.tasks, strict=True):
        yield "task", definition, finding


def _listed(definitions: Sequence[Definition], findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {**finding.raw, "file": definition.file, "line": definition.node.line}
        for definition, finding in zip(definitions, findings, strict=True)
    ]


def _reasons(definition: Definition, finding: Finding) -> Iterator[str]:
    for each in finding.differences:
        expected, stands = (json.dumps(value, ensure_ascii=False) for value in (each.expected, each.stands))
        place = f"{definition.file}:{definition.node.line_of(each.pointer)}"
        yield f"{place}: {each.pointer}: expected {expected}, stands {stands}"
