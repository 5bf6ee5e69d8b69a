"""docs/export.md is done as it says, in its order: against a service with a version, in an empty folder."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from fastapi import FastAPI
from headstart_client import cli

from app.auth import OPERATOR
from app.registry.aliases import set_alias
from app.registry.service import publish_version
from app.settings import Settings
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, pack
from models.environments import ENVIRONMENTS
from models.export import IR_VERSION, OPSET
from models.learners import MAMLConfig
from models.policy import Policy, PolicyConfig

GUIDE = (Path(__file__).parent.parent / "docs/export.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def _service(
    app: FastAPI, settings: Settings, server_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A service with cartpole@champion, found by whoever runs here."""
    cartpole = ENVIRONMENTS["CartPole-v1"]
    policy = Policy(PolicyConfig((8,)), cartpole.observation_space, cartpole.action_space)
    manifest, parameters = pack(MAMLConfig(), policy, policy.initialise(0), {})
    files = {MANIFEST_FILE: app.state.store.put(manifest), PARAMETERS_FILE: app.state.store.put(parameters)}
    with app.state.database.transaction() as session:
        publish_version(session, "cartpole", json.loads(manifest), files, None)
        set_alias(session, OPERATOR, "cartpole", "champion", 1)
    monkeypatch.setenv("HEADSTART_URL", server_url)
    monkeypatch.setenv("HEADSTART_API_KEY", settings.admin_key_file.read_text().strip())
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_service")
def test_what_the_guide_shows_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "python", "python", "python"]
    for number, (language, block) in enumerate(BLOCKS):
        if language == "sh":
            program, *words = shlex.split(block)
            assert (program, cli.main(words)) == ("headstart", 0)
            continue
        script = tmp_path / f"block_{number}.py"
        script.write_text(block)
        runpy.run_path(str(script))
    pulled = {path.name for path in (tmp_path / "champion").iterdir()}
    assert pulled == set(re.findall(r"^\| `(\S+)` \| .*\|$", GUIDE.split("| file |")[1].split("##")[0], re.MULTILINE))
    assert "champion/policy.onnx" in capsys.readouterr().out


def test_the_guide_says_of_what_version_graphs_are() -> None:
    assert f"opset {OPSET} and IR version {IR_VERSION}" in " ".join(GUIDE.split())
