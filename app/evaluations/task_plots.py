"""The plots of an evaluation's report that show its tasks: however many there are, they stay within a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from app.evaluations.plots import Json, label, panels, style, subject_keys

PARAMETERS: Final = 6
"""Parameters that are drawn at most."""

NAMED_TASKS: Final = 30
"""Tasks up to which each has a line of its own."""

_CATEGORIES: Final = 8
_OUTSIDE: Final = "#ececec"
_VECTOR: Final = 400
"""Marks above which a cloud of them is a picture within the drawing."""


def varying(tasks: Sequence[Json]) -> list[str]:
    """Parameters that are not the same in all tasks."""
    names = dict.fromkeys(name for task in tasks for name in task["parameters"])
    return [name for name in names if len({repr(task["parameters"].get(name)) for task in tasks}) > 1]


def is_split(tasks: Sequence[Json]) -> bool:
    """Whether it is known of some task that it is outside what was trained on, or inside."""
    return any(task["in_range"] is not None for task in tasks)


def parameters(evaluation: Json, methods: Sequence[str]) -> Figure:
    """Return before and after adapting against each parameter that varies."""
    tasks = evaluation["result"]["tasks"]
    names = varying(tasks)[:PARAMETERS]
    across = 1 if len(names) < 3 else 2
    rows = -(-len(names) // across)

    def draw(part: SubFigure, method: str) -> None:
        if not names:
            axes = part.subplots()
            axes.set_axis_off()
            axes.text(0.5, 0.5, "All tasks have the same parameters.", ha="center", va="center", fontsize=9)
            return
        grid = part.subplots(rows, 2 * across, sharey=True, squeeze=False)
        for axes in grid.flat[2 * len(names) :]:
            axes.set_visible(False)
        for place, name in enumerate(names):
            for axes, when in zip(grid.flat[2 * place : 2 * place + 2], ("before", "after"), strict=True):
                _against(axes, evaluation, method, name, when)
                axes.set_title(f"{when} adapting", fontsize=7.5, color="#555555")
                axes.set_xlabel(label(name))
        for axes in grid[:, 0]:
            axes.set_ylabel("return of a task")

    keys = []
    if any(task["in_range"] is False for task in tasks):
        ring: dict[str, Any] = {"markeredgecolor": "black", "markerfacecolor": "white", "linestyle": "none"}
        keys.append(Line2D([], [], marker="o", **ring, label="black edge: outside the training range"))
    height = 0.1 + 1.85 * rows if names else 0.8
    return panels(methods, [height] * len(methods), draw, subject_keys(evaluation), keys)


def _against(axes: Axes, evaluation: Json, method: str, parameter: str, when: str) -> None:
    """Every subject's return in each task against one parameter."""
    tasks = evaluation["result"]["tasks"]
    values = [task["parameters"].get(parameter) for task in tasks]
    subjects = evaluation["result"]["methods"][method]["subjects"]
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = np.array(values, np.float64) if is_number else _grouped(axes, [str(value) for value in values])
    outside = np.array([task["in_range"] is False for task in tasks])
    many = len(tasks) * len(subjects) > _VECTOR
    for place, (name, summary) in enumerate(subjects.items()):
        look, returns = style(evaluation, name), np.array([task[when] for task in summary["tasks"]], np.float64)
        # Groups stand side by side; a number stands where it is.
        shift = 0.0 if is_number else 0.7 * ((place + 0.5) / len(subjects) - 0.5)
        _cloud(axes, places + shift, returns, outside, look, many)
        if is_number:
            line = _trend(places, returns)
            axes.plot(*line, color="white", linewidth=3.0, zorder=2)
            axes.plot(*line, color=look["color"], linestyle=look["linestyle"], linewidth=1.5, zorder=3)
        else:
            x, half = np.unique(places) + shift, 0.3 / len(subjects)
            means = _means(places, returns)
            axes.hlines(means, x - half, x + half, "white", linewidth=3.2, zorder=2)
            axes.hlines(means, x - half, x + half, look["color"], linewidth=1.8, zorder=3)
    if is_number:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if places.min() > 0 and places.max() / places.min() > 100:
            axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _cloud(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], outside: NDArray[np.bool_], look: Json, many: bool
) -> None:
    """A mark for each task, those outside the training range with a black edge."""
    for group, edge in ((~outside, look["color"]), (outside, "black")):
        axes.scatter(
            x[group],
            y[group],
            s=5 if many else 14,
            c=look["color"],
            marker=look["marker"],
            edgecolors=edge,
            linewidths=0.3 if many else 0.8,
            alpha=0.35 if many else 0.75,
            rasterized=many,
        )


def _grouped(axes: Axes, values: Sequence[str]) -> NDArray[np.float64]:
    """The place of each choice, the commonest first; all that have none of their own share the last."""
    common = [value for value, _ in Counter(values).most_common()]
    names = common if len(common) <= _CATEGORIES else [*common[: _CATEGORIES - 1], f"{len(common) - 7} others"]
    axes.set_xticks(range(len(names)), [label(name, 12) for name in names])
    if max(map(len, names)) * len(names) > 20:
        axes.tick_params(axis="x", labelrotation=35)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.grid(visible=False, axis="x")
    places = {value: min(place, len(names) - 1) for place, value in enumerate(common)}
    return np.array([places[value] for value in values], np.float64)


