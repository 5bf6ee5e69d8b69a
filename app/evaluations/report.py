"""The report of a finished evaluation: one page that stands by itself, its plots, and every point of every run.

What it tells comes from users: names and sentences are escaped wherever they go, and the page can run and fetch
nothing.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

Json = Mapping[str, Any]

COLUMNS: Final = (
    "method",
    "subject",
    "set",
    "task",
    "task_id",
    "in_range",
    "seed",
    "point",
    "episodes",
    "environment_steps",
    "mean_return",
)
"""Of `runs.csv`, which has a row for each point of each run. `set` is `held_out` or `training`; `seed` and `point` are
counted from 0, and point 0 is before adapting."""

OPEN_TASKS: Final = 60
"""Tasks up to which the table of all of them is open from the beginning."""

_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
"""Characters that HTML does not have."""

_MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NO-BREAK SPACE}"


def render(evaluation: Json) -> dict[str, bytes]:
    """The files of an evaluation's report, by name: equal evaluations have equal files.

    Args:
        evaluation: JSON values: `id`, `name`, `created_at`, `finished_at`, `code_version`, `verdict`, `leakage`,
            `warnings`, `protocol`, `result` and `runs`.

    Returns:
        `report.html`, which needs no other file; `runs.csv`; `curves.png`, `parameters.png`, `profile.png` and
        `tasks.png`, each with a panel for each method.
    """
    # matplotlib takes most of a second to import: only who makes a report waits for it.
    from app.evaluations import plots, task_plots

    draws = {
        "curves": plots.curves,
        "parameters": task_plots.parameters,
        "profile": plots.profile,
        "tasks": task_plots.tasks,
    }
    methods = list(evaluation["result"]["methods"])
    files, drawings = {}, {}
    for name, draw in draws.items():
        whole = draw(evaluation, methods)
        files[f"{name}.png"] = plots.png(whole)
        alone = {method: whole if len(methods) == 1 else draw(evaluation, [method]) for method in methods}
        drawings[name] = {method: _data_uri(plots.svg(figure)) for method, figure in alone.items()}
    varying = task_plots.varying(evaluation["result"]["tasks"])
    page = _template().render(
        _view(evaluation),
        drawings=drawings,
        varying=varying,
        drawn=varying[: task_plots.PARAMETERS],
        named_tasks=task_plots.NAMED_TASKS,
    )
    return {"report.html": page.translate(_CONTROLS).encode(), "runs.csv": runs_csv(evaluation).encode(), **files}


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, bounds, interval, percent, share, moment, count)
    environment.filters.update({each.__name__: each for each in filters})
    return environment.get_template("report.html")


def _data_uri(drawing: bytes) -> str:
    """As an image and not inline: nothing in it can run, and its ids meet no others."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawing).decode()


def _view(evaluation: Json) -> dict[str, Any]:
    """What the template asks for beside the evaluation itself."""
    result = evaluation["result"]
    methods = result["methods"]
    digits = {name: decimals_of(method["subjects"].values()) for name, method in methods.items()}
    seeds = {len(subject["held_out"]) for method in evaluation["runs"].values() for subject in method.values()}
    return {
        "evaluation": evaluation,
        "result": result,
        "marks": {name: place % 8 for place, name in enumerate(result["subjects"])},
        "digits": digits,
        "seeds": max(seeds),
        "verdict": verdict_sentence(evaluation, digits),
        "has_split": any(task["in_range"] is not None for task in result["tasks"]),
        "reports": _reports(evaluation),
        "forests": {name: _forest(method["comparisons"]) for name, method in methods.items()},
        "leaked": _leaked(evaluation["leakage"]),
        "open_tasks": OPEN_TASKS,
        "options": dict(zip(methods, map(_options, evaluation["protocol"]["methods"]), strict=True)),
        "protocol_json": json.dumps(evaluation["protocol"], indent=2, ensure_ascii=False),
    }


def verdict_sentence(evaluation: Json, digits: Mapping[str, int]) -> str:
    """What the evaluation found, in one sentence with its numbers."""
    method_name, method = next(iter(evaluation["result"]["methods"].items()))
    places = digits[method_name]
    first, *others = method["subjects"]
    if evaluation["verdict"] is None:
        summary = method["subjects"][first]
        before, after, gain = (interval(summary[each]["mean"], places) for each in ("before", "after", "gain"))
        return (
            f"Adapting {first} with {method_name} takes its mean return from {before} to {after}: a gain of {gain}, "
            f"and {share(summary['worse'])} of runs made worse."
        )
    pair = {"first": first, "second": others[0]}
    found = next(each for each in method["comparisons"] if pair.items() <= each.items())
    says = {
        "better": f"{first} is better than {others[0]}",
        "worse": f"{first} is worse than {others[0]}",
        "no difference shown": f"No difference is shown between {first} and {others[0]}",
    }[evaluation["verdict"]]
    return (
        f"{says}: mean difference {interval(found['difference'], places)} in return after adapting with {method_name}; "
        f"a run of {first} ends higher with probability {share(found['probability'])}."
    )


