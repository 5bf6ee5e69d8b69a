"""Evaluations on the wire. The methods are the core's own configs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from app import tables
from app.adaptations.schemas import Method
from app.evaluations.examples import EVALUATION, SUMMARY
from app.runs.schemas import TaskSelection
from app.tasks.schemas import Split
from app.validation import Name, Number, Schema, Whole
from app.work import Seed, WorkBody, members_of
from models.adaptation import InnerLoop
from models.statistics import Verdict

SCRATCH = "scratch"
"""Name of the baseline that is a new policy with every seed."""

MULTITASK = "multitask"
"""Name of the baseline that was trained on the same tasks without an inner loop."""

SubjectName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class EvaluatedSubject(Schema):
    """What is evaluated: a version or a policy, one of them. A text stands for the version alone."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: SubjectName | None = None
    """What results call it; by default as it was referred to."""

    version: str | None = None
    """`model@alias`, `model/3`, or `model` for its newest version."""

    policy: str | None = None
    """Id of a policy."""

    @model_validator(mode="after")
    def _one(self) -> EvaluatedSubject:
        if (self.version is None) == (self.policy is None):
            raise ValueError("give version or policy, one of them")
        return self


def _version(subject: object) -> object:
    return {"version": subject} if isinstance(subject, str) else subject


Subject = Annotated[EvaluatedSubject, BeforeValidator(_version, json_schema_input_type=EvaluatedSubject | str)]
"""A version or a policy; a text is a version."""


class HeldOutTasks(TaskSelection):
    """What the subjects are adapted to: exactly one of `family`, `ids` and `labels`."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    default_split: ClassVar[Split] = "test"

    count: Annotated[Whole, Field(ge=1, le=1000)] = 20
    """With `family`: how many fresh tasks of it are drawn."""

    seed: Seed = 0
    """With `family`: what they are drawn with, as sampling the family does."""

    @model_validator(mode="after")
    def _drawn(self) -> HeldOutTasks:
        given = {"count", "seed"} & self.model_fields_set
        if given and (self.family is None or self.registered):
            raise ValueError(f"{' and '.join(sorted(given))} go with fresh tasks of a family")
        return self


class NewEvaluation(Schema):
    """An evaluation that is asked for."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "cartpole-nightly",
                    "subjects": ["cartpole/4", "cartpole@champion"],
                    "multitask": "cartpole-multitask",
                    "tasks": {"family": "cartpole-physics", "split": "test", "count": 20},
                    "methods": [{"name": "inner-loop", "steps": 3, "episodes": 20}],
                    "seeds": 3,
                    "threshold": 195,
                }
            ]
        },
    )

    name: Name | None = None
    """Of the protocol: what to find evaluations again by that measure the same thing."""

    subjects: Annotated[list[Subject], Field(min_length=1, max_length=8)]
    """Versions and policies. The first is compared with each of the others; the verdict is on it and the second."""

    scratch: bool = True
    """Also evaluate a new policy of the first subject's architecture, another one with every seed."""

    multitask: str | None = None
    """A version that the learner `multitask` made, as a baseline."""

    tasks: HeldOutTasks
    """What they are adapted to."""

    training_tasks: Annotated[Whole, Field(ge=0, le=1000)] = 20
    """How many of the first subject's training tasks the gap between training and held-out tasks is measured on; 0 for
    none."""

    methods: Annotated[tuple[Method, ...], Field(min_length=1, max_length=8)] = (InnerLoop(),)
    """How they are adapted: each subject by each of them, within the same budget. The verdict is by the first."""

    seeds: Annotated[Whole, Field(ge=1, le=100)] = 3
    """Adaptations of each subject to each task by each method."""

    seed: Annotated[Seed, Field(lt=2**62)] = 0
    """Of all randomness: the same protocol gives the same numbers."""

    threshold: Annotated[Number, Field(ge=-1e30, le=1e30)] | None = None
    """Return that is to be reached: environment steps to it are reported."""


class EvaluationProgress(Schema):
    """How far an evaluation is: runs (adaptations of a subject to a task with a seed) measured, of all."""

    done: int
    total: int


class Leak(Schema):
    """Tasks of an evaluation that a subject has been trained on."""

    subject: str
    tasks: list[str]
    detail: str


class EvaluationFile(Schema):
    """A file of an evaluation, at `/v1/evaluations/{id}/{name}`."""

    name: str
    sha256: str
    size_bytes: int


class EvaluationSummary(WorkBody):
    """An evaluation without its results.

    ``verdict`` is on the first subject against the second by the first method: whether the 95 % interval of the mean
    difference of their final returns leaves out zero; null with one subject. ``leakage`` lists what must not be: held-
    out tasks that a subject was trained on. ``protocol`` is the request, completed, with aliases as the versions and
    tasks as the ids that they stood for: sent again it gives the same numbers.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [SUMMARY]})

    name: str | None
    progress: EvaluationProgress
    verdict: Verdict | None
    leakage: list[Leak]
    warnings: list[str]
    protocol: dict[str, Any]

    @classmethod
    def of(cls, row: tables.Evaluation, **others: Any) -> Self:
        """The wire form of a row."""
        compared = row.verdicts is not None and len(row.protocol["subjects"]) > 1
        return cls(
            **members_of(row),
            name=row.name,
            progress=EvaluationProgress(**row.progress),
            verdict=row.verdicts[1] if compared else None,  # type: ignore[arg-type,index]  # the worker writes no other
            leakage=row.spec["leakage"],
            warnings=row.spec["warnings"],
            protocol=row.protocol,
            **others,
        )


class EvaluationBody(EvaluationSummary):
    """An evaluation, with its results and files once it has succeeded.

    ``result`` holds the tasks, and for each method and subject: the return before and after each step or budget (mean
    and interquartile mean with stratified bootstrap 95 % intervals), the gain, the share of runs made worse, the gap
    between training and held-out tasks, the regret to the oracle, the environment steps to the threshold, all of it
    for the tasks together, for those in and out of the training range, and task by task; and the comparisons of the
    first subject with the others.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [EVALUATION]})

    result: dict[str, Any] | None
    files: list[EvaluationFile]


class Evaluations(Schema):
    """A page of evaluations, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"evaluations": [SUMMARY], "next_page_token": None}]})

    evaluations: list[EvaluationSummary]
    next_page_token: str | None
