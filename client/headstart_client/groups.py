"""What all commands are made with: groups of verbs, and lists that may be cut short."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from headstart_client.client import Client
from headstart_client.inputs import UsageError
from headstart_client.output import Output

Command = Callable[[Client, argparse.Namespace], Output]
T = TypeVar("T")


class Group:
    """The verbs of one noun: ``tasks list``, ``tasks get``, ..."""

    def __init__(self, parent: Any, name: str, help: str, options: argparse.ArgumentParser) -> None:
        self.options = options
        self.verbs = parent.add_parser(name, help=help, description=help, parents=[options]).add_subparsers(
            metavar="VERB", required=True
        )

    def verb(self, name: str, command: Command, help: str) -> argparse.ArgumentParser:
        """Add a verb; its arguments are added to the parser that is returned."""
        return add_command(self.verbs, name, command, help, self.options)


def add_command(
    parent: Any, name: str, command: Command, help: str, options: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """Add a command that is called as ``command(client, args)``."""
    parser: argparse.ArgumentParser = parent.add_parser(name, help=help, description=help, parents=[options])
    parser.set_defaults(command=command)
    return parser


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add ``--limit``."""
    parser.add_argument("--limit", type=int, metavar="N", help="at most this many (default: all)")


def limited(items: Iterable[T], limit: int | None) -> Iterable[T]:
    """The first so many, all where there is no limit.

    Raises:
        UsageError: If the limit is negative.
    """
    if limit is not None and limit < 0:
        raise UsageError("--limit must be at least 0")
    return itertools.islice(items, limit)
