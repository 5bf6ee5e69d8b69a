"""The report of an evaluation says what was found, to people and to programs, whatever its things are called."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from sample_evaluations import LEVELS, sample_evaluation, sample_tasks

from app.evaluations.report import COLUMNS, render
from models.adaptation import InnerLoop
from models.evaluation import Subject, measure
from models.finetune import PPOConfig
from models.learners import MAML, MAMLConfig
from models.policy import Policy, PolicyConfig
from models.tasks import TaskBatch, define_task

VOID = {"meta", "link", "img", "br", "hr", "input"}
SECTIONS = ["summary", "comparisons", "curves", "parameters", "profile", "tasks", "each-task", "measured", "protocol"]
PLOTS = ["curves.png", "parameters.png", "profile.png", "tasks.png"]


class Page(HTMLParser):
    """A page that has been read: its elements with their attributes, and its text without styles."""

    def __init__(self, source: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source.decode())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [each["id"] for _, each in self.elements if each.get("id")]

    def drawings(self) -> list[str]:
        sources = [each["src"] or "" for each in self.all("img")]
        assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
        return [base64.b64decode(source.partition(",")[2]).decode() for source in sources]


def page_of(evaluation: dict[str, Any]) -> Page:
    return Page(render(evaluation)["report.html"])


def rows_of(files: dict[str, bytes]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files["runs.csv"].decode(), newline="")))


def png_size(picture: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    return sample_evaluation(subjects=LEVELS, tasks=6, training=4, seeds=4, threshold=120.0)


@pytest.fixture(scope="module")
def files(evaluation: dict[str, Any]) -> dict[str, bytes]:
    return render(evaluation)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Real runs, by two methods."""
    batch = TaskBatch.of([define_task("CartPole-v1", {"length": each}, horizon=20) for each in (0.3, 0.5, 0.7)])
    learner = MAML(
        MAMLConfig(),
        Policy(PolicyConfig(hidden=(4,)), batch.environment.observation_space, batch.environment.action_space),
    )
    subjects = {"candidate": Subject(learner, learner.initialise(1).params), "scratch": Subject(learner, None)}
    methods = {
        "inner-loop": InnerLoop(steps=2, episodes=3, evaluation_episodes=2),
        "ppo": PPOConfig(environment_steps=400, steps=20, parallel_episodes=4, epochs=2, evaluation_episodes=2),
    }
    runs = {
        name: {each: [measure(subject, batch, method, seed) for seed in (0, 1)] for each, subject in subjects.items()}
        for name, method in methods.items()
    }
    return sample_evaluation(
        subjects=dict.fromkeys(subjects, 0.0),
        tasks=[task | {"oracle": None} for task in sample_tasks(3)],
        training=2,
        seeds=2,
        methods=tuple(methods),
        runs=runs,
    )


@pytest.fixture(scope="module")
def measured_files(measured: dict[str, Any]) -> dict[str, bytes]:
    return render(measured)


@pytest.mark.parametrize("method", ["inner-loop", "ppo"])
def test_the_report_of_real_runs_says_what_they_came_to(
    measured: dict[str, Any], measured_files: dict[str, bytes], method: str
) -> None:
    last = [run[-1][2] for by_task in measured["runs"][method]["candidate"]["held_out"] for run in by_task]
    page = Page(measured_files["report.html"])
    [said] = [each["alt"] or "" for each in page.all("img") if f"Return by experience under {method}." in each["alt"]]
    found = re.search(r"candidate: mean return [\d.]+\s\[.*?\] before, ([\d.]+)", said)
    assert found is not None
    assert float(found[1]) == pytest.approx(np.mean(last), abs=0.051)
    assert f"{found[1]} [" in page.text


def test_the_page_is_whole_and_asks_nothing_of_any_other_place(files: dict[str, bytes]) -> None:
    page = Page(files["report.html"])
    assert len(page.ids()) == len(set(page.ids()))
    targets = [each["href"] or "" for tag in ("a", "use") for each in page.all(tag)]
    assert {target[0] for target in targets} == {"#"}
    assert {target[1:] for target in targets} <= set(page.ids())
    assert [each["href"] for each in page.all("link")] == ["data:,"]
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    [policy] = [each["content"] for each in page.all("meta") if "http-equiv" in each]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not re.search(r"https?://|@import|url\(", files["report.html"].decode())
    for drawing in page.drawings():
        assert not re.search(r'(?:href|src)="(?!#|data:)', drawing)
        assert "<script" not in drawing


