from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text

from app.tables import AuditEvent, Run, RunTask
from models.environments import ENVIRONMENTS
from models.presets import PRESETS

CARTPOLE = {"environment": "CartPole-v1"}


def post(client, expected=201, **body):
    answer = client.post("/v1/tasks", json={**CARTPOLE, **body})
    assert answer.status_code == expected, answer.text
    return answer.json()


def batch(client, tasks, expected=200):
    answer = client.post("/v1/tasks:batchCreate", json={"tasks": tasks})
    assert answer.status_code == expected, answer.text
    return answer.json()


def every(client, path, member):
    items, token = [], None
    while True:
        joint = "&" if "?" in path else "?"
        page = client.get(path + (f"{joint}page_token={token}" if token else "")).json()
        items += page[member]
        token = page["next_page_token"]
        if token is None:
            return items


@pytest.mark.databases("sqlite")
def test_environments_say_what_their_tasks_may_set(client):
    listed = {each["id"]: each for each in client.get("/v1/environments").json()["environments"]}
    assert list(listed) == sorted(ENVIRONMENTS)
    cartpole = listed["CartPole-v1"]
    assert cartpole == client.get("/v1/environments/CartPole-v1").json()
    assert [p["name"] for p in cartpole["parameters"]] == [
        "gravity",
        "masscart",
        "masspole",
        "length",
        "force_mag",
        "tau",
    ]
    assert cartpole["action_space"] == {"type": "discrete", "n": 2}
    assert len(cartpole["observation_space"]["low"]) == 4
    assert cartpole["default_horizon"] == 500
    navigation = client.get("/v1/environments/Navigation2D-v0").json()
    reward = next(p for p in navigation["parameters"] if p["name"] == "reward")
    assert reward["choices"] == ["dense", "sparse", "within"]
    assert reward["low"] is None
    assert client.get("/v1/environments/Pong-v5").status_code == 404


def test_whole_numbers_stay_whole_on_their_way_through_the_api(client):
    bandit = client.get("/v1/environments/Bandit-v0").json()
    kinds = {each["name"]: (each["kind"], each["default"]) for each in bandit["parameters"]}
    assert kinds["arms"] == ("integer", 5)
    assert kinds["lowest"] == ("number", 0.0)
    largest = post(client, environment="Bandit-v0", parameters={"arms": 3, "instance": 2**53 - 1})
    assert client.get(f"/v1/tasks/{largest['id']}").json()["parameters"]["instance"] == 2**53 - 1
    assert post(client, 200, environment="Bandit-v0", parameters={"arms": 3.0, "instance": 2**53 - 1}) == largest
    for parameters, pointer in (({"arms": 2.5}, "/parameters/arms"), ({"instance": 2**53}, "/parameters/instance")):
        wrong = post(client, 422, environment="Bandit-v0", parameters=parameters)
        assert wrong["errors"][0]["pointer"] == pointer
    first = sample(client, "bandit-5", count=3)["tasks"]
    assert sample(client, "bandit-5", count=3)["tasks"] == first
    assert {type(task["parameters"]["instance"]) for task in first} == {int}


@pytest.mark.databases("sqlite")
def test_environments_come_in_pages(client):
    ids = [e["id"] for e in every(client, "/v1/environments?page_size=1", "environments")]
    assert ids == sorted(ENVIRONMENTS)


def test_the_presets_stand_from_the_start(client):
    families = client.get("/v1/task-families").json()["task_families"]
    assert [family["name"] for family in families] == sorted(PRESETS)
    assert all(family["preset"] for family in families)
    [reversed_] = [family for family in families if family["name"] == "cartpole-reversed"]
    assert reversed_["parameters"]["force_mag"] == {"choice": [10.0, -10.0]}


