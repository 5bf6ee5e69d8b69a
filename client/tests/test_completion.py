from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from headstart_client.cli import main

TYPED = [
    ("headstart mo", "headstart models"),
    ("headstart models alias se", "headstart models alias set"),
    ("headstart --json tasks ap", "headstart --json tasks apply"),
    ("headstart --url http://x tasks ap", "headstart --url http://x tasks apply"),
    ("headstart tasks apply --dr", "headstart tasks apply --dry-run"),
    ("headstart runs list --state ru", "headstart runs list --state running"),
    ("headstart tasks apply -f my-t", "headstart tasks apply -f my-tasks.yaml"),
    ("headstart runs start my-t", "headstart runs start my-tasks.yaml"),
    ("headstart models fetch m --out my-f", "headstart models fetch m --out my-folder"),
    ("headstart completion f", "headstart completion fish"),
]
"""What is typed, and what it is after the tabulator."""


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The script for the shell of the test, beside a file and a folder to complete."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert main(["completion", shell]) == 0
    (tmp_path / "my-tasks.yaml").touch()
    (tmp_path / "my-folder").mkdir()
    file = tmp_path / f"script.{shell}"
    file.write_text(capsys.readouterr().out)
    return file


class Terminal:
    """A shell at a terminal."""

    def __init__(self, arguments: list[str]) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": os.getcwd()},
        )
        os.close(slave)

    def type(self, keys: str, until: str) -> str:
        """Press keys, and read until a text appears."""
        os.write(self._master, keys.encode())
        seen = ""
        deadline_s = time.monotonic() + 30
        while until not in seen:
            assert time.monotonic() < deadline_s, seen
            if select.select([self._master], [], [], 0.1)[0]:
                seen += os.read(self._master, 65536).decode(errors="replace")
        return seen

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@pytest.mark.parametrize(
    ("script", "arguments", "setup"),
    [
        ("bash", ["bash", "--norc", "--noprofile", "-i"], ""),
        ("zsh", ["zsh", "-f", "-i"], "bindkey -e; autoload -Uz compinit; compinit -u -D; "),
    ],
    indirect=["script"],
    ids=["bash", "zsh"],
)
def test_what_is_typed_is_completed_at_a_terminal(script: Path, arguments: list[str], setup: str) -> None:
    terminal = Terminal(arguments)
    try:
        # Quotes keep the echo of what is typed from being taken for what it prints.
        terminal.type(f"{setup}eval \"$(cat {script})\"; echo re''ady\n", until="ready")
        for number, (typed, completed) in enumerate(TYPED):
            # Tabulator; then the beginning of the line, so that it is printed instead of run.
            seen = terminal.type(f"{typed}\t\x01echo '<' \x05 '>' don''e{number}\n", until=f"done{number}")
            assert f"< {completed}" in seen.replace("/ >", " >"), typed
    finally:
        terminal.close()


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_offers_what_may_come_next(script: Path) -> None:
    for typed, completed in TYPED:
        ask = f"source {script}; complete -C '{typed}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", ask], capture_output=True, text=True, timeout=60, check=True
        )
        offered = [line.split("\t")[0].rstrip("/") for line in done.stdout.splitlines()]
        assert completed.split()[-1] in offered, typed
        assert done.stderr == ""


def test_the_script_is_a_document_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert main(["completion", "bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "bash", "script": script[:-1]}