def test_every_section_is_there_and_every_plot_is_said_in_words(files: dict[str, bytes]) -> None:
    page = Page(files["report.html"])
    found = [each["id"] for each in page.all("section") if each.get("id")]
    assert found == [*SECTIONS[:6], "ranges", *SECTIONS[6:]]
    assert len(page.all("img")) == 4
    assert not page.all("details")
    for image in page.all("img"):
        assert re.search(r"candidate: mean return [\d.]+", image["alt"] or "")
    assert "interquartile mean" in page.text
    assert "2,000 resamples" in page.text
    assert "inner-loop : steps 3, episodes 20, learning rate null, evaluation episodes 20." in page.text
    assert "asked for 2026-11-22 21:04:11 UTC" in page.text


def test_a_verdict_is_a_sentence_with_its_numbers(evaluation: dict[str, Any], files: dict[str, bytes]) -> None:
    [comparison, *_] = evaluation["result"]["methods"]["inner-loop"]["comparisons"]
    assert comparison["verdict"] == "better"
    numbers = [f"{comparison['difference'][each]:.1f}" for each in ("estimate", "low", "high")]
    said = "candidate is better than champion: mean difference {} [{}, {}]".format(*numbers)
    assert said in Page(files["report.html"]).text


def test_a_difference_that_is_not_shown_is_not_claimed() -> None:
    evaluation = sample_evaluation(subjects={"candidate": 100.0, "champion": 101.0}, tasks=4, seeds=2)
    assert evaluation["verdict"] == "no difference shown"
    page = page_of(evaluation)
    assert "No difference is shown between candidate and champion" in page.text
    assert "better than" not in page.text


def test_leakage_is_what_one_sees_first_and_warnings_next(files: dict[str, bytes]) -> None:
    leakage = [{"subject": "candidate", "tasks": ["pole-1", "pole-3"], "detail": "It was trained on these."}]
    leaky = page_of(sample_evaluation(tasks=4, seeds=2, leakage=leakage, warnings=["Seeds are few."]))
    text = leaky.text
    assert text.index("Leakage: held-out tasks were trained on") < text.index("Seeds are few.") < text.index("Summary")
    assert "Do not rely on this" in text
    assert "candidate , 2 tasks: It was trained on these. (pole-1, pole-3)" in text
    assert text.count("trained on by candidate") == 2
    assert [each for each in leaky.all("section") if each.get("role") == "alert"]
    clean = Page(files["report.html"])
    assert "leakage" not in clean.text.lower()
    assert "Warnings" not in clean.text
    assert not [each for each in clean.all("section") if each.get("role") == "alert"]


def test_a_threshold_that_was_not_reached_is_said_to_be_censored(
    evaluation: dict[str, Any], files: dict[str, bytes]
) -> None:
    [candidate, champion, *_, multitask] = [
        each["threshold"] for each in evaluation["result"]["methods"]["inner-loop"]["subjects"].values()
    ]
    text = Page(files["report.html"]).text
    assert "Steps to 120" in text
    assert multitask["censored"] == 24
    assert "never reached censored 24 of 24" in text
    assert 0 < candidate["censored"] < 12
    assert f"{candidate['median_environment_steps']:,} censored {candidate['censored']} of 24" in text
    assert 12 <= champion["censored"] < 24
    assert f"unknown censored {champion['censored']} of 24" in text


HOSTILE = [
    "<script>alert(1)</script>",
    "$x$ $\\frac{1}{0$",
    "=cmd|' /C calc'!A0",
    '"><img src=x onerror=y>',
    "\u4efb\u52a1 \x07",
    "{{ 7 * 7 }}",
]


def test_names_are_inert_wherever_they_are_shown() -> None:
    tasks = [
        task | {"name": name, "parameters": task["parameters"] | {"pushes": name}}
        for task, name in zip(sample_tasks(6), HOSTILE, strict=True)
    ]
    evaluation = sample_evaluation(
        subjects={name: 100.0 - place for place, name in enumerate(HOSTILE)},
        tasks=tasks,
        seeds=2,
        name="</title></pre><script>1</script>",
        warnings=["</li><b onclick=z>"],
        leakage=[{"subject": HOSTILE[3], "tasks": HOSTILE[:2], "detail": "<i>&amp;"}],
    )
    files = render(evaluation)
    page = Page(files["report.html"])
    assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert len(page.all("img")) == 4
    for told in (*HOSTILE[:4], HOSTILE[5], "</li><b onclick=z>", "<i>&amp;"):
        assert " ".join(told.split()) in page.text
    assert "49" not in re.findall(r"\b\d+\b", page.text.split("Each task")[0].split("Comparisons")[0])
    for drawing in page.drawings():
        assert "<script" not in drawing.lower()
        assert "onerror" not in re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
    assert "\x07" not in page.text
    names = {row["task"] for row in rows_of(files)} | {row["subject"] for row in rows_of(files)}
    assert not [name for name in names if name.startswith(("=", "+", "-", "@"))]
    assert "'" + HOSTILE[2] in names