def test_a_task_comes_back_complete(client):
    task = post(
        client,
        name="cartpole-long",
        parameters={"length": 1},
        reward={"expression": "1 - abs(next_observation[2])"},
        horizon=200,
        family="cartpole-physics",
        labels={"pipeline": "nightly"},
    )
    assert task["parameters"]["length"] == 1.0
    assert task["parameters"]["gravity"] == 9.8
    assert task["split"] == "train"
    assert task["reward"] == {"expression": "1 - abs(next_observation[2])"}
    assert task["labels"] == {"pipeline": "nightly"}
    assert client.get("/v1/tasks/cartpole-long").json() == task
    assert client.get(f"/v1/tasks/{task['id']}").json() == task


def test_a_task_without_a_name_is_called_after_its_digest(client):
    task = post(client)
    assert task["name"] == "task-" + task["digest"][:12]


def test_the_same_definition_is_the_same_task(client):
    first = post(client, name="a", parameters={"length": 1, "gravity": 9.8}, discount=1)
    again = post(client, 200, name="b", parameters={"length": 1.0}, discount=1.0, labels={"x": "y"})
    assert again == first


def test_what_differs_in_family_or_split_is_another_task(client):
    ids = {
        post(client)["id"],
        post(client, split="test")["id"],
        post(client, family="cartpole-physics")["id"],
        post(client, family="cartpole-physics", split="test")["id"],
        post(client, 200, family="cartpole-physics", split="train")["id"],
    }
    assert len(ids) == 4


def test_a_name_that_stands_with_another_definition_is_a_conflict(client):
    post(client, name="a")
    answer = client.post("/v1/tasks", json={**CARTPOLE, "name": "a", "horizon": 7})
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["pointer"] == "/name"


def test_a_name_made_from_a_digest_gives_way_to_one_that_was_chosen(client):
    digest = post(client)["digest"]
    client.delete(f"/v1/tasks/task-{digest[:12]}")
    post(client, name=f"task-{digest[:12]}", horizon=7)
    assert post(client)["name"] == f"task-{digest}"


def test_requests_at_once_for_one_definition_make_one_task(client):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: client.post("/v1/tasks", json={**CARTPOLE, "name": f"n{i}"}), range(36)))
    assert sorted(answer.status_code for answer in answers) == [200] * 35 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(client.get("/v1/tasks").json()["tasks"]) == 1


def test_batches_at_once_in_any_order_make_each_task_once(client):
    tasks = [{**CARTPOLE, "horizon": 1 + i} for i in range(40)]

    def send(i):
        return client.post("/v1/tasks:batchCreate", json={"tasks": tasks[i:] + tasks[:i]})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))
    assert {answer.status_code for answer in answers} == {200}
    for i, answer in enumerate(answers):
        horizons = [task["horizon"] for task in answer.json()["tasks"]]
        assert horizons == [task["horizon"] for task in tasks[i:] + tasks[:i]]
    assert len(client.get("/v1/tasks?page_size=1000").json()["tasks"]) == 40


def test_requests_at_once_for_one_name_and_two_definitions_make_one_task(client):
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(
                lambda i: client.post("/v1/tasks", json={**CARTPOLE, "name": "n", "horizon": 1 + i % 2}),
                range(24),
            )
        )
    assert sorted({answer.status_code for answer in answers}) == [200, 201, 409]
    assert len(client.get("/v1/tasks").json()["tasks"]) == 1


def test_a_batch_comes_back_in_its_order_with_its_doubles(client):
    tasks = [{**CARTPOLE, "horizon": h} for h in (3, 1, 3, 2)]
    made = batch(client, tasks)["tasks"]
    assert [task["horizon"] for task in made] == [3, 1, 3, 2]
    assert made[0] == made[2]
    assert batch(client, tasks)["tasks"] == made


