"""The plots of an evaluation's report: figures that differ in nothing where the evaluation does not.

Only matplotlib's objects are used, no state of pyplot's, so that figures can be drawn in any thread. Whatever is called
something by a user goes through :func:`label`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from models import statistics

Json = Mapping[str, Any]

# Of the whole process, once: settings that are entered and left again would meet those of other threads.
mpl.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 8.0,
        "axes.titlesize": 8.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#555555",
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.6,
        "xtick.color": "#333333",
        "ytick.color": "#333333",
        "legend.frameon": False,
        "svg.hashsalt": "headstart",
        "svg.fonttype": "path",
    }
)

WIDTH: Final = 7.2
"""Inches: what an A4 page has between its margins, so that letters are printed in their own size."""

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#767676")
"""By the place of a subject: the colours of Okabe & Ito, which the colour-blind can tell apart, grey for their
yellow."""

_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES: Final[tuple[Any, ...]] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (9, 2)),
    (0, (2, 2)),
    (0, (4, 1, 1, 1)),
)
_DPI: Final = 160
_PLACES: Final = 200


def png(figure: Figure) -> bytes:
    """The figure as a picture."""
    return _saved(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as a drawing, with nothing in it that changes from time to time."""
    return _saved(figure, "svg", dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _saved(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


def label(name: object, longest: int = 28) -> str:
    """A user's text as plain text: no mathematics between dollars, a box for what the font has no letter for."""
    text = str(name)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join(each if ord(each) in _letters() else "□" for each in text).replace("$", r"\$")


@cache
def _letters() -> frozenset[int]:
    letters = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return frozenset(code for code in letters if chr(code).isprintable())


def style(evaluation: Json, subject: str) -> dict[str, Any]:
    """How a subject's lines look in every figure."""
    place = list(evaluation["result"]["subjects"]).index(subject) % len(COLOURS)
    return {"color": COLOURS[place], "marker": _MARKERS[place], "linestyle": _DASHES[place]}


def subject_keys(evaluation: Json) -> list[Any]:
    """What a legend has of the subjects."""
    return [
        Line2D([], [], **style(evaluation, name), markersize=4.5, linewidth=1.4, label=label(name))
        for name in evaluation["result"]["subjects"]
    ]


def panels(
    methods: Sequence[str],
    heights: Sequence[float],
    draw: Callable[[SubFigure, str], None],
    *keys: Sequence[Any],
) -> Figure:
    """A figure with a panel for each method, below the keys to its lines.

    Args:
        methods: Names of those to show.
        heights: Of the panels, in inches.
        draw: Fills the panel of a method.
        keys: Of each legend.
    """
    legends = [(each, _columns(each)) for each in keys if each]
    rows = [0.08 + 0.17 * -(-len(each) // columns) for each, columns in legends]
    figure = Figure((WIDTH, sum(rows) + sum(heights)), dpi=_DPI)
    parts = figure.subfigures(len(rows) + len(methods), 1, height_ratios=[*rows, *heights], squeeze=False)[:, 0]
    for part, (each, columns) in zip(parts, legends, strict=False):
        # A legend fills its columns one by one: sort it so that it is read along its rows.
        along = [each[n] for column in range(columns) for n in range(column, len(each), columns)]
        part.legend(handles=along, loc="center left", ncols=columns, handlelength=3.2, columnspacing=1.6, borderpad=0)
    for method, part in zip(methods, parts[len(rows) :], strict=True):
        if len(methods) > 1:
            part.suptitle(label(method, 60), x=0.01, ha="left", fontsize=9, fontweight="bold")
        draw(part, method)
    # Once, and not at every saving: a figure that has a layout engine is drawn twice each time.
    ConstrainedLayoutEngine().execute(figure)
    return figure


def _columns(keys: Sequence[Any]) -> int:
    widest = max(len(each.get_label()) for each in keys)
    return max(1, min(len(keys), 110 // (widest + 8)))


def curves(evaluation: Json, methods: Sequence[str]) -> Figure:
    """K-shot curves: return by experience, mean and interquartile mean, with their intervals."""
    result = evaluation["result"]
    oracles = [task["oracle"] for task in result["tasks"]]
    keys: list[Any] = [Patch(color="#999999", alpha=0.35, linewidth=0, label="95 % interval")]
    best: dict[str, float] = {}
    if None not in oracles:
        scores = np.array([oracles], np.float64)
        best["mean"] = statistics.mean(scores).estimate
        best["interquartile_mean"] = statistics.interquartile_mean(scores).estimate
        keys.append(Line2D([], [], color="black", linestyle=(0, (1, 2)), label="oracle"))
    threshold = evaluation["protocol"].get("threshold")
    if threshold is not None:
        keys.append(Line2D([], [], color="#777777", linewidth=0.8, label="threshold"))

    def draw(part: SubFigure, method: str) -> None:
        shown = result["methods"][method]
        for axes, what in zip(part.subplots(1, 2, sharey=True), ("mean", "interquartile_mean"), strict=True):
            for name, summary in shown["subjects"].items():
                _curve(axes, style(evaluation, name), summary["curve"], what)
            if what in best:
                axes.axhline(best[what], color="black", linestyle=(0, (1, 2)), zorder=1.5)
            if threshold is not None:
                axes.axhline(threshold, color="#777777", linewidth=0.8, zorder=1.5)
            axes.set_title(what.replace("_", " "))
            axes.set_xlabel({"step": "inner step", "environment_steps": "environment steps"}[shown["axis"]])
            axes.set_ylabel("return" if what == "mean" else "")
            whole_numbers(axes)

    return panels(methods, [2.4] * len(methods), draw, subject_keys(evaluation), keys)


def _curve(axes: Axes, look: Json, curve: Sequence[Json], what: str) -> None:
    thinned = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _PLACES)).round().astype(int))
    places = [curve[p]["place"] for p in thinned]
    estimate, low, high = ([curve[p][what][each] for p in thinned] for each in ("estimate", "low", "high"))
    axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
    for bound in (low, high):
        axes.plot(places, bound, color=look["color"], linewidth=0.4, alpha=0.6)
    axes.plot(places, estimate, **look, linewidth=1.4, markersize=4, markevery=max(1, len(places) // 10), zorder=3)


def whole_numbers(axes: Axes) -> None:
    """Tick a count."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def profile(evaluation: Json, methods: Sequence[str]) -> Figure:
    """Performance profiles: the share of runs that end with at least a return, with its interval."""

    def ends(method: str, name: str) -> statistics.Scores:
        runs = evaluation["runs"][method][name]["held_out"]
        return np.array([[run[-1][2] for run in by_task] for by_task in runs], np.float64)

    def draw(part: SubFigure, method: str) -> None:
        axes = part.subplots()
        scores = {name: ends(method, name) for name in evaluation["result"]["methods"][method]["subjects"]}
        lowest = min(float(each.min()) for each in scores.values())
        highest = max(float(each.max()) for each in scores.values())
        # A little further on both sides, so that every line is seen to leave all runs and to reach none.
        margin = 0.02 * (highest - lowest) or 1.0
        places = np.linspace(lowest - margin, highest + margin, 105)
        for place, (name, each) in enumerate(scores.items()):
            found, look = statistics.profile(each, places), style(evaluation, name)
            axes.fill_between(places, found.low, found.high, color=look["color"], alpha=0.15, linewidth=0)
            axes.plot(places, found.share, **look, linewidth=1.4, markersize=4, markevery=(4 + 2 * place, 16))
        axes.set(xlabel="return τ", ylabel="share of runs with return ≥ τ", ylim=(-0.02, 1.03))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    keys: list[Any] = [Patch(color="#999999", alpha=0.35, linewidth=0, label="95 % interval")]
    return panels(methods, [2.5] * len(methods), draw, subject_keys(evaluation), keys)
