"""``headstart``: the client on the command line."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from headstart_client.client import Client
from headstart_client.commands import add_commands
from headstart_client.completion_commands import add_completion
from headstart_client.documents import DefinitionError
from headstart_client.errors import (
    AdaptationFailed,
    ConnectionFailed,
    EvaluationFailed,
    HeadstartError,
    Problem,
    RunFailed,
    Timeout,
)
from headstart_client.exit_codes import Exit
from headstart_client.output import cell

_CODES = "\n".join(f"  {code:<4} {code.meaning}" for code in Exit)
EPILOG = f"""\
exit codes:
{_CODES}

environment:
  HEADSTART_URL      address of the service (http://127.0.0.1:8000)
  HEADSTART_API_KEY  key to send; for a service on this machine the admin key is found in
                     $HEADSTART_DATA/admin.key or ./var/admin.key
  NO_COLOR           anything: draw without colours

With --json, stdout holds exactly one JSON document: the result, or {{"problem": {{...}}}} where there is none.
Only runs watch writes more, one a line: each row of metrics and each state of the run as it comes, then the result.
"""


class _Misuse(ValueError):
    """A command line that makes no sense; the usage stands on stderr."""


class _Parser(argparse.ArgumentParser):
    """Leaves it to the caller to end the process."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise _Misuse(message)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="headstart",
        description="Register tasks, meta-train, promote versions, adapt, evaluate and act on a Headstart service.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("headstart-client"))
    parser.set_defaults(json=False, indent=2, url=None, key=None)
    # The same options before and after the command: SUPPRESS keeps one's default from undoing the other.
    options = argparse.ArgumentParser(add_help=False)
    for where in (parser, options):
        group = where.add_argument_group("connection and output")
        group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON document")
        group.add_argument("--url", default=argparse.SUPPRESS, help="address of the service")
        group.add_argument(
            "--key", default=argparse.SUPPRESS, help="API key; other users of this machine can see it here"
        )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_commands(commands, options)
    add_completion(commands, options, parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Its words, without the program's name; those of the process where not given.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = _joined(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser().parse_args(words)
    except _Misuse as error:
        if "--json" in words:
            print(json.dumps(_problem("Usage", error), indent=2))
        raise SystemExit(Exit.USAGE) from error
    try:
        code, document, text = _run(args)
        if args.json:
            print(json.dumps(document, indent=args.indent))
        elif text:
            print(text)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print("\n".join(["interrupted", *getattr(interrupt, "__notes__", [])]), file=sys.stderr)
        return Exit.INTERRUPTED
    except OSError as error:
        # Nobody reads, or the disk is full, and Python would complain when it flushes at exit: let it flush elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return Exit.BROKEN_PIPE
        print(f"headstart: cannot write the output: {error}", file=sys.stderr)
        return Exit.USAGE
    return code


def _run(args: argparse.Namespace) -> tuple[int, Any, str]:
    try:
        with Client(args.url, args.key) as client:
            output = args.command(client, args)
    except RunFailed as error:
        return _failed(Exit.WORK_FAILED, error, error.run.raw)
    except AdaptationFailed as error:
        return _failed(Exit.WORK_FAILED, error, error.adaptation.raw)
    except EvaluationFailed as error:
        return _failed(Exit.WORK_FAILED, error, error.evaluation.raw)
    except Timeout as error:
        return _failed(Exit.TIMED_OUT, error, _problem("Timeout", error))
    except ConnectionFailed as error:
        return _failed(Exit.CANNOT_CONNECT, error, _problem("Cannot connect", error))
    except Problem as error:
        return _failed(Exit.REFUSED, error, {"problem": error.raw})
    except HeadstartError as error:
        return _failed(Exit.REFUSED, error, _problem(type(error).__name__, error))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        return _failed(Exit.USAGE, error, _problem("Usage", error))
    for note in output.notes:
        print(cell(note), file=sys.stderr)
    return output.code, output.document, output.text


def _problem(title: str, error: Exception) -> dict[str, Any]:
    faults = error.faults if isinstance(error, DefinitionError) else ()
    listed = {"errors": [fault.document() for fault in faults]} if faults else {}
    return {"problem": {"title": title, "detail": str(error), **listed}}


def _failed(code: int, error: Exception, document: Any) -> tuple[int, Any, str]:
    notes = getattr(error, "__notes__", [])
    print("\n".join([f"headstart: {error}", *notes]), file=sys.stderr)
    return code, document, ""


def _joined(argv: Sequence[str]) -> list[str]:
    """Join ``--observation`` and its value, which argparse takes for an option if it begins with -."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--observation":
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


if __name__ == "__main__":
    sys.exit(main())