def test_a_batch_of_a_thousand_is_taken_and_one_more_is_not(client):
    tasks = [{**CARTPOLE, "horizon": 1 + i, "labels": {"i": str(i)}} for i in range(1001)]
    assert client.post("/v1/tasks:batchCreate", json={"tasks": tasks}).status_code == 422
    assert len(batch(client, tasks[:1000])["tasks"]) == 1000
    assert len(every(client, "/v1/tasks?page_size=300", "tasks")) == 1000
    [found] = client.get("/v1/tasks?label=i:700").json()["tasks"]
    assert found["horizon"] == 701
    assert client.post("/v1/tasks:batchCreate", json={"tasks": []}).status_code == 422


def test_a_batch_with_wrong_tasks_names_each_and_makes_none(client):
    tasks = [{**CARTPOLE, "horizon": 1 + i} for i in range(20)]
    tasks[17]["parameters"] = {"length": -1}
    tasks[3]["parameters"] = {"size": 1}
    errors = batch(client, tasks, 422)["errors"]
    assert [error["pointer"] for error in errors] == ["/tasks/3/parameters/size", "/tasks/17/parameters/length"]
    tasks[17] = {**CARTPOLE, "colour": "red"}
    assert batch(client, tasks, 422)["errors"][0]["pointer"] == "/tasks/17/colour"
    assert "known: discount" in batch(client, tasks, 422)["errors"][0]["detail"]
    tasks[17] = {**CARTPOLE, "family": "nowhere"}
    tasks[3] = CARTPOLE
    assert batch(client, tasks, 422)["errors"][0]["pointer"] == "/tasks/17/family"
    assert client.get("/v1/tasks").json()["tasks"] == []


def test_a_batch_whose_names_conflict_makes_none(client):
    tasks = [{**CARTPOLE, "horizon": 1 + i, "name": "one"} for i in range(3)]
    errors = batch(client, tasks, 409)["errors"]
    assert [error["pointer"] for error in errors] == ["/tasks/1/name", "/tasks/2/name"]
    assert client.get("/v1/tasks").json()["tasks"] == []


def test_tasks_are_found_by_family_split_and_all_of_their_labels(client):
    post(client, name="a", family="cartpole-physics", labels={"k": "v", "team": "x:y"})
    post(client, name="b", family="cartpole-physics", split="test", labels={"k": "v"})
    post(client, name="c", labels={"k": "w"})

    def found(query):
        return [task["name"] for task in client.get(f"/v1/tasks?{query}").json()["tasks"]]

    assert found("") == ["a", "b", "c"]
    assert found("family=cartpole-physics") == ["a", "b"]
    assert found("split=test") == ["b"]
    assert found("label=k:v") == ["a", "b"]
    assert found("label=k:v&label=team:x:y") == ["a"]
    assert found("label=k:v&split=test&family=cartpole-physics") == ["b"]
    assert found("label=k:") == []
    assert found("family=nowhere") == []


def test_pages_are_complete_and_do_not_shift_when_tasks_are_added(client):
    batch(client, [{**CARTPOLE, "horizon": 1 + i} for i in range(10)])
    first = client.get("/v1/tasks?page_size=4").json()
    post(client, horizon=100)
    client.delete(f"/v1/tasks/{first['tasks'][0]['id']}")
    second = client.get(f"/v1/tasks?page_size=4&page_token={first['next_page_token']}").json()
    third = client.get(f"/v1/tasks?page_size=4&page_token={second['next_page_token']}").json()
    horizons = [task["horizon"] for page in (first, second, third) for task in page["tasks"]]
    assert horizons == [*range(1, 11), 100]
    assert third["next_page_token"] is None


def test_the_last_page_has_no_token_also_when_it_is_full(client):
    batch(client, [{**CARTPOLE, "horizon": 1 + i} for i in range(4)])
    page = client.get("/v1/tasks?page_size=4").json()
    assert len(page["tasks"]) == 4
    assert page["next_page_token"] is None


@pytest.mark.parametrize(
    "token",
    ["x", "!!!", "é", "W10", "e30", "bnVsbA", "WyJhIiwiYiJd", "WzEsICJiIl0", "W1tbW1tb", "AAAA", "a" * 4000],
)
@pytest.mark.databases("sqlite")
def test_a_page_token_that_is_none_is_refused(client, token):
    assert client.get("/v1/tasks", params={"page_token": token}).status_code == 400


