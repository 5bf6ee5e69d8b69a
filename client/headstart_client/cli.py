"""``headstart``: the client on the command line."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from headstart_client.client import Client
from headstart_client.commands import add_commands
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
from headstart_client.output import cell

REFUSED, USAGE, CANNOT_CONNECT, WORK_FAILED, TIMED_OUT = 1, 2, 3, 4, 5
INTERRUPTED, BROKEN_PIPE = 130, 141

EPILOG = """\
exit codes:
  0    done
  1    the service refused, or what it sent was damaged
  2    the command line, or a file on this machine, is at fault
  3    cannot connect
  4    the run, the adaptation or the evaluation failed or was cancelled
  5    not finished in time; it goes on
  6    the verdict of an evaluation is not what --fail-unless asks for
  7    an evaluation has leakage: a subject was trained on held-out tasks
  8    tasks apply: something stands against a definition, and nothing was changed
  130  interrupted with Ctrl-C

environment:
  HEADSTART_URL      address of the service (http://127.0.0.1:8000)
  HEADSTART_API_KEY  key to send; for a service on this machine the admin key is found in
                     $HEADSTART_DATA/admin.key or ./var/admin.key
  NO_COLOR           anything: draw without colours

With --json, stdout holds exactly one JSON document: the result, or {"problem": {...}} where there is none.
Only runs watch writes more, one a line: each row of metrics and each state of the run as it comes, then the result.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
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
    add_commands(parser.add_subparsers(metavar="COMMAND", required=True), options)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Its words, without the program's name; those of the process where not given.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
        code, document, text = _run(args)
        if args.json:
            print(json.dumps(document, indent=args.indent))
        elif text:
            print(text)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print("\n".join(["interrupted", *getattr(interrupt, "__notes__", [])]), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, and Python would complain when it flushes at exit: let it flush elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def _run(args: argparse.Namespace) -> tuple[int, Any, str]:
    try:
        with Client(args.url, args.key) as client:
            output = args.command(client, args)
    except RunFailed as error:
        return _failed(WORK_FAILED, error, error.run.raw)
    except AdaptationFailed as error:
        return _failed(WORK_FAILED, error, error.adaptation.raw)
    except EvaluationFailed as error:
        return _failed(WORK_FAILED, error, error.evaluation.raw)
    except Timeout as error:
        return _failed(TIMED_OUT, error, _problem("Timeout", error))
    except ConnectionFailed as error:
        return _failed(CANNOT_CONNECT, error, _problem("Cannot connect", error))
    except Problem as error:
        return _failed(REFUSED, error, {"problem": error.raw})
    except HeadstartError as error:
        return _failed(REFUSED, error, _problem(type(error).__name__, error))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        return _failed(USAGE, error, _problem("Usage", error))
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