def test_the_table_of_runs_has_every_point_of_every_run_and_no_other(
    measured: dict[str, Any], measured_files: dict[str, bytes]
) -> None:
    assert measured_files["runs.csv"].startswith((",".join(COLUMNS) + "\r\n").encode())
    expected = [
        (method, subject, part, tasks[n]["name"], tasks[n]["id"] or "", str(seed), str(place), *point)
        for method, subjects in measured["runs"].items()
        for subject, parts in subjects.items()
        for part, tasks in (
            ("held_out", measured["result"]["tasks"]),
            ("training", measured["result"]["training_tasks"]),
        )
        for seed, by_task in enumerate(parts[part] or [])
        for n, run in enumerate(by_task)
        for place, point in enumerate(run)
    ]
    names = ("method", "subject", "set", "task", "task_id", "seed", "point")
    rows = rows_of(measured_files)
    assert [
        (
            *(row[name] for name in names),
            int(row["episodes"]),
            int(row["environment_steps"]),
            float(row["mean_return"]),
        )
        for row in rows
    ] == expected
    assert {row["in_range"] for row in rows if row["set"] == "held_out"} == {"true", "false"}
    assert {row["in_range"] for row in rows if row["set"] == "training"} == {""}


def test_the_protocol_can_be_sent_again(measured: dict[str, Any], measured_files: dict[str, bytes]) -> None:
    words = "".join(Page(measured_files["report.html"]).words)
    assert json.loads(words[words.index("{", words.rindex("Protocol")) :]) == measured["protocol"]


def test_plots_have_a_panel_for_each_method_in_the_width_of_a_page(
    files: dict[str, bytes], measured_files: dict[str, bytes]
) -> None:
    assert len(Page(measured_files["report.html"]).all("img")) == 8
    for name in ("curves.png", "parameters.png", "profile.png"):
        (width, height), (width_of_one, height_of_one) = png_size(measured_files[name]), png_size(files[name])
        assert width == width_of_one == 1152
        assert 1.5 * height_of_one < height < 2.1 * height_of_one


def test_equal_evaluations_have_equal_files_in_any_thread(evaluation: dict[str, Any], files: dict[str, bytes]) -> None:
    again = [json.loads(json.dumps(evaluation)) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(render, again)) == [files, files]


def test_one_run_of_one_subject_has_a_report_without_intervals() -> None:
    evaluation = sample_evaluation(
        subjects={"candidate": 150.0}, tasks=sample_tasks(1, split=False), training=0, seeds=1, threshold=None
    )
    files = render(evaluation)
    page = Page(files["report.html"])
    found = [each["id"] for each in page.all("section") if each.get("id")]
    assert found == [each for each in SECTIONS if each != "comparisons"]
    assert re.search(
        r"Adapting candidate with inner-loop takes its mean return from [\d.]+ to [\d.]+: a gain", page.text
    )
    assert "All tasks have the same parameters" in page.text
    assert not re.search(r"\[[\d.]+, [\d.]+\]", page.text)
    assert "censored" not in page.text
    assert "the tasks themselves are drawn again; how much seeds matter is not known" in page.text
    assert [png_size(files[name])[0] for name in PLOTS] == [1152] * 4
    assert len(rows_of(files)) == 4


def test_eight_subjects_and_many_parameters_stay_readable() -> None:
    tasks = [
        task | {"parameters": {f"mass_{each}": float(np.cos(n * each)) for each in range(1, 10)}}
        for n, task in enumerate(sample_tasks(12))
    ]
    names = {f"rival-{place}": 150.0 - 10 * place for place in range(8)}
    evaluation = sample_evaluation(subjects=names, tasks=tasks, seeds=2)
    files = render(evaluation)
    assert (
        "9 parameters vary; drawn are mass_1, mass_2, mass_3, mass_4, mass_5, mass_6."
        in Page(files["report.html"]).text
    )
    # What an A4 page holds between its margins is 10.3 inches high.
    assert max(png_size(files[name])[1] for name in PLOTS) < 10 * 160


@pytest.mark.parametrize("seeds", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_thousand_tasks_are_reported_in_bounded_time_and_space(seeds: int) -> None:
    subjects = {"candidate": 150.0, "champion": 120.0}
    # Intervals over 100 seeds would take far longer than the report itself.
    evaluation = sample_evaluation(
        subjects=subjects, tasks=1000, training=0, seeds=seeds, inner_steps=1, summed_seeds=1
    )
    begun = time.monotonic()
    files = render(evaluation)
    assert time.monotonic() - begun < 30
    assert len(files["report.html"]) < 3_000_000
    assert max(len(files[name]) for name in PLOTS) < 1_000_000
    assert max(png_size(files[name])[1] for name in PLOTS) < 10 * 160
    page = Page(files["report.html"])
    assert len(page.all("details")) == 1
    assert page.text.count("pole-1000") == 1
    assert files["runs.csv"].count(b"\r\n") == 1 + 2 * 1000 * seeds * 2