def test_a_page_token_of_another_list_is_refused(client):
    batch(client, [{**CARTPOLE, "horizon": 1 + i, "split": "test"} for i in range(4)])
    token = client.get("/v1/tasks?page_size=2").json()["next_page_token"]
    for query in ("/v1/tasks?split=test&", "/v1/tasks?label=a:b&", "/v1/task-families?", "/v1/api-keys?"):
        assert client.get(f"{query}page_token={token}").status_code == 400, query
    assert client.get(f"/v1/tasks?page_size=1&page_token={token}").status_code == 200


def test_a_deleted_task_is_hidden_and_its_name_and_definition_are_free(client):
    first = post(client, name="a", labels={"k": "v"})
    assert client.delete("/v1/tasks/a").status_code == 204
    assert client.get("/v1/tasks/a").status_code == 404
    assert client.get(f"/v1/tasks/{first['id']}").status_code == 404
    assert client.delete("/v1/tasks/a").status_code == 404
    assert client.get("/v1/tasks?label=k:v").json()["tasks"] == []
    second = post(client, name="a")
    assert second["id"] != first["id"]
    assert second["digest"] == first["digest"]


def test_a_task_that_an_unfinished_run_uses_is_not_deleted(client, database):
    task = post(client, name="a")
    with database.transaction() as session:
        run = Run(id="r1", model="m", spec={}, state="running")
        session.add(run)
        session.flush()
        session.add(RunTask(run_id="r1", task_id=task["id"]))
    answer = client.delete("/v1/tasks/a")
    assert answer.status_code == 409
    assert "r1" in answer.json()["detail"]
    with database.transaction() as session:
        session.get(Run, "r1").state = "succeeded"
    assert client.delete("/v1/tasks/a").status_code == 204


FAMILY = {
    "name": "long-poles",
    "environment": "CartPole-v1",
    "parameters": {"length": {"uniform": [0.5, 1]}, "gravity": 9.8, "force_mag": {"choice": [10, -10]}},
    "discount": 0.95,
    "horizon": 100,
}


def test_a_family_comes_back_complete(client):
    answer = client.post("/v1/task-families", json=FAMILY)
    assert answer.status_code == 201
    family = answer.json()
    assert family["parameters"]["length"] == {"uniform": [0.5, 1.0]}
    assert family["parameters"]["tau"] == 0.02
    assert not family["preset"]
    assert client.get("/v1/task-families/long-poles").json() == family
    assert client.get("/v1/task-families/short-poles").status_code == 404


def test_the_same_family_again_is_the_one_that_stands_and_another_is_a_conflict(client):
    first = client.post("/v1/task-families", json=FAMILY).json()
    again = client.post("/v1/task-families", json={**FAMILY, "horizon": 100})
    assert (again.status_code, again.json()) == (200, first)
    assert client.post("/v1/task-families", json={**FAMILY, "horizon": 99}).status_code == 409


def test_requests_at_once_for_one_family_make_one(client):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/task-families", json=FAMILY), range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"parameters": {"length": {"uniform": [1, 0.5]}}}, "/parameters/length/uniform"),
        ({"parameters": {"length": {"uniform": [0.5, "x"]}}}, "/parameters/length/uniform/1"),
        ({"parameters": {"length": {"normal": [0, 1]}}}, "/parameters/length"),
        ({"parameters": {"length": {"choice": []}}}, "/parameters/length/choice"),
        ({"name": "x" * 91}, "/name"),
        ({"environment": "Pong"}, "/environment"),
        ({"preset": True}, "/preset"),
    ],
)
@pytest.mark.databases("sqlite")
def test_a_family_that_is_wrong_is_pointed_at(client, change, pointer):
    answer = client.post("/v1/task-families", json={**FAMILY, **change})
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


