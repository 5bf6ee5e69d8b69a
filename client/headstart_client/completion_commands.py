"""``completion``: a script that teaches a shell the commands, options and choices."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

from headstart_client.client import Client
from headstart_client.groups import add_command
from headstart_client.output import Output

SHELLS = ("bash", "zsh", "fish")

EPILOG = """\
to have it in every new shell:
  bash  echo 'eval "$(headstart completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(headstart completion zsh)"' >> ~/.zshrc     # below compinit
  fish  headstart completion fish > ~/.config/fish/completions/headstart.fish
"""

_KINDS = {"FILE": "file", "FOLDER": "directory"}
"""What an argument of that metavar is completed with."""


def add_completion(parent: Any, options: argparse.ArgumentParser, root: argparse.ArgumentParser) -> None:
    """Add ``completion``, about all that the root has in the end."""
    help = "print a script that completes commands, options, choices and file names in your shell"
    parser = add_command(parent, "completion", partial(_print_script, root), help, options)
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def _print_script(root: argparse.ArgumentParser, _: Client, args: argparse.Namespace) -> Output:
    # Slower to import than everything else that a command needs.
    import shtab

    for action in _actions(root):
        if action.metavar in _KINDS:
            action.complete = shtab.CHOICE_FUNCTIONS[_KINDS[action.metavar]]  # type: ignore[attr-defined]
    script = shtab.complete(root, args.shell)
    return Output({"shell": args.shell, "script": script}, script)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action
