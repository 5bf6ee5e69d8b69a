"""Executing evaluations under a lease: run by run, then the numbers, the report and the files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from sqlalchemy.orm import Session

from app.adaptations.origin import Origin, read_origin
from app.adaptations.service import most_together, read_method, read_task
from app.database import now
from app.errors import Corrupt
from app.evaluations.report import render
from app.evaluations.schemas import SCRATCH
from app.evaluations.service import RESULT_FILE
from app.execution import Interrupted, Job
from app.store import ArtefactStore
from app.sweep import discard
from app.tables import Evaluation, EvaluationFile
from app.work import get_work
from models.adaptation import AdaptationDiverged
from models.checkpoint import code_version
from models.evaluation import (
    Method,
    Run,
    Subject,
    by_task,
    compare,
    measure,
    oracle,
    runs_from_json,
    runs_to_json,
    summarise,
)
from models.rollout import NonFiniteReward
from models.tasks import TaskBatch
from models.types import canonical_json

FLUSH_S = 0.6
"""Time between two transactions with progress at least."""


def execute_evaluation(job: Job) -> None:
    """Measure, and store results and files in one transaction with the evaluation's end.

    Raises:
        Interrupted: If the process ends, the evaluation is cancelled or the lease lost. Where the process ends, what
            was measured is saved before.
        LeaseLost: If it is another worker's now.
        Exception: What fails it.
    """
    _Execution(job).execute()


@dataclass(frozen=True)
class _Unit:
    """Runs that are measured in one computation: of one subject by one method with one seed, some of the tasks."""

    method: int
    subject: int
    group: str
    seed: int
    first: int
    count: int

    @property
    def key(self) -> str:
        """Where its runs are in a checkpoint."""
        return f"{self.method}/{self.subject}/{self.group}/{self.seed}/{self.first}"


@final
class _Execution:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._flushed_at = self._saved_at = time.monotonic()

        def claim(session: Session) -> tuple[Evaluation, list[Origin | None]]:
            job.lease.write(session)
            row = get_work(session, Evaluation, job.lease.id)
            origins = [
                None
                if each["kind"] == SCRATCH
                else read_origin(session, each["model"], each["version"], each["policy"])
                for each in row.spec["subjects"]
            ]
            return row, origins

        self._row, origins = job.persist(claim)
        spec, self._protocol = self._row.spec, self._row.protocol
        self._methods: list[Method] = [read_method(each) for each in self._protocol["methods"]]
        self._subjects: list[Mapping[str, Any]] = spec["subjects"]
        self._batches = {
            group: TaskBatch.of([read_task(each["definition"]) for each in entries], names=[e["name"] for e in entries])
            for group, entries in (("held_out", spec["tasks"]), ("training", spec["training_tasks"]))
            if entries
        }
        environment = self._batches["held_out"].environment
        self._built: list[Subject] = []
        for origin in origins:
            if origin is None:
                self._built.append(Subject(self._built[0].learner, None))
                continue
            learner, params = origin.build(job.store, environment, [0])
            self._built.append(Subject(learner, {name: value[0] for name, value in params.items()}))
        self._checkpoint = self._row.checkpoint_sha256
        self._runs = _read_checkpoint(job.store, self._checkpoint)

    def execute(self) -> None:
        """Measure what is not measured yet, and publish what came of it."""
        for unit in self._units():
            if unit.key in self._runs:
                continue
            try:
                self._runs[unit.key] = self._job.interrupter.compute(partial(self._measured, unit))
            except Interrupted as interruption:
                if interruption.reason == "stop":
                    self._save()
                raise
            if time.monotonic() - self._saved_at >= self._job.settings.checkpoint_seconds:
                self._save()
            elif time.monotonic() - self._flushed_at >= FLUSH_S:
                self._job.persist_soon(self._write)
                self._flushed_at = time.monotonic()
        self._save()
        document, verdicts = self._job.interrupter.compute(self._document)
        self._publish(self._job.interrupter.compute(lambda: _files(document)), verdicts)

    def _units(self) -> Iterator[_Unit]:
        for m, method in enumerate(self._protocol["methods"]):
            for seed in range(self._protocol["seeds"]):
                for group, tasks in self._batches.items():
                    together = most_together(method, int(tasks.horizon.max()))
                    for s, subject in enumerate(self._subjects):
                        if group == "training" and not subject["trained_alike"]:
                            continue
                        for first in range(0, len(tasks), together):
                            yield _Unit(m, s, group, seed, first, min(together, len(tasks) - first))

    def _measured(self, unit: _Unit) -> list[Any]:
        tasks = self._batches[unit.group]
        if unit.count < len(tasks):
            tasks = tasks.select(range(unit.first, unit.first + unit.count))
        seed = self._protocol["seed"] + unit.seed
        try:
            runs = measure(self._built[unit.subject], tasks, self._methods[unit.method], seed, unit.first)
        except (AdaptationDiverged, NonFiniteReward) as error:
            raise type(error)(f"{self._subjects[unit.subject]['name']}: {error}") from error
        [values] = runs_to_json([runs])
        return list(values)

    def _write(self, session: Session, **values: Any) -> None:
        done = sum(map(len, self._runs.values()))
        self._job.lease.write(session, progress=self._row.progress | {"done": done}, **values)

    def _save(self) -> None:
        before = self._checkpoint
        saved = {"code_version": code_version(), "runs": self._runs}
        sha256, _ = self._job.store.put(canonical_json(saved).encode())
        if sha256 != before and self._job.persist_soon(partial(self._write, checkpoint_sha256=sha256)):
            self._checkpoint = sha256
            self._discard(before)
        self._saved_at = self._flushed_at = time.monotonic()

    def _discard(self, sha256: str | None) -> None:
        discard(self._job.database, self._job.store, [] if sha256 is None else [sha256])

    def _of(self, method: int, subject: int, group: str) -> list[list[Run]] | None:
        """Runs of a subject, seed by seed; None where none were to be measured."""
        seeds: list[list[Any]] = [[] for _ in range(self._protocol["seeds"])]
        for unit in self._units():
            if (unit.method, unit.subject, unit.group) == (method, subject, group):
                seeds[unit.seed] += self._runs[unit.key]
        return runs_from_json(seeds) if seeds[0] else None

    def _document(self) -> tuple[dict[str, Any], list[str | None]]:
        """The evaluation whole, and the verdicts of the first subject against each by the first method."""
        spec, names = self._row.spec, [each["name"] for each in self._subjects]
        methods: dict[str, Any] = {}
        runs: dict[str, Any] = {}
        for m, method in enumerate(spec["methods"]):
            measured = [(self._of(m, s, "held_out") or [], self._of(m, s, "training")) for s in range(len(names))]
            methods[method] = self._results(self._methods[m].name, names, measured)
            runs[method] = {
                name: {
                    "held_out": runs_to_json(held_out),
                    "training": None if training is None else runs_to_json(training),
                }
                for name, (held_out, training) in zip(names, measured, strict=True)
            }
        comparisons = methods[spec["methods"][0]]["comparisons"]
        verdicts = [None, *(each["verdict"] for each in comparisons)]
        row = self._row
        compares = len(self._protocol["subjects"]) > 1
        document = {
            "id": row.id,
            "name": row.name,
            "created_at": row.created_at.isoformat(),
            "finished_at": now().isoformat(),
            "code_version": code_version(),
            "verdict": verdicts[1] if compares else None,
            "leakage": spec["leakage"],
            "warnings": spec["warnings"],
            "protocol": self._protocol,
            "result": {
                "tasks": self._tasks("held_out"),
                "training_tasks": self._tasks("training"),
                "subjects": {each["name"]: {"kind": each["kind"], "label": each["label"]} for each in self._subjects},
                "methods": methods,
            },
            "runs": runs,
        }
        return document, verdicts

    def _results(
        self, method: str, names: Sequence[str], measured: Sequence[tuple[list[list[Run]], list[list[Run]] | None]]
    ) -> dict[str, Any]:
        threshold, oracles = self._protocol["threshold"], oracle(self._batches["held_out"])
        in_range = [each["in_range"] for each in self._row.spec["tasks"]]
        groups = {
            name: [place for place, inside in enumerate(in_range) if inside is wanted]
            for name, wanted in (("in_range", True), ("out_of_range", False))
        }
        subjects: dict[str, Any] = {}
        for name, (held_out, training) in zip(names, measured, strict=True):
            whole = summarise(held_out, method, oracles, threshold, training)
            subjects[name] = whole | {
                "groups": {
                    group: summarise(
                        [[by_seed[n] for n in places] for by_seed in held_out],
                        method,
                        [oracles[n] for n in places],
                        threshold,
                    )
                    if places
                    else None
                    for group, places in groups.items()
                },
                "tasks": by_task(held_out, method, oracles, threshold),
            }
        (first, _), *others = measured
        return {
            "axis": subjects[names[0]]["axis"],
            "subjects": subjects,
            "comparisons": [
                {"first": names[0], "second": name, **compare(first, runs, method)}
                for name, (runs, _) in zip(names[1:], others, strict=True)
            ],
        }

    def _tasks(self, group: str) -> list[dict[str, Any]]:
        entries = self._row.spec["tasks" if group == "held_out" else "training_tasks"]
        if not entries:
            return []
        return [
            {
                "name": each["name"],
                "id": each["id"],
                "environment": each["definition"]["environment"],
                "parameters": each["definition"]["parameters"],
                "in_range": each["in_range"],
                "oracle": best,
            }
            for each, best in zip(entries, oracle(self._batches[group]), strict=True)
        ]

    def _publish(self, files: Mapping[str, bytes], verdicts: Sequence[str | None]) -> None:
        stored = {name: self._job.store.put(content) for name, content in files.items()}
        before = self._checkpoint

        def publish(session: Session) -> None:
            self._write(session)
            self._job.lease.end(session, "succeeded", verdicts=list(verdicts), checkpoint_sha256=None)
            session.add_all(
                EvaluationFile(evaluation_id=self._row.id, name=name, sha256=sha256, size_bytes=size_bytes)
                for name, (sha256, size_bytes) in stored.items()
            )

        self._job.persist(publish)
        self._discard(before)


def _origin(session: Session, subject: Mapping[str, Any]) -> Origin | None:
    if subject["kind"] == SCRATCH:
        return None
    return read_origin(session, subject["model"], subject["version"], subject["policy"])


def _read_checkpoint(store: ArtefactStore, sha256: str | None) -> dict[str, list[Any]]:
    if sha256 is None:
        return {}
    try:
        saved = json.loads(store.read(sha256))
    except Corrupt:
        # What was measured is measured again.
        return {}
    # So it is where other code measured it: all numbers of an evaluation are of the one that it names.
    runs: dict[str, list[Any]] = saved["runs"] if saved["code_version"] == code_version() else {}
    return runs


def _files(document: Mapping[str, Any]) -> dict[str, bytes]:
    # Not with sorted names: subjects and methods stand in the order that they were asked for.
    whole = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return {RESULT_FILE: whole.encode(), **render(document)}