def sample(client, family="cartpole-physics", expected=200, **body):
    answer = client.post(f"/v1/task-families/{family}:sample", json=body)
    assert answer.status_code == expected, answer.text
    return answer.json()


def test_sampling_again_gives_the_same_tasks(client):
    first = sample(client, count=5, seed=3, split="test")["tasks"]
    assert [task["name"] for task in first] == [f"cartpole-physics-test-3-{i}" for i in range(5)]
    assert {task["family"] for task in first} == {"cartpole-physics"}
    assert {task["split"] for task in first} == {"test"}
    assert sample(client, count=5, seed=3, split="test")["tasks"] == first
    assert sample(client, count=7, seed=3, split="test")["tasks"][:5] == first
    assert {task["id"] for task in sample(client, count=5, seed=4, split="test")["tasks"]}.isdisjoint(
        task["id"] for task in first
    )


def test_sampling_at_once_gives_everybody_the_same_tasks(client):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: sample(client, count=20)["tasks"], range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert len(client.get("/v1/tasks").json()["tasks"]) == 20


def test_a_family_of_few_tasks_gives_one_of_them_in_many_places(client):
    client.post(
        "/v1/task-families",
        json={**CARTPOLE, "name": "two", "parameters": {"force_mag": {"choice": [10, -10]}}},
    )
    tasks = sample(client, "two", count=30)["tasks"]
    assert len(tasks) == 30
    assert len({task["id"] for task in tasks}) == 2


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"count": 0}, "/count"),
        ({"count": 1001}, "/count"),
        ({}, "/count"),
        ({"count": 1, "seed": -1}, "/seed"),
        ({"count": 1, "seed": 2**63}, "/seed"),
        ({"count": 1, "split": "all"}, "/split"),
    ],
)
@pytest.mark.databases("sqlite")
def test_a_wrong_sample_is_pointed_at(client, body, pointer):
    assert pointer in [error["pointer"] for error in sample(client, expected=422, **body)["errors"]]


def test_the_largest_seed_is_taken(client):
    assert sample(client, count=1, seed=2**63 - 1)["tasks"][0]["name"].endswith(f"-{2**63 - 1}-0")
    sample(client, "nobody", 404, count=1)


def test_who_registered_a_task_is_written_down(client, database):
    task = post(client)
    with database.snapshot() as session:
        [event] = session.scalars(select(AuditEvent).where(AuditEvent.subject == f"tasks/{task['id']}"))
    assert (event.action, event.by, event.detail) == ("tasks.create", "admin", {"tasks": [task["id"]]})


def test_the_database_itself_refuses_two_standing_tasks_of_one_digest(client, database):
    task = post(client)
    columns = "name, environment, parameters, discount, horizon, labels, digest, created_at"
    copy = f"INSERT INTO tasks (id, {columns}) SELECT 'x', 'x', {columns.partition(', ')[2]} FROM tasks"
    with pytest.raises(Exception, match=r"(?i)unique"), database.transaction() as session:
        session.execute(text(copy))
    client.delete(f"/v1/tasks/{task['id']}")
    with database.transaction() as session:
        session.execute(text(copy))


def test_a_name_that_stands_with_another_definition_is_a_conflict_even_where_the_definition_stands(client) -> None:
    for name, length in (("a", 0.5), ("b", 0.6)):
        body = {"environment": "CartPole-v1", "name": name, "parameters": {"length": length}}
        assert client.post("/v1/tasks", json=body).status_code == 201
    body = {"environment": "CartPole-v1", "name": "b", "parameters": {"length": 0.5}}
    answer = client.post("/v1/tasks", json=body)
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["pointer"] == "/name"
    assert client.post("/v1/tasks", json=body | {"name": "a"}).status_code == 200
    assert client.post("/v1/tasks", json=body | {"name": "c"}).json()["name"] == "a"
