"""What holds for each command, those that are yet to come included."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import ScriptedServer, answer, problem

from headstart_client.cli import build_parser, main
from headstart_client.exit_codes import Exit


def parsers(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to each parser, groups included."""
    yield words
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from parsers(inner, (*words, word))


def parser_of(words: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = build_parser()
    for word in words:
        [choices] = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parser = choices[word]
    return parser


EVERY = list(parsers(build_parser()))
COMMANDS = [words for words in EVERY if parser_of(words).get_default("command")]


def arguments(words: tuple[str, ...]) -> list[str]:
    """A command with something for each argument that it needs."""
    line = list(words)
    for action in parser_of(words)._actions:
        needed = action.required and not isinstance(action, argparse._SubParsersAction)
        if needed or (words == ("evaluate",) and action.dest == "subjects"):
            value = "body.json" if action.metavar == "FILE" else str(next(iter(action.choices or ["1"])))
            line += [action.option_strings[-1], value] if action.option_strings else [value]
    # The service is asked with one of two, and argparse cannot say so.
    return [*line, "m"] if words == ("adapt",) else line


@pytest.fixture(autouse=True)
def _body(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"tasks": [{"environment": "CartPole-v1"}]}')


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_and_every_argument_has_help(words: tuple[str, ...]) -> None:
    parser = parser_of(words)
    assert parser.description
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(each.help for each in action._choices_actions), words
        else:
            assert action.help, f"{words}: {action.option_strings or action.dest}"


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_prints_its_help_and_takes_json(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert "--json" in printed.out
    assert printed.err == ""


ASKING = [words for words in COMMANDS if words != ("completion",)]


@pytest.mark.parametrize("json_asked", [True, False], ids=["json", "text"])
@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_a_refusal_is_a_word_on_stderr_and_with_json_one_document(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], json_asked: bool
) -> None:
    server.script(*[problem(403, "not with this key")] * 2)
    line = ["--url", server.url, "--key", "hs_test", *arguments(words), *(["--json"] if json_asked else [])]
    assert main(line) == 1
    printed = capsys.readouterr()
    assert "not with this key" in printed.err
    assert len(server.requests) >= 1
    if json_asked:
        assert json.loads(printed.out)["problem"]["status"] == 403
    else:
        assert printed.out == ""


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_line_that_makes_no_sense_is_exit_code_2_and_with_json_one_document(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--json", "--no-such-option"])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["problem"]["detail"]
    assert printed.err.startswith("usage: headstart")


def test_every_exit_code_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for code in Exit:
        assert f"\n  {code:<4} {code.meaning}\n" in printed


def test_a_full_disk_is_no_traceback(server: ScriptedServer) -> None:
    server.script(answer({"tasks": []}))
    line = [sys.executable, "-m", "headstart_client", "--url", server.url, "tasks", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("headstart: cannot write the output")
    assert "Traceback" not in done.stderr
