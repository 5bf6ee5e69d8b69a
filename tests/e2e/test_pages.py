"""Pages of the documentation do what they say, against one running service.

docs/ci.md and the workflow that it shows, as a pipeline runs them: in a shell, with a key of its own; the blocks of
docs/client.md as one program.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from headstart_client.definitions import read_definitions

# What is applied at once is shown on each database by tests/app/test_apply.py.
pytestmark = pytest.mark.databases("sqlite")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
CI = (ROOT / "docs/ci.md").read_text()
CLIENT = (ROOT / "docs/client.md").read_text()
WORKFLOW = yaml.safe_load((EXAMPLES / "headstart.yml").read_text())


class Pipeline:
    """A checkout of the example with the variables of a job; ``$GITHUB_ENV`` adds to them after each step."""

    def __init__(self, service, folder):
        for name in ("tasks.yaml", "run.json"):
            shutil.copy(EXAMPLES / name, folder)
        self.folder = folder
        # Minutes of training are a few iterations here.
        run = json.loads((folder / "run.json").read_text())
        run["learner"] |= {"tasks_per_iteration": 3, "episodes_per_task": 4}
        (folder / "run.json").write_text(json.dumps(run | {"stop": {"iterations": 2}}))
        self.environ = service.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HEADSTART_URL": str(service.http.base_url),
            "GITHUB_ENV": str(folder / "github.env"),
            "GITHUB_RUN_ID": "17",
        }

    def run(self, script, expected=0):
        """What a step prints; as GitHub runs it."""
        file = self.folder / "github.env"
        file.touch()
        added = dict(line.split("=", 1) for line in file.read_text().splitlines())
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environ | added,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == expected, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_job(self, name):
        """The steps of a job that say what to run, but for installing what is installed."""
        scripts = [step["run"] for step in WORKFLOW["jobs"][name]["steps"] if "run" in step]
        assert scripts[0] == "pip install headstart-client"
        return [self.run(script) for script in scripts[1:]]


@pytest.fixture
def pipeline(service, tmp_path):
    return Pipeline(service, tmp_path)


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", CI, re.MULTILINE | re.DOTALL)
    return [text for kind, text in fenced if kind == language]


def test_the_documentation_of_pipelines_works_as_it_is_written(pipeline):
    make_key, first_champion = blocks("sh")
    key = re.search(r"hs_\S+", pipeline.run(make_key))[0]
    pipeline.environ["HEADSTART_API_KEY"] = key
    for line in first_champion.splitlines():
        pipeline.run(line)
    [preview] = pipeline.run_job("preview")
    assert preview.splitlines()[-1] == "0 would be created, 5 unchanged, 0 conflict; nothing was changed"
    assert len(pipeline.run_job("train")) == 4
    alias = json.loads(pipeline.run("headstart models alias get carts champion --json"))
    assert alias["version"] == 2
    assert (pipeline.folder / "report.html").stat().st_size > 0
    # When the job is run again, this step finds its run instead of starting another.
    [train] = [step["run"] for step in WORKFLOW["jobs"]["train"]["steps"] if step.get("name") == "Train"]
    pipeline.run(train)
    assert json.loads((pipeline.folder / "trained.json").read_text())["version"] == 2
    # What the page shows of a conflict is what is printed.
    file = pipeline.folder / "tasks.yaml"
    file.write_text(file.read_text().replace("length: 0.7,", "length: 0.65,"))
    [shown] = blocks("")
    command, _, output = shown.partition("\n")
    assert pipeline.run(command.removeprefix("$ "), expected=8) == output


def test_pipelines_that_apply_one_file_at_once_create_everything_once_and_none_fails(service, pipeline, tmp_path):
    tasks = [{"environment": "CartPole-v1", "name": f"at-once-{i}", "horizon": 100 + i} for i in range(500)]
    family = {"name": "at-once", "environment": "CartPole-v1", "parameters": {"length": {"uniform": [0.4, 0.6]}}}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump({"families": [family], "tasks": tasks}))
    environ = pipeline.environ | {"HEADSTART_API_KEY": service.settings.admin_key_file.read_text().strip()}
    line = ["headstart", "tasks", "apply", "-f", "many.yaml", "--json"]
    started = [subprocess.Popen(line, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [json.loads(process.communicate(timeout=120)[0])["counts"] for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert sum(count["created"] for count in counts) == 501
    assert sum(count["unchanged"] for count in counts) == 3 * 501


def test_the_examples_read_as_json_readers_would_have_it():
    # A workflow's `on:` is true to PyYAML, and the name of a member here: what the client's reader is for.
    assert True in WORKFLOW
    definitions = read_definitions([str(EXAMPLES / "tasks.yaml")])
    assert [each.body["name"] for each in definitions.tasks][-1] == "cart-long-reversed"
    assert len({json.dumps(each.body["parameters"]) for each in definitions.tasks}) == 4


def test_every_block_of_the_page_about_the_client_runs(service, tmp_path):
    program = tmp_path / "page.py"
    found = re.findall(r"^```python\n(.*?)^```$", CLIENT, re.MULTILINE | re.DOTALL)
    assert len(found) == CLIENT.count("```") // 2
    program.write_text("\n".join(found))
    key = service.settings.admin_key_file.read_text().strip()
    environ = os.environ | {"HEADSTART_URL": str(service.http.base_url), "HEADSTART_API_KEY": key}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[('/observations/0', 'must hold 4 numbers, not 1')]"
