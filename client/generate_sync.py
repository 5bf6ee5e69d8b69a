"""Writes ``headstart_client/_sync``, the client for threads, from ``headstart_client/_async``, the one for asyncio.

    python client/generate_sync.py            write it
    python client/generate_sync.py --check    exit with 1, and the differences, where it is not what would be written

What differs by more than words, as a thread does from a task, is written by hand in modules that both use, under two
names of which one is the other with ``Async`` or ``async_`` before it.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "headstart_client"
SOURCE, TARGET = PACKAGE / "_async", PACKAGE / "_sync"
HEADER = "# Generated from headstart_client/_async/{name} by: python client/generate_sync.py\n"

REPLACEMENTS = {
    r"^( *#.*\n)* *await asyncio\.sleep\(0\)\n": "",
    r"\bawait asyncio\.to_thread\((\w+), ": r"\1(",
    r"\bAwaitable\[(\w+)\]": r"\1",
    r"\bAsyncGenerator\[(.+), None\]": r"Generator[\1, None, None]",
    r"\ban ``async with``": "a ``with``",
    r"\b(async|await) ": "",
    r"\basyncio\b": "time",
    r"\baclose\b": "close",
    r"\baclosing\b": "closing",
    r"\baiter_bytes\b": "iter_bytes",
    r"\baread\b": "read",
    r"\basynccontextmanager\b": "contextmanager",
    r"__a(enter|exit)__": r"__\1__",
    r"\bAsync(?=[A-Z])": "",
    r"\basync_(?=\w)": "",
    r"\b_async\b": "_sync",
    r"\btasks of one event loop\b": "threads",
}
"""Pattern -> what takes its place, in this order. Docstrings are text like any other."""

TIDY = "I,F401,UP028"
"""What the words that are gone leave behind: unsorted and unused imports, and loops that only yield."""


def generated(source: Path) -> str:
    """The module for threads that follows from one for asyncio."""
    text = source.read_text(encoding="utf-8")
    for pattern, replacement in REPLACEMENTS.items():
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    name = ["--stdin-filename", str(TARGET / source.name)]
    text = _ruff(["check", "--quiet", "--fix-only", "--unsafe-fixes", "--select", TIDY, *name, "-"], text)
    return HEADER.format(name=source.name) + _ruff(["format", "--quiet", *name, "-"], text)


def _ruff(words: list[str], text: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


def differences() -> str:
    """What would change, as a patch; empty where nothing would."""
    wanted = {source.name: generated(source) for source in SOURCE.glob("*.py")}
    there = {path.name: path.read_text(encoding="utf-8") for path in TARGET.glob("*.py")}
    lines: list[str] = []
    for name in sorted(wanted | there):
        old, new = (text.get(name, "").splitlines(keepends=True) for text in (there, wanted))
        lines += difflib.unified_diff(old, new, f"_sync/{name}", f"generated/{name}")
    return "".join(lines)


def write() -> None:
    """Write what follows, and remove what no longer does."""
    TARGET.mkdir(exist_ok=True)
    for path in TARGET.glob("*.py"):
        if not (SOURCE / path.name).exists():
            path.unlink()
    for source in SOURCE.glob("*.py"):
        (TARGET / source.name).write_text(generated(source), encoding="utf-8")


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        write()
    elif found := differences():
        sys.exit(f"{found}\n_sync is not what follows from _async: run python client/generate_sync.py")


if __name__ == "__main__":
    main()
