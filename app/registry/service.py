"""The registry: publishing versions, finding them, and what they come from. Aliases: :mod:`app.registry.aliases`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.database import exclusive, new_id
from app.errors import Invalid, NotFound
from app.pagination import Page, paginate
from app.tables import Alias, Model, Run, RunTask, Version, VersionFile

_LONGEST_NUMBER = 9


@dataclass(frozen=True)
class ModelEntry:
    """A model with its newest version and what its aliases point to."""

    model: Model
    latest_version: int | None
    aliases: dict[str, int]


@dataclass(frozen=True)
class VersionEntry:
    """A version with its files and the aliases that point to it."""

    version: Version
    files: list[VersionFile]
    aliases: list[str]


@dataclass(frozen=True)
class Lineage:
    """A version, the run that made it, the registered tasks of that run, and the version it started from."""

    version: Version
    run: Run | None
    task_ids: list[str]
    parent: Version | None


def publish_version(
    session: Session,
    model: str,
    manifest: Mapping[str, Any],
    files: Mapping[str, tuple[str, int]],
    run_id: str | None,
    parent: Version | None = None,
) -> Version:
    """Create the next version of a model, and the model with its first.

    Numbers count from 1 without a gap, and none is used twice, also when several transactions publish at once.

    Args:
        session: A writing one.
        model: The model's name.
        manifest: The content of its ``manifest.json``.
        files: For each name the sha256 and the size of an artefact that is in the store already.
        run_id: The run that made it.
        parent: The version that it started from.
    """
    exclusive(session, f"model:{model}")
    row = session.get(Model, model, with_for_update=True)
    if row is None:
        row = Model(name=model, next_version=1)
        session.add(row)
    number = row.next_version
    row.next_version = number + 1
    session.flush()
    version = Version(
        id=new_id(),
        model=model,
        number=number,
        manifest=dict(manifest),
        run_id=run_id,
        parent_id=None if parent is None else parent.id,
    )
    session.add(version)
    session.flush()
    session.add_all(
        VersionFile(version_id=version.id, name=name, sha256=sha256, size_bytes=size_bytes)
        for name, (sha256, size_bytes) in files.items()
    )
    session.flush()
    return version


def resolve(session: Session, reference: str, pointer: str = "/model") -> Version:
    """The version that ``model@alias``, ``model/3`` or ``model`` (its newest) stands for.

    Args:
        session: Where to read.
        reference: What the caller wrote.
        pointer: Where in the request that was.

    Raises:
        Invalid: At the pointer, if there is no such model, alias or version.
    """
    name, at, alias = reference.partition("@")
    statement = select(Version)
    if at:
        statement = statement.join(Alias, (Alias.model == Version.model) & (Alias.version == Version.number)).where(
            Alias.model == name, Alias.alias == alias
        )
        missing = f"the model {name!r} has no alias {alias!r}"
    else:
        name, slash, number = reference.partition("/")
        statement = statement.where(Version.model == name)
        if slash:
            statement = statement.where(Version.number == (_number(number) or 0))
            missing = f"the model {name!r} has no version {number!r}"
        else:
            statement = statement.order_by(Version.number.desc()).limit(1)
            missing = f"the model {name!r} has no version yet"
    version = session.scalar(statement)
    if version is not None:
        return version
    if session.get(Model, name) is None:
        missing = f"there is no model {name!r}"
    raise Invalid(pointer, f"{missing}; write model@alias, model/3, or model for its newest version")


def get_model(session: Session, name: str) -> ModelEntry:
    """The model of that name.

    Raises:
        NotFound: If there is none.
    """
    return _entries(session, [find_model(session, name)])[0]


def list_models(session: Session, page: Page) -> tuple[list[ModelEntry], str | None]:
    """A page of models, by name."""
    rows, token = paginate(session, select(Model), Model.name, page, {"list": "models"})
    return _entries(session, rows), token


def find_model(session: Session, name: str) -> Model:
    """The row of a model.

    Raises:
        NotFound: If there is none.
    """
    model = session.get(Model, name)
    if model is None:
        raise NotFound(f"there is no model {name!r}")
    return model


def find_version(session: Session, model: str, number: str) -> Version:
    """The row of a version, by its number as it stands in a URL.

    Raises:
        NotFound: If there is none.
    """
    find_model(session, model)
    version = session.scalar(select(Version).where(Version.model == model, Version.number == (_number(number) or 0)))
    if version is None:
        raise NotFound(f"the model {model!r} has no version {number!r}")
    return version


def get_version(session: Session, model: str, number: str) -> VersionEntry:
    """A version with its files and aliases.

    Raises:
        NotFound: If there is none.
    """
    return _version_entries(session, [find_version(session, model, number)])[0]


def list_versions(session: Session, model: str, page: Page) -> tuple[list[VersionEntry], str | None]:
    """A page of a model's versions, newest first.

    Raises:
        NotFound: If there is no such model.
    """
    find_model(session, model)
    statement = select(Version).where(Version.model == model)
    filters = {"list": "versions", "model": model}
    rows, token = paginate(session, statement, Version.number, page, filters, newest_first=True)
    return _version_entries(session, rows), token


def get_file(session: Session, model: str, number: str, name: str) -> VersionFile:
    """A file of a version.

    Raises:
        NotFound: If there is none.
    """
    version = find_version(session, model, number)
    file = session.get(VersionFile, (version.id, name))
    if file is None:
        raise NotFound(f"{model}/{number} has no file {name!r}")
    return file


def get_lineage(session: Session, model: str, number: str) -> Lineage:
    """What a version comes from.

    Raises:
        NotFound: If there is no such version.
    """
    version = find_version(session, model, number)
    run = session.get(Run, version.run_id) if version.run_id else None
    tasks = select(RunTask.task_id).where(RunTask.run_id == version.run_id).order_by(RunTask.task_id)
    parent = session.get(Version, version.parent_id) if version.parent_id else None
    return Lineage(version, run, list(session.scalars(tasks)) if run else [], parent)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER else None


def _entries(session: Session, models: Sequence[Model]) -> list[ModelEntry]:
    names = [model.name for model in models]
    latest = {
        name: number
        for name, number in session.execute(
            select(Version.model, func.max(Version.number)).where(Version.model.in_(names)).group_by(Version.model)
        )
    }
    aliases: dict[str, dict[str, int]] = {name: {} for name in names}
    for alias in session.scalars(select(Alias).where(Alias.model.in_(names)).order_by(Alias.alias)):
        aliases[alias.model][alias.alias] = alias.version
    return [ModelEntry(model, latest.get(model.name), aliases[model.name]) for model in models]


def _version_entries(session: Session, versions: Iterable[Version]) -> list[VersionEntry]:
    entries = {version.id: VersionEntry(version, [], []) for version in versions}
    by_place = {(entry.version.model, entry.version.number): entry for entry in entries.values()}
    files = select(VersionFile).where(VersionFile.version_id.in_(entries)).order_by(VersionFile.name)
    for file in session.scalars(files):
        entries[file.version_id].files.append(file)
    models = {model for model, _ in by_place}
    for alias in session.scalars(select(Alias).where(Alias.model.in_(models)).order_by(Alias.alias)):
        if entry := by_place.get((alias.model, alias.version)):
            entry.aliases.append(alias.alias)
    return list(entries.values())