def decimals_of(summaries: Any) -> int:
    """Decimals for all returns under a method: two or three digits of a typical interval's width."""
    means = [summary[part]["mean"] for summary in summaries for part in ("before", "after", "gain")]
    widths = sorted(mean["high"] - mean["low"] for mean in means if mean["high"] > mean["low"])
    typical = widths[len(widths) // 2] if widths else max(abs(mean["estimate"]) for mean in means) / 10
    return 1 if typical == 0 else min(6, max(0, 1 - math.floor(math.log10(typical / 3))))


def number(value: float | None, decimals: int = 0) -> str:
    """A number for people, a dash where there is none."""
    if value is None:
        return "–"
    # Adding zero takes the sign from a zero that was rounded to.
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", _MINUS)


def bounds(value: Json, decimals: int, times: float = 1.0) -> str:
    """The bounds of an interval; nothing where it has no width, which only says that no run differs from another."""
    if value["low"] == value["high"]:
        return ""
    return f"[{number(times * value['low'], decimals)},{_SPACE}{number(times * value['high'], decimals)}]"


def interval(value: Json, decimals: int) -> str:
    """An estimate with its bounds."""
    return f"{number(value['estimate'], decimals)}{_SPACE}{bounds(value, decimals)}".rstrip()


def percent(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.0f}{_SPACE}%"


def share(value: Json) -> str:
    """A share with its bounds, in per cent."""
    return f"{percent(value['estimate'])}{_SPACE}{bounds(value, 0, 100)}".rstrip()


def moment(text: str) -> str:
    """A time of ISO 8601 to the second, in UTC."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def count(value: int, noun: str) -> str:
    """So many of something."""
    return f"{value:,}{_SPACE}{noun}{'' if value == 1 else 's'}"


def _reports(evaluation: Json) -> dict[str, Any]:
    """What of the things that not every evaluation has this one has; of the threshold, the return."""
    summaries = [
        summary for method in evaluation["result"]["methods"].values() for summary in method["subjects"].values()
    ]
    found: dict[str, Any] = {part: any(each[part] for each in summaries) for part in ("gap", "regret")}
    threshold = next((each["threshold"]["return"] for each in summaries if each["threshold"]), None)
    return found | {"threshold": None if threshold is None else f"{threshold:,.10g}".replace("-", _MINUS)}


def _options(method: Json) -> str:
    """A method's options in words."""
    values = {name: json.dumps(value, ensure_ascii=False) for name, value in method.items() if name != "name"}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _leaked(leakage: Sequence[Json]) -> dict[str, list[str]]:
    """By task, the subjects that were trained on it."""
    found: dict[str, list[str]] = {}
    for each in leakage:
        for task in each["tasks"]:
            found.setdefault(task, []).append(each["subject"])
    return found


def _forest(comparisons: Sequence[Json]) -> list[dict[str, float]]:
    """Where in a strip of width 100 the zero, the estimate and the bounds of each difference lie, on one scale."""
    values: list[float] = [0.0, *(each["difference"][bound] for each in comparisons for bound in ("low", "high"))]
    low, width = min(values), (max(values) - min(values)) or 1.0

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / width, 2)

    return [
        {"zero": place(0.0)} | {bound: place(each["difference"][bound]) for bound in ("estimate", "low", "high")}
        for each in comparisons
    ]


def runs_csv(evaluation: Json) -> str:
    """Every point of every run as a table (RFC 4180)."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(_rows(evaluation))
    return text.getvalue()


def _rows(evaluation: Json) -> Iterator[tuple[Any, ...]]:
    tasks = {"held_out": evaluation["result"]["tasks"], "training": evaluation["result"]["training_tasks"]}
    named = {
        part: [(_inert(task["name"]), _inert(task["id"]), _truth(task["in_range"])) for task in each]
        for part, each in tasks.items()
    }
    for method, subjects in evaluation["runs"].items():
        for subject, parts in subjects.items():
            for part in ("held_out", "training"):
                for seed, by_task in enumerate(parts[part] or ()):
                    for task, run in zip(named[part], by_task, strict=True):
                        for place, point in enumerate(run):
                            yield _inert(method), _inert(subject), part, *task, seed, place, *point


def _inert(text: str | None) -> str:
    """A user's text that no spreadsheet takes for a formula.

    Source: OWASP, "CSV injection": an apostrophe before what would begin one.
    """
    if text is None:
        return ""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _truth(value: bool | None) -> str:
    return "" if value is None else str(value).lower()
