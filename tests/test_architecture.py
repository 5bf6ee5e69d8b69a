"""Imports go one way: routes to services to tables and the core; core and client know no service."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    "models": {
        "app",
        "migrations",
        "headstart_client",
        "fastapi",
        "starlette",
        "pydantic",
        "sqlalchemy",
        "httpx",
        "uvicorn",
    },
    # Runs in processes that must start quickly.
    "models/bridge": {"torch", "scipy"},
    "client/headstart_client": {"app", "models", "migrations", "torch", "fastapi", "pydantic", "sqlalchemy"},
    "migrations": {"models"},
}


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(folder: str, pattern: str = "*.py") -> list[Path]:
    found = sorted((ROOT / folder).rglob(pattern))
    assert found, f"nothing matches {folder}/**/{pattern}"
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_what_lies_below_imports_nothing_from_above(folder: str) -> None:
    for path in files(folder):
        assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN[folder], path


def test_services_know_no_http() -> None:
    for path in files("app", "service.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"fastapi", "starlette", "uvicorn"}, path


def test_services_do_not_import_routes() -> None:
    for path in [*files("app", "service.py"), *files("app", "execution.py"), ROOT / "app/worker.py"]:
        assert not any(".routes" in name for name in imported(path)), path


def test_routes_ask_services_and_raise_no_http_errors() -> None:
    for path in files("app", "routes.py"):
        names = imported(path)
        assert not any(name.startswith("sqlalchemy.select") for name in names), path
        assert not any(name.endswith(".HTTPException") for name in names), path


def test_nothing_unpickles_or_evaluates() -> None:
    for folder in ("app", "models", "client/headstart_client"):
        for path in files(folder):
            assert not {name.split(".")[0] for name in imported(path)} & {"pickle", "marshal", "shelve", "dill"}, path
            called = {
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert not called & {"eval", "exec", "compile", "__import__"}, path
