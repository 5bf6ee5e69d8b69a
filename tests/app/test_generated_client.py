"""A client that a generator makes of the OpenAPI document works against a running service."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documented import COMMITTED, DOCUMENT

from app.documentation import operations
from app.execution import Interrupter
from app.settings import Settings
from app.worker import Worker

PACKAGE = "generated_headstart_client"
TASK = {"name": "short", "environment": "CartPole-v1", "parameters": {"length": 0.25}, "horizon": 50}
FROM_SCRATCH = {
    "model": None,
    "policy": {"hidden": [8]},
    "task": "short",
    "method": {"name": "ppo", "environment_steps": 500},
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the generated package, which can be imported."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yaml").write_text("post_hooks: []\n")
    options = ["--path", COMMITTED, "--output-path", folder / PACKAGE, "--meta", "none"]
    command = [sys.executable, "-m", "openapi_python_client", "generate", *options, "--config", folder / "config.yaml"]
    # A part of the document that it cannot express is a warning, and left out.
    done = subprocess.run([*command, "--fail-on-warning"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield folder / PACKAGE
    sys.path.remove(str(folder))


@pytest.fixture
def worker(settings: Settings) -> Iterator[None]:
    """A worker of adaptations, in a thread."""
    interrupter = Interrupter()
    worker = Worker(settings, "adaptations", interrupter)
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield
    interrupter.stopping = True
    thread.join(30)
    worker.close()


def test_every_operation_is_in_the_generated_client(generated: Path) -> None:
    modules = {file.stem for file in generated.glob("api/*/*.py")}
    assert {operation["operationId"] for operation in operations(DOCUMENT)} == modules - {"__init__"}


@pytest.fixture
def call(generated: Path, server_url: str, settings: Settings) -> Iterator[Callable[..., Any]]:
    """Calls an operation of the running service through the generated client."""
    package = importlib.import_module(generated.name)
    key = settings.admin_key_file.read_text().strip()
    with package.AuthenticatedClient(server_url, key, raise_on_unexpected_status=True) as client:

        def call(group: str, operation: str, *place: str, **options: Any) -> Any:
            module = importlib.import_module(f"{generated.name}.api.{group}.{operation}")
            return module.sync(*place, client=client, **options)

        yield call


@pytest.mark.usefixtures("worker")
def test_the_generated_client_goes_from_a_task_to_an_action(call: Callable[..., Any]) -> None:
    models = importlib.import_module(f"{PACKAGE}.models")
    assert call("health", "is_ready")["ready"] is True
    task = call("tasks", "create_task", body=models.NewTask.from_dict(TASK), idempotency_key="once")
    assert (task.name, task.horizon, task.parameters["length"]) == ("short", 50, 0.25)
    again = call("tasks", "create_task", body=models.NewTask.from_dict(TASK))
    assert again == task, "it is answered 200 where it was 201"
    assert call("tasks", "list_tasks", page_size=10).tasks == [task]

    asked = models.NewAdaptation.from_dict(FROM_SCRATCH)
    assert isinstance(asked.method, models.PPOConfig)
    adaptation = call("adaptations", "create_adaptation", body=asked, prefer="wait=30")
    assert (adaptation.state, adaptation.error, adaptation.task) == ("succeeded", None, task.id)
    assert adaptation.curve[-1].environment_steps >= 500

    policy = call("policies", "get_policy", adaptation.policy)
    assert (policy.adaptation, policy.action_space["n"]) == (adaptation.id, 2)
    file = call("policies", "get_policy_file", policy.id).payload.read()
    assert len(file) == policy.files[0].size_bytes
    observations = [[0.0, 0.0, 0.02, 0.0], [0.0, 0.0, -0.02, 0.0], [0.0, 1.0, 0.0, -1.0]]
    acted = call("policies", "act", policy.id, body=models.ActRequest(observations=observations))
    assert acted.policy == policy.id
    assert [len(acted.actions), len(acted.values)] == [3, 3]
    assert set(acted.actions) <= {0, 1}

    problem = call("policies", "get_policy", "nothing")
    assert (problem.status, problem.type_) == (404, "/problems/not-found")
