from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from headstart_client import AsyncClient, Client

SCRIPT = Path(__file__).parent.parent / "generate_sync.py"
URL = "http://127.0.0.1:1"


def test_the_client_for_threads_is_what_follows_from_the_one_for_asyncio() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_generated_files_say_so_in_their_first_line() -> None:
    for path in (SCRIPT.parent / "headstart_client" / "_sync").glob("*.py"):
        first = path.read_text().splitlines()[0]
        assert first == f"# Generated from headstart_client/_async/{path.name} by: python client/generate_sync.py"


def public(thing: object) -> dict[str, object]:
    return {name: getattr(thing, name) for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("noun", ["", *(name for name, each in public(Client(URL)).items() if not callable(each))])
def test_both_clients_have_the_same_nouns_verbs_and_arguments(noun: str) -> None:
    sync, other = Client(URL), AsyncClient(URL)
    one, two = public(getattr(sync, noun, sync)), public(getattr(other, noun, other))
    assert one.keys() == two.keys()
    for name, verb in one.items():
        if inspect.ismethod(verb):
            ours, theirs = inspect.signature(verb).parameters, inspect.signature(two[name]).parameters  # type: ignore[arg-type]
            assert list(ours) == list(theirs), name
            assert [each.default for each in ours.values()] == [each.default for each in theirs.values()], name
            assert not inspect.iscoroutinefunction(verb)
