"""How benchmarks run and what they hand over: a worker's memory settings, aligned tables, JSON files."""

from __future__ import annotations

import datetime
import gc
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from app.supervisor import WORKER_ENVIRONMENT


def run_as_worker() -> None:
    """Give this process what a worker of the service has: its allocator's settings, and a collector at rest.

    The allocator reads its settings when a process starts, so a process without them begins again.
    """
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | WORKER_ENVIRONMENT)
    gc.freeze()


def say(text: str) -> None:
    """Tell how far it is, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows in columns, the first aligned to the left and the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))  # noqa: B905
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def keep(path: Path | None, results: Mapping[str, Any]) -> None:
    """Store results as JSON with the machine and the time, whole or not at all; nothing where there is no path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    measured = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine()}
    new.write_text(json.dumps(measured | dict(results), indent=1, default=float))
    new.replace(path)


def machine() -> dict[str, Any]:
    """What results depend on, beside the code."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def in_turns(rounds: Sequence[tuple[float, float]]) -> list[str]:
    """Of two rates that were measured in turns: the median of each, and that of their ratios, as a table shows them."""
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    return [f"{ours:,.0f}", f"{theirs:,.0f}", f"{statistics.median(a / b for a, b in rounds):.2f}"]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (NaN for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1) / len(values))


def with_error(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard error."""
    mean, error = mean_and_error(values)
    return f"{mean:,.{digits}f} ± {error:,.{digits}f}"