def _trend(places: NDArray[np.float64], returns: NDArray[np.float64]) -> tuple[Any, Any]:
    """Means by value, or of neighbouring tasks; of few tasks none, so that nothing is read from a line of noise."""
    if len(places) < 12:
        return [], []
    if 4 * len(np.unique(places)) <= len(places):
        return np.unique(places), _means(places, returns)
    order = np.argsort(places, kind="stable")
    bins = np.array_split(order, min(12, len(order) // 4))
    return [places[each].mean() for each in bins], [returns[each].mean() for each in bins]


def _means(places: NDArray[np.float64], returns: NDArray[np.float64]) -> list[float]:
    return [float(returns[places == group].mean()) for group in np.unique(places)]


def tasks(evaluation: Json, methods: Sequence[str]) -> Figure:
    """Each task before and after adapting; of very many, what each gains, in order."""
    shown = evaluation["result"]["tasks"]
    subjects = len(evaluation["result"]["subjects"])
    across = min(subjects, 4)
    rows = -(-subjects // across)
    is_named = len(shown) <= NAMED_TASKS
    one = 0.7 + 0.135 * len(shown) if is_named else 1.9

    def draw(part: SubFigure, method: str) -> None:
        grid = part.subplots(rows, across, sharey=True, sharex=is_named, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        order = _order(evaluation, method)
        summaries = evaluation["result"]["methods"][method]["subjects"]
        for axes, (name, summary) in zip(grid.flat, summaries.items(), strict=False):
            axes.set_visible(True)
            axes.set_title(label(name, 64 // across), fontweight="bold")
            if is_named:
                _dumbbells(axes, shown, [summary["tasks"][n] for n in order], order, style(evaluation, name))
            else:
                _waterfall(axes, np.array([task["gain"] for task in summary["tasks"]]), style(evaluation, name))
        for axes in grid[:, 0]:
            axes.set_ylabel("" if is_named else "gain of a task")

    return panels(methods, [rows * one] * len(methods), draw, _task_keys(shown, is_named))


def _order(evaluation: Json, method: str) -> list[int]:
    """Tasks by what the first subject ends with, the best last."""
    first = next(iter(evaluation["result"]["methods"][method]["subjects"].values()))
    return sorted(range(len(first["tasks"])), key=lambda n: first["tasks"][n]["after"])


def _task_keys(shown: Sequence[Json], is_named: bool) -> list[Any]:
    if not is_named:
        return [Patch(facecolor="white", edgecolor="#444444", hatch="//////", linewidth=0.6, label="made worse")]
    grey: dict[str, Any] = {"color": "#444444", "linestyle": "none", "markersize": 4.5}
    keys: list[Any] = [
        Line2D([], [], marker="o", markerfacecolor="white", **grey, label="hollow: before"),
        Line2D([], [], marker="o", **grey, label="filled: after"),
    ]
    if any(task["oracle"] is not None for task in shown):
        keys.append(Line2D([], [], marker="|", markeredgewidth=1.4, **grey, label="oracle"))
    if any(task["in_range"] is False for task in shown):
        keys.append(Patch(color=_OUTSIDE, label="outside the training range"))
    return keys


def _dumbbells(axes: Axes, shown: Sequence[Json], found: Sequence[Json], order: Sequence[int], look: Json) -> None:
    for place, (n, task) in enumerate(zip(order, found, strict=True)):
        if shown[n]["in_range"] is False:
            axes.axhspan(place - 0.5, place + 0.5, color=_OUTSIDE, linewidth=0, zorder=0)
        if shown[n]["oracle"] is not None:
            axes.plot(shown[n]["oracle"], place, "|", color="#444444", markersize=6, markeredgewidth=1.4)
        worse = task["after"] < task["before"]
        dashes: Any = (0, (1, 1)) if worse else "-"
        ends = [task["before"], task["after"]]
        axes.plot(ends, [place, place], color=look["color"], linestyle=dashes, linewidth=1.6, alpha=0.7)
    mark: dict[str, Any] = {"linestyle": "none", "marker": look["marker"], "color": look["color"], "markersize": 4}
    places = range(len(found))
    axes.plot([task["before"] for task in found], places, **mark, markerfacecolor="white", zorder=3)
    axes.plot([task["after"] for task in found], places, **mark, zorder=4)
    axes.set_yticks(places, [label(shown[n]["name"], 24) for n in order], fontsize=6.5)
    axes.set(xlabel="return", ylim=(-0.7, len(found) - 0.3))
    axes.tick_params(labelbottom=True)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _waterfall(axes: Axes, gains: NDArray[np.float64], look: Json) -> None:
    gains = np.sort(gains)
    share = np.linspace(0, 100, len(gains))
    axes.fill_between(share, gains, 0, where=gains >= 0, color=look["color"], alpha=0.55, linewidth=0, step="mid")
    axes.fill_between(
        share, gains, 0, where=gains < 0, facecolor="white", edgecolor=look["color"], hatch="//////", lw=0.4, step="mid"
    )
    axes.plot(share, gains, color=look["color"], linewidth=1.0, drawstyle="steps-mid")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="tasks by their gain (%)", xlim=(0, 100))
    said = f"{100 * (gains >= 0).mean():.0f} % not made worse"
    axes.text(0.04, 0.95, said, transform=axes.transAxes, va="top", fontsize=7)
