"""The README is held to the code: every setting and every route is in it."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings, table

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_readme_has_every_setting_with_its_default() -> None:
    for line in table().splitlines():
        name, default, meaning = re.split(r" {2,}", line, maxsplit=2)
        assert f"| `{name}` | {default} | {meaning} |" in README


def test_the_readme_has_every_route_and_no_other(tmp_path: Path) -> None:
    app: FastAPI = create_app(Settings(data=tmp_path))
    served = {re.sub(r"{.*?}", "{}", path) for path in app.openapi()["paths"]}
    served.add("/v1/policies/{}/stream")  # OpenAPI has no words for WebSockets
    table = re.findall(r"^\| .*", README.split("## The API in one page")[1].split("```")[0], re.MULTILINE)
    shown = re.findall(r"(/v[12][^`\s?]*)[`?]", "\n".join(table))
    assert {re.sub(r"{.*?}", "{}", path) for path in shown} == served


def test_every_operation_is_described(tmp_path: Path) -> None:
    app: FastAPI = create_app(Settings(data=tmp_path))
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description") or operation.get("summary"), f"{method} {path}"
