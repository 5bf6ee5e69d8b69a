"""Runs on the wire. Learner, policy and stop are the core's own configs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from app import tables
from app.runs.examples import EVALUATION_TASKS, METRIC, NEW_RUN, RUN
from app.tasks.schemas import LabelName, LabelValue, Split, TaskDefinition
from app.validation import AsSent, Name, Schema, Whole
from app.work import Seed, WorkBody, members_of
from models.device import Device
from models.learners import LearnerConfig, MAMLConfig
from models.policy import PolicyConfig
from models.presets import RECOMMENDED
from models.training import Stop


def _named(learner: object) -> object:
    return {"name": "maml", **learner} if isinstance(learner, dict) else learner


Learner = Annotated[LearnerConfig, Field(discriminator="name"), AsSent, BeforeValidator(_named)]
"""A learner's config, told apart by its name; without one, MAML's."""


class TaskSelection(Schema):
    """What a run trains on: exactly one of `family`, `ids` and `labels`."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    default_split: ClassVar[Split] = "train"

    family: str | None = None
    """A task family: every iteration draws fresh tasks of its distribution."""

    split: Split | None = None
    """Part of the family, `train` by default for a run and `test` for an evaluation; with `labels`, only tasks of this
    split."""

    registered: bool = False
    """With `family`: its registered tasks instead of fresh ones."""

    ids: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = None
    """Registered tasks, each by id or name."""

    labels: Annotated[dict[LabelName, LabelValue], Field(min_length=1, max_length=32)] | None = None
    """Registered tasks that have all of these labels."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("family") is not None and data.get("split") is None:
            return data | {"split": cls.default_split}
        return data

    @model_validator(mode="after")
    def _one_way(self) -> TaskSelection:
        given = [name for name in ("family", "ids", "labels") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of family, ids, labels, not {' and '.join(given) or 'none'}")
        if self.registered and self.family is None:
            raise ValueError("registered goes with family; ids and labels always select registered tasks")
        if self.ids is not None and self.split is not None:
            raise ValueError("ids name their tasks; split goes with family or labels")
        return self


class Evaluation(Schema):
    """Measuring generalisation while training, on tasks of the family that are never trained on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    split: Split = "test"
    """Where the tasks are drawn from: another part of the family than the run trains on."""

    tasks: Annotated[Whole, Field(ge=1, le=1000)] = 20
    """How many of them."""

    every_iterations: Annotated[Whole, Field(ge=1, le=1_000_000)] = 20
    """Iterations from one evaluation to the next; the last iteration always has one."""

    steps: Annotated[Whole, Field(ge=1, le=20)] | None = None
    """K: the return is measured before adapting and after each of 1..K inner steps, and the version with the highest
    after K is kept; by default the learner's `inner_steps`."""

    episodes: Annotated[Whole, Field(ge=2, le=1000)] | None = None
    """Episodes of each task in each rollout; by default the learner's `episodes_per_task`."""


class NewRun(Schema):
    """A run that is asked for."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"examples": [NEW_RUN]})

    model: Name
    """Whose next version the run makes; a new name makes a new model."""

    learner: Learner = Field(default_factory=MAMLConfig)
    """The meta-learning algorithm and its hyperparameters; by default what is recommended for the family."""

    policy: Annotated[PolicyConfig, AsSent] = Field(default_factory=PolicyConfig)
    """Architecture of the policy; by default what is recommended for the family."""

    tasks: TaskSelection
    """What to train on."""

    stop: Annotated[Stop, AsSent]
    """When to end: at the first of the conditions that holds."""

    evaluation: Evaluation | None = None
    """Held-out evaluation while training; null does without."""

    seed: Seed = 0
    """Of all randomness: the same request on the same machine ends in the same parameters."""

    device: Device = "auto"
    """Where the worker computes: `cuda` is a graphics card; `auto` is one where the worker finds it, else `cpu`. Only
    the worker's machine knows what it has: a run with `cuda` fails as soon as it starts where there is none."""

    @model_validator(mode="before")
    @classmethod
    def _recommended(cls, data: Any) -> Any:
        tasks = data.get("tasks") if isinstance(data, dict) else None
        family = tasks.get("family") if isinstance(tasks, dict) else None
        recommended = RECOMMENDED.get(family) if isinstance(family, str) else None
        if recommended is None:
            return data
        return {"learner": recommended.learner, "policy": recommended.policy} | data


class Progress(Schema):
    """How far a run is. ``fraction`` is in [0, 1]; ``seconds`` is time spent training, over all attempts."""

    fraction: float
    iterations: int
    environment_steps: int
    seconds: float


class BestBody(Schema):
    """The iteration whose initialisation did best on held-out tasks so far, with that return: what the run keeps."""

    iteration: int
    held_out_return_after: float


class RunBody(WorkBody):
    """A run."""

    model_config = ConfigDict(json_schema_extra={"examples": [RUN]})

    model: str
    version: int | None
    progress: Progress
    metrics: dict[str, float]
    best: BestBody | None
    stopped_by: str | None
    learner: dict[str, Any]
    policy: dict[str, Any]
    tasks: dict[str, Any]
    stop: dict[str, Any]
    evaluation: dict[str, Any] | None
    seed: int
    device: Device

    @classmethod
    def of(cls, row: tables.Run) -> RunBody:
        """The wire form of a row."""
        spec = row.spec
        return cls(
            **members_of(row),
            model=row.model,
            version=row.version,
            progress=Progress.model_validate(row),
            metrics=row.metrics,
            best=row.best,  # type: ignore[arg-type]  # pydantic makes it one
            stopped_by=row.stopped_by,
            learner=spec["learner"],
            policy=spec["policy"],
            tasks=spec["tasks"],
            stop=spec["stop"],
            evaluation=spec["evaluation"],
            seed=spec["seed"],
            device=spec.get("device", "auto"),  # a run of an earlier version says nothing of it
        )


class Runs(Schema):
    """A page of runs, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"runs": [RUN], "next_page_token": None}]})

    runs: list[RunBody]
    next_page_token: str | None


class HeldOutReturns(Schema):
    """Mean undiscounted return of every held-out task, before adapting and after 1..K inner steps.

    Row k is after k steps; its entry n is the task at place n of the run's evaluation tasks, null where the return is
    not finite.
    """

    mean_return: list[list[float | None]]


class Metric(Schema):
    """What a run measured in one iteration; its sequence number is the iteration's.

    ``values`` holds means over tasks by name; ``evaluation`` is null where the iteration was not evaluated on held-out
    tasks.
    """

    sequence: int
    iteration: int
    environment_steps: int
    seconds: float
    values: dict[str, float]
    evaluation: HeldOutReturns | None


class EvaluationTasks(Schema):
    """The held-out tasks of a run, in the order of each evaluation's returns.

    They are what sampling ``tasks`` many of ``family`` with this ``split`` and ``seed`` gives.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [EVALUATION_TASKS]})

    family: str
    split: Split
    seed: int
    tasks: list[TaskDefinition]


class Metrics(Schema):
    """A page of a run's metrics, oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"metrics": [METRIC], "next_page_token": None}]})

    metrics: list[Metric]
    next_page_token: str | None
