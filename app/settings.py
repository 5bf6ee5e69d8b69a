"""What an operator can set, all of it by environment variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError


class InvalidSetting(ValueError):
    """An environment variable that this service cannot use; the message names it."""


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if len(text) <= 20 else high + 1
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a whole number from {low} to {high}"
    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a number of seconds from {low:g} to {high:g}"
    return parse


def _folder(text: str) -> Path:
    """a path of a folder"""  # noqa: D403, D415 (the words complete a sentence of an error message)
    if not text or "\0" in text:
        raise ValueError
    return Path(text).expanduser()


def _host(text: str) -> str:
    """an address or host name"""  # noqa: D403, D415
    if not text or any(c.isspace() for c in text):
        raise ValueError
    return text


def _database_url(text: str) -> str:
    """a URL of SQLite or PostgreSQL: sqlite:///file.db or postgresql://user:password@host/name"""  # noqa: D403, D415
    if not text:
        return ""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ValueError from error
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    if url.drivername in ("sqlite", "sqlite+pysqlite") and url.database and url.database != ":memory:":
        return url.render_as_string(hide_password=False)
    raise ValueError


def _modules(text: str) -> tuple[str, ...]:
    """names of Python modules, separated by commas"""  # noqa: D403, D415
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise ValueError
    return names


class Variable(NamedTuple):
    """What is said of a setting besides its type and default.

    Attributes:
        meaning: For the operator.
        parse: Makes the value from text; its docstring completes "must be ...".
        default: How the default is written, where that is not plain.
    """

    meaning: str
    parse: Callable[[str], Any]
    default: str = ""


@dataclass(frozen=True)
class Settings:
    """Every setting; the variable of ``max_body_bytes`` is ``HEADSTART_MAX_BODY_BYTES``, and so on.

    :func:`table` lists name, default and meaning of each.
    """

    data: Annotated[Path, Variable("folder of the SQLite database, the artefacts and admin.key", _folder, "./var")] = (
        Path("./var")
    )
    host: Annotated[str, Variable("address that the API listens on", _host)] = "127.0.0.1"
    port: Annotated[int, Variable("port that the API listens on; 0 takes a free one", _whole(0, 65535))] = 8000
    database_url: Annotated[
        str,
        Variable("the meta-database: sqlite:///... or postgresql://...", _database_url, "SQLite in HEADSTART_DATA"),
    ] = ""
    lease_seconds: Annotated[
        float, Variable("after this long without a heartbeat another worker takes over", _seconds(0.1, 3600))
    ] = 10.0
    checkpoint_seconds: Annotated[float, Variable("time between two checkpoints of a run", _seconds(0, 3600))] = 5.0
    max_attempts: Annotated[int, Variable("workers that a run may lose before it is failed", _whole(1, 1000))] = 3
    max_body_bytes: Annotated[
        int, Variable("largest request body, in bytes; a larger one is answered 413", _whole(1024, 2**40))
    ] = 10 * 1024 * 1024
    api_processes: Annotated[
        int, Variable("API processes that `serve` starts, which share the port", _whole(1, 1024))
    ] = 1
    hot_bytes: Annotated[
        int, Variable("parameters of policies that one API process keeps in memory, in bytes", _whole(2**20, 2**40))
    ] = 256 * 1024 * 1024
    max_in_flight: Annotated[
        int, Variable("requests that act at a time in one API process; any more are answered 503", _whole(1, 10**6))
    ] = 1000
    act_timeout: Annotated[
        float, Variable("seconds that acting may take; then it is answered 503", _seconds(0.001, 3600))
    ] = 10.0
    threads: Annotated[int, Variable("threads that a worker computes with; 0 takes all cores", _whole(0, 4096))] = 0
    niceness: Annotated[
        int, Variable("how far workers may stand back for other processes: 0 not at all, 19 farthest", _whole(0, 19))
    ] = 19
    environment_modules: Annotated[
        tuple[str, ...],
        Variable("modules, separated by commas, that environments such as module:Id may be in", _modules, "none"),
    ] = ()
    environment_timeout: Annotated[
        float, Variable("seconds that one call of a bridged environment may take", _seconds(0.1, 3600))
    ] = 60.0

    def __post_init__(self) -> None:
        """Complete the database's URL: it depends on the data folder."""
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{self.data.absolute() / 'headstart.db'}")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings; an unset or empty variable has its default.

        Raises:
            InvalidSetting: If a value cannot be used.
        """
        values: dict[str, Any] = {}
        for setting, variable in _variables().items():
            name = _environment_name(setting)
            text = environ.get(name, "").strip()
            if not text:
                continue
            try:
                values[setting] = variable.parse(text)
            except ValueError as error:
                # The value is left out: a database's URL holds a password.
                raise InvalidSetting(f"{name} must be {variable.parse.__doc__}") from error
        return cls(**values)

    @property
    def artefacts(self) -> Path:
        """The folder of the artefact store."""
        return self.data / "artefacts"

    @property
    def admin_key_file(self) -> Path:
        """Where the first start writes the key of the administrator."""
        return self.data / "admin.key"


def _variables() -> dict[str, Variable]:
    hints = get_type_hints(Settings, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def _environment_name(setting: str) -> str:
    return f"HEADSTART_{setting.upper()}"


def table() -> str:
    """Every environment variable with its default and meaning, aligned for a terminal."""
    rows = [
        (_environment_name(name), variable.default or f"{getattr(Settings, name)}", variable.meaning)
        for name, variable in _variables().items()
    ]
    name_width, default_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{name_width}}  {default:<{default_width}}  {meaning}" for name, default, meaning in rows)
