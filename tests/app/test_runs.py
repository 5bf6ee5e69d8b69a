import json
import threading
import warnings

import httpx
import pytest

from app.leases import Leases
from app.main import create_app
from app.runs.service import training_of
from app.settings import Settings
from app.tables import Run, RunMetric

TINY = {
    "model": "nav",
    "learner": {"name": "maml", "tasks_per_iteration": 2, "episodes_per_task": 2},
    "policy": {"hidden": [4]},
    "tasks": {"family": "navigation-2d"},
    "stop": {"iterations": 3},
}


def post(client, **changes):
    return client.post("/v1/runs", json=TINY | changes)


def problem(response):
    assert response.status_code == 422, response.text
    return {error["pointer"]: error["detail"] for error in response.json()["errors"]}


def register(client, name, environment="Navigation2D-v0", **values):
    response = client.post("/v1/tasks", json={"name": name, "environment": environment} | values)
    assert response.status_code == 201, response.text
    return response.json()["id"]


def test_a_run_is_queued_with_every_default_written_down(client):
    response = post(client)
    run = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/runs/{run['id']}"
    assert (run["state"], run["version"], run["attempts"], run["error"]) == ("queued", None, 0, None)
    assert run["progress"] == {"fraction": 0, "iterations": 0, "environment_steps": 0, "seconds": 0}
    assert run["learner"]["inner_learning_rate"] == 0.1
    assert run["policy"]["activation"] == "tanh"
    assert run["tasks"] == {"family": "navigation-2d", "split": "train"}
    assert run["stop"]["seconds"] is None
    assert (run["device"], run["evaluation"], run["best"]) == ("auto", None, None)
    assert client.get(response.headers["location"]).json() == run


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"learner": {"name": "hebbian"}}, "/learner/name", "'maml'"),
        ({"learner": {"inner_stepz": 1}}, "/learner/inner_stepz", "unknown field"),
        ({"learner": {"inner_steps": True}}, "/learner/inner_steps", "a number"),
        ({"learner": {"inner_learning_rate": "0.1"}}, "/learner/inner_learning_rate", "a number"),
        ({"learner": {"inner_steps": 0}}, "/learner/inner_steps", "greater than or equal to 1"),
        ({"learner": {"inner_learning_rate": 0}}, "/learner/inner_learning_rate", "greater than 0"),
        ({"learner": {"inner_learning_rate": -0.1}}, "/learner/inner_learning_rate", "greater than 0"),
        ({"learner": {"inner_learning_rate": []}}, "/learner/inner_learning_rate", "at least 1, not 0"),
        ({"learner": {"inner_learning_rate": [0.1, True]}}, "/learner/inner_learning_rate/1", "a number"),
        ({"learner": {"inner_learning_rate": [0.1, 0]}}, "/learner/inner_learning_rate/1", "greater than 0"),
        ({"learner": {"inner_learning_rate": {"first": 1}}}, "/learner/inner_learning_rate", "a valid number"),
        ({"learner": {"name": "dice", "variance_reduction": 1}}, "/learner/variance_reduction", "true or false"),
        ({"learner": {"name": "reptile", "outer_step": "trpo"}}, "/learner/outer_step", "unknown field"),
        ({"learner": {"outer_step": "trpo", "kl_limit": 0}}, "/learner/kl_limit", "greater than 0"),
        (
            {"learner": {"outer_step": "trpo", "intermediate_weight": 1}},
            "/learner/intermediate_weight",
            "must be 0",
        ),
        ({"learner": {"max_tasks_in_memory": 0}}, "/learner/max_tasks_in_memory", "greater than or equal to 1"),
        ({"learner": {"name": "cavia"}}, "/policy/context_size", "at least 1 for cavia"),
        ({"policy": {"context_size": 2}}, "/policy/context_size", "must be 0 for maml"),
        (
            {"policy": {"log_std": "state"}, "tasks": {"family": "cartpole-physics"}},
            "/policy/log_std",
            "discrete actions",
        ),
        ({"learner": {"episodes_per_task": 1000, "tasks_per_iteration": 1000}}, "/learner/tasks_per_iteration", "over"),
        ({"learner": 3}, "/learner", "object"),
        ({"policy": {"hidden": []}}, "/policy/hidden", "at least 1"),
        ({"policy": {"hidden": [4, "8"]}}, "/policy/hidden/1", "a number"),
        ({"stop": {}}, "/stop", "give at least one"),
        ({"stop": {"iterations": 2**70}}, "/stop/iterations", ""),
        ({"stop": {"plateau": {"iterations": 1}}}, "/stop/plateau/improvement", "required"),
        ({"stop": {"gap": {"above": 1.0}}}, "/stop/gap", "needs an evaluation"),
        ({"stop": {"gap": {}}, "evaluation": {}}, "/stop/gap/above", "required"),
        ({"tasks": {}}, "/tasks", "exactly one"),
        ({"tasks": {"family": "navigation-2d", "ids": ["a"]}}, "/tasks", "family and ids"),
        ({"tasks": {"family": "navigation-2d", "split": "tost"}}, "/tasks/split", "train"),
        ({"tasks": {"family": "no-such"}}, "/tasks/family", "no-such"),
        ({"tasks": {"family": "navigation-2d", "registered": True}}, "/tasks", "empty"),
        ({"tasks": {"labels": {"team": "x"}}}, "/tasks", "empty"),
        ({"tasks": {"ids": []}}, "/tasks/ids", "at least 1"),
        ({"tasks": {"ids": ["ghost"]}}, "/tasks/ids/0", "ghost"),
        ({"evaluation": {"split": "train"}}, "/evaluation/split", "trains"),
        ({"evaluation": {"tasks": 1000, "episodes": 1000}}, "/evaluation/tasks", "over"),
        (
            {"evaluation": {"episodes": 1000}, "policy": {"hidden": [4096, 4096]}},
            "/evaluation/episodes",
            "at most 244 fit",
        ),
        ({"evaluation": {"steps": 0}}, "/evaluation/steps", "greater than or equal to 1"),
        ({"evaluation": {"steps": 21}}, "/evaluation/steps", "less than or equal to 20"),
        ({"device": "tpu"}, "/device", "'auto', 'cpu' or 'cuda'"),
        ({"model": "No Good"}, "/model", "match"),
        ({"seed": -1}, "/seed", "greater than or equal to 0"),
        ({"seed": 2**63}, "/seed", ""),
        ({"colour": "red"}, "/colour", "unknown field"),
    ],
)
def test_a_run_that_cannot_start_is_refused_with_a_pointer(refusals, changes, pointer, detail):
    found = problem(refusals(changes))
    assert pointer in found, found
    assert detail in found[pointer]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Posts to one application on SQLite: a refused request leaves nothing behind."""
    settings = Settings(data=tmp_path_factory.mktemp("refusals"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which of two HTTP libraries it prefers
        from starlette.testclient import TestClient
    with TestClient(create_app(settings)) as client:
        client.headers["Authorization"] = f"Bearer {settings.admin_key_file.read_text().strip()}"
        yield lambda changes: post(client, **changes)
        assert client.get("/v1/runs").json()["runs"] == []


def test_only_one_thing_is_said_of_a_rate_that_is_neither_a_number_nor_a_list_of_them(refusals):
    for rate, pointer in ((0, ""), ("fast", ""), ([], ""), ([0.1, -1], "/1"), ([0.1, "fast"], "/1")):
        errors = refusals({"learner": {"inner_learning_rate": rate}}).json()["errors"]
        assert [error["pointer"] for error in errors] == [f"/learner/inner_learning_rate{pointer}"]


def test_a_number_that_is_not_finite_is_refused(client):
    body = json.dumps(TINY).replace('"iterations": 3', '"return_at_least": 1e400')
    response = client.post("/v1/runs", content=body, headers={"Content-Type": "application/json"})
    assert problem(response) == {"/stop/return_at_least": "must be a finite number"}


def test_tasks_of_different_environments_are_refused_and_both_are_named(client):
    register(client, "here", horizon=10)
    register(client, "there", "CartPole-v1", horizon=10)
    found = problem(post(client, tasks={"ids": ["here", "there"]}))
    assert "here" in found["/tasks"]
    assert "there" in found["/tasks"]
    assert "CartPole-v1" in found["/tasks"]


def test_the_longest_of_the_selected_tasks_must_fit_in_memory(client):
    names = [f"short-{i}" for i in range(40)]
    client.post(
        "/v1/tasks:batchCreate",
        json={"tasks": [{"name": n, "environment": "Navigation2D-v0", "horizon": i + 5} for i, n in enumerate(names)]},
    )
    register(client, "endless", horizon=100_000)
    found = problem(post(client, tasks={"ids": [*names, "endless"]}, learner={"episodes_per_task": 20}))
    assert "100000 steps" in found["/learner/episodes_per_task"]


def test_tasks_are_selected_by_id_name_label_and_family(client, database):
    family = {"family": "navigation-2d", "split": "train"}
    first = register(client, "one", parameters={"goal_x": 0.1}, labels={"team": "a"}, **family)
    register(client, "two", parameters={"goal_x": 0.2}, labels={"team": "a"}, **family | {"split": "test"})
    three = register(client, "three", parameters={"goal_x": 0.3})
    selections = [
        ({"ids": [first, "three", "one"]}, 2),
        ({"labels": {"team": "a"}}, 2),
        ({"labels": {"team": "a"}, "split": "test"}, 1),
        ({"family": "navigation-2d", "registered": True}, 1),
    ]
    for selection, count in selections:
        response = post(client, tasks=selection)
        assert response.status_code == 202, response.text
        with database.snapshot() as session:
            training = training_of(session, session.get(Run, response.json()["id"]))
        assert len(training.tasks.tasks) == count
    assert client.delete(f"/v1/tasks/{three}").status_code == 409


def test_held_out_tasks_are_drawn_from_the_family_of_the_selected_tasks(client, database):
    family = {"family": "navigation-2d", "split": "train"}
    register(client, "one", parameters={"goal_x": 0.1}, **family)
    register(client, "stray", parameters={"goal_x": 0.2})
    evaluation = {"tasks": 5, "episodes": 2}
    run = post(client, tasks={"ids": ["one"]}, evaluation=evaluation, stop={"gap": {"above": 0.5}})
    assert run.status_code == 202, run.text
    with database.snapshot() as session:
        training = training_of(session, session.get(Run, run.json()["id"]))
    assert len(training.held_out.tasks) == 5
    assert "no family" in problem(post(client, tasks={"ids": ["stray"]}, evaluation=evaluation))["/evaluation"]
    both = problem(post(client, tasks={"ids": ["one", "stray"]}, evaluation=evaluation))["/evaluation"]
    assert "'one'" in both
    assert "'stray'" in both


def test_held_out_evaluation_takes_its_steps_and_episodes_from_the_learner_unless_it_is_told(client, database):
    learner = {"name": "reptile", "inner_steps": 4, "episodes_per_task": 3}
    for evaluation, expected in (({}, (4, 3)), ({"steps": 2, "episodes": 5}, (2, 5))):
        run_id = post(client, learner=learner, evaluation=evaluation).json()["id"]
        with database.snapshot() as session:
            held_out = training_of(session, session.get(Run, run_id)).held_out
        assert (held_out.steps, held_out.episodes) == expected


def test_the_held_out_tasks_of_a_run_are_those_that_sampling_its_family_gives(client):
    run_id = post(client, evaluation={"tasks": 3, "split": "validation"}, seed=6).json()["id"]
    found = client.get(f"/v1/runs/{run_id}/evaluation-tasks").json()
    assert (found["family"], found["split"], found["seed"]) == ("navigation-2d", "validation", 6)
    sampled = client.post("/v1/task-families/navigation-2d:sample", json={"count": 3, "split": "validation", "seed": 6})
    assert found["tasks"] == [{name: task[name] for name in found["tasks"][0]} for task in sampled.json()["tasks"]]
    adaptation = {"model": None, "task": found["tasks"][0]}
    assert client.post("/v1/adaptations", json=adaptation, headers={"Prefer": "wait=0"}).status_code == 202
    without = post(client).json()["id"]
    answer = client.get(f"/v1/runs/{without}/evaluation-tasks")
    assert (answer.status_code, "no evaluation" in answer.json()["detail"]) == (404, True)


def test_a_run_that_an_earlier_version_wrote_down_takes_the_defaults_of_what_it_could_not_say(client, database):
    run_id = post(client, evaluation={"tasks": 2}).json()["id"]
    with database.transaction() as session:
        run = session.get(Run, run_id)
        evaluation = {name: value for name, value in run.spec["evaluation"].items() if name != "steps"}
        run.spec = {name: value for name, value in run.spec.items() if name != "device"} | {"evaluation": evaluation}
    with database.snapshot() as session:
        training = training_of(session, session.get(Run, run_id))
    assert (training.device, training.held_out.steps) == ("auto", 1)
    assert client.get(f"/v1/runs/{run_id}").json()["device"] == "auto"


def test_runs_are_listed_newest_first_by_state_and_model(client):
    ids = [post(client, model=model).json()["id"] for model in ("a", "b", "a")]
    client.post(f"/v1/runs/{ids[0]}:cancel")

    def listed(query=""):
        return [run["id"] for run in client.get(f"/v1/runs{query}").json()["runs"]]

    assert listed() == ids[::-1]
    assert listed("?model=a") == [ids[2], ids[0]]
    assert listed("?state=cancelled") == [ids[0]]
    assert listed("?state=queued&model=a") == [ids[2]]
    page = client.get("/v1/runs?page_size=2").json()
    rest = client.get(f"/v1/runs?page_size=2&page_token={page['next_page_token']}").json()
    assert [run["id"] for run in rest["runs"]] == ids[:1]
    assert rest["next_page_token"] is None
    assert client.get("/v1/runs?state=resting").status_code == 422


def test_a_queued_run_is_cancelled_at_once_and_cancelling_again_changes_nothing(client):
    run = post(client).json()
    cancelled = client.post(f"/v1/runs/{run['id']}:cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["finished_at"] is not None
    assert client.post(f"/v1/runs/{run['id']}:cancel").json() == cancelled.json()


def test_cancelling_a_running_run_is_a_request_to_its_worker(client, database):
    run = post(client).json()
    lease = Leases(database, Run, 60, 3).claim()
    answer = client.post(f"/v1/runs/{run['id']}:cancel").json()
    assert (answer["state"], answer["cancel_requested"]) == ("running", True)
    with database.transaction() as session:
        assert lease.write(session) is True


def test_a_repeated_post_with_one_idempotency_key_makes_one_run(client):
    headers = {"Idempotency-Key": "nightly-1"}
    answers = [client.post("/v1/runs", json=TINY, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert len(client.get("/v1/runs").json()["runs"]) == 1


def test_what_does_not_exist_is_a_404(client):
    for path in ("", "/metrics", "/evaluation-tasks", "/events", "/files/checkpoint.safetensors"):
        assert client.get(f"/v1/runs/nothing{path}").status_code == 404
    assert client.post("/v1/runs/nothing:cancel").status_code == 404
    run = post(client).json()
    response = client.get(f"/v1/runs/{run['id']}/files/checkpoint.safetensors")
    assert response.status_code == 404
    assert "no checkpoint" in response.json()["detail"]


def measure(session, run_id, iteration):
    session.add(
        RunMetric(
            run_id=run_id,
            sequence=iteration,
            iteration=iteration,
            environment_steps=10 * iteration,
            seconds=0.1,
            values={"return_after": float(iteration)},
            attempt=1,
        )
    )


def test_metrics_are_paged_and_filtered_by_sequence(client, database):
    run_id = post(client).json()["id"]
    with database.transaction() as session:
        for iteration in range(1, 8):
            measure(session, run_id, iteration)
    page = client.get(f"/v1/runs/{run_id}/metrics?after=2&page_size=3").json()
    assert [metric["sequence"] for metric in page["metrics"]] == [3, 4, 5]
    assert page["metrics"][0]["values"] == {"return_after": 3.0}
    assert page["metrics"][0]["evaluation"] is None
    rest = client.get(f"/v1/runs/{run_id}/metrics?after=2&page_size=3&page_token={page['next_page_token']}").json()
    assert [metric["sequence"] for metric in rest["metrics"]] == [6, 7]


def events(response):
    found, current = [], {}
    for line in response.iter_lines():
        if not line and current:
            found.append(current)
            current = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            current[name] = value
    return found


def test_a_stream_is_resumed_after_the_last_event_that_was_received(server_url, admin_headers, database):
    url = server_url
    with httpx.Client(base_url=url, headers=admin_headers(), timeout=30) as client:
        run_id = client.post("/v1/runs", json=TINY).json()["id"]
        lease = Leases(database, Run, 60, 3).claim()

        def work():
            for iteration in range(1, 5):
                with database.transaction() as session:
                    lease.write(session, iterations=iteration)
                    measure(session, run_id, iteration)
            with database.transaction() as session:
                lease.end(session, "succeeded")

        worker = threading.Thread(target=work)
        with client.stream("GET", f"/v1/runs/{run_id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            worker.start()
            whole = events(response)
        worker.join()
        assert [int(event["id"]) for event in whole if event["event"] == "metrics"] == [1, 2, 3, 4]
        assert whole[-1]["event"] == "state"
        assert json.loads(whole[-1]["data"])["state"] == "succeeded"
        with client.stream("GET", f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": "2"}) as response:
            rest = events(response)
        assert [event["id"] for event in rest] == ["3", "4", "4"]
        bad = client.get(f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": "yesterday"})
        assert bad.status_code == 400


def test_runs_need_their_scope(client):
    key = client.post("/v1/api-keys", json={"name": "reader", "scopes": ["policies:act"]}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert client.post("/v1/runs", json=TINY, headers=headers).status_code == 403
    assert client.get("/v1/runs", headers=headers).status_code == 200
