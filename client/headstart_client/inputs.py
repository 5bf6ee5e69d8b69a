"""What people type and the files they name, read for the commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")
"""Parts of a task family."""

STATES = ("queued", "running", "succeeded", "failed", "cancelled")
"""What work that the service does in the background can be in."""


class UsageError(ValueError):
    """A command line or an input file that makes no sense, found before the service was asked."""


def pair(text: str) -> tuple[str, str]:
    """Read ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def numbers(text: str) -> list[float]:
    """Read ``0.1,0,-0.2``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from None


def parameter_value(text: str) -> float | bool | str:
    """Read the value of a parameter: a number, true, false, or a text."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def option_value(text: str) -> Any:
    """Read the value of an option: JSON where it is that, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def object_or_word(text: str, option: str) -> str | Mapping[str, Any]:
    """Read ``{...}`` as JSON and anything else as it stands."""
    if not text.lstrip().startswith("{"):
        return text
    value: Mapping[str, Any] = _json(text, option)
    return value


def read_text(path: str) -> str:
    """Read a file, or stdin for ``-``.

    Raises:
        UsageError: If it cannot be read, or is not UTF-8.
    """
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}") from error


def read_object(path: str) -> Mapping[str, object]:
    """Read a file, or stdin for ``-``, that holds one JSON object."""
    value = _json(read_text(path), path)
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold one JSON object")
    return value


def read_tasks(path: str) -> list[dict[str, object]]:
    """Read task definitions: a list, ``{"tasks": [...]}``, or in a .jsonl file one on a line."""
    text = read_text(path)
    value: Any
    if path.endswith(".jsonl"):
        numbered = enumerate(text.split("\n"), 1)
        value = [_json(line, f"{path} line {number}") for number, line in numbered if line.strip()]
    else:
        value = _json(text, path)
        value = value.get("tasks") if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UsageError(f'{path} must hold a list of tasks, or {{"tasks": [...]}}, or in .jsonl one a line')
    return value
