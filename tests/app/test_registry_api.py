from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import Invalid
from app.registry.service import publish_version, resolve
from app.tables import Run, RunTask

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def publish(app):
    """Publishes the next version of a model, as a worker does."""

    def publish(model="cartpole", run_id=None, parent=None, **manifest):
        with app.state.database.transaction() as session:
            files = {
                "manifest.json": app.state.store.put(b'{"format": 1}'),
                "parameters.safetensors": app.state.store.put(CONTENT),
            }
            return publish_version(session, model, {"format": 1, **manifest}, files, run_id, parent)

    return publish


def put(client, version, alias="champion", model="cartpole", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.put(f"/v1/models/{model}/aliases/{alias}", json={"version": version}, headers=names)


def target(client, alias="champion", model="cartpole"):
    return client.get(f"/v1/models/{model}/aliases/{alias}").json()["version"]


def test_a_version_comes_back_with_its_manifest_files_and_aliases(client, publish):
    publish(metrics={"return_after": 187.0})
    put(client, 1)
    put(client, 1, "stable")
    version = client.get("/v1/models/cartpole/versions/1").json()
    assert version["model"] == "cartpole"
    assert version["version"] == 1
    assert version["run"] is None
    assert version["metrics"] == {"return_after": 187.0}
    assert version["manifest"] == {"format": 1, "metrics": {"return_after": 187.0}}
    assert [file["name"] for file in version["files"]] == ["manifest.json", "parameters.safetensors"]
    assert version["files"][1]["size_bytes"] == len(CONTENT)
    assert version["aliases"] == ["champion", "stable"]


def test_models_and_versions_are_listed(client, publish):
    for model in ("b", "a", "a", "c"):
        publish(model)
    put(client, 1, model="a")
    models = client.get("/v1/models").json()["models"]
    assert [(m["name"], m["latest_version"], m["aliases"]) for m in models] == [
        ("a", 2, {"champion": 1}),
        ("b", 1, {}),
        ("c", 1, {}),
    ]
    assert client.get("/v1/models/a").json() == models[0]
    versions = client.get("/v1/models/a/versions").json()["versions"]
    assert [(v["version"], v["aliases"]) for v in versions] == [(2, []), (1, ["champion"])]
    page = client.get("/v1/models/a/versions?page_size=1").json()
    rest = client.get(f"/v1/models/a/versions?page_size=1&page_token={page['next_page_token']}").json()
    assert [v["version"] for v in rest["versions"]] == [1]
    assert rest["next_page_token"] is None
    other = client.get(f"/v1/models/b/versions?page_token={page['next_page_token']}")
    assert other.status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/none",
        "/v1/models/none/versions",
        "/v1/models/cartpole/versions/2",
        "/v1/models/cartpole/versions/2/lineage",
        "/v1/models/cartpole/versions/1/files/none",
        "/v1/models/cartpole/versions/1/files/..%2Fadmin.key",
        "/v1/models/cartpole/aliases/none",
        "/v1/models/cartpole/aliases/none/history",
        "/v1/models/none/aliases",
    ],
)
def test_what_is_not_in_the_registry_is_not_found(client, publish, path):
    publish()
    assert client.get(path).status_code == 404


def test_versions_that_are_published_at_once_get_numbers_without_gaps(publish):
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: publish().number, range(24)))
    assert sorted(numbers) == list(range(1, 25))


def test_a_version_that_was_not_committed_takes_no_number(app, publish):
    publish()
    with app.state.database.session() as session:
        assert publish_version(session, "cartpole", {}, {}, None).number == 2
        session.rollback()
    assert publish().number == 2


def test_a_reference_is_an_alias_a_number_or_the_newest(app, client, publish):
    for _ in range(3):
        publish()
    put(client, 2)
    with app.state.database.snapshot() as session:
        assert resolve(session, "cartpole@champion").number == 2
        assert resolve(session, "cartpole/1").number == 1
        assert resolve(session, "cartpole").number == 3


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("none", "no model 'none'"),
        ("none@champion", "no model 'none'"),
        ("none/1", "no model 'none'"),
        ("cartpole@none", "no alias 'none'"),
        ("cartpole/7", "no version '7'"),
        ("cartpole/x", "no version 'x'"),
        ("cartpole/" + "9" * 400, "no version"),
        ("cartpole@", "no alias ''"),
        ("", "no model ''"),
    ],
)
def test_a_reference_to_nothing_says_what_is_missing(app, publish, reference, said):
    publish()
    with app.state.database.snapshot() as session, pytest.raises(Invalid, match=said) as raised:
        resolve(session, reference, "/model")
    assert raised.value.errors[0].pointer == "/model"


def test_lineage_says_where_a_version_comes_from(app, client, publish):
    task = client.post("/v1/tasks", json={"environment": "CartPole-v1"}).json()["id"]
    with app.state.database.transaction() as session:
        session.add(Run(id="r", model="cartpole", spec={"tasks": {"ids": [task]}, "seed": 3}))
        session.flush()
        session.add(RunTask(run_id="r", task_id=task))
    first = publish()
    publish(run_id="r", parent=first, learner={"name": "maml"}, seed=3, code_version="0.1.0+core.abc")
    assert client.get("/v1/models/cartpole/versions/2/lineage").json() == {
        "model": "cartpole",
        "version": 2,
        "run": "r",
        "tasks": {"ids": [task]},
        "task_ids": [task],
        "learner": {"name": "maml"},
        "seed": 3,
        "code_version": "0.1.0+core.abc",
        "parent": "cartpole/1",
        "policy": None,
        "adaptation": None,
        "task": None,
        "method": None,
    }
    assert client.get("/v1/models/cartpole/versions/1/lineage").json()["run"] is None


FILE = "/v1/models/cartpole/versions/1/files/parameters.safetensors"


@pytest.mark.databases("sqlite")
def test_a_file_comes_with_its_digest_as_etag(client, publish):
    publish()
    answer = client.get(FILE)
    assert answer.content == CONTENT
    sha256 = client.get("/v1/models/cartpole/versions/1").json()["files"][1]["sha256"]
    assert answer.headers["ETag"] == f'"sha256-{sha256}"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    manifest = client.get(FILE.replace("parameters.safetensors", "manifest.json"))
    assert manifest.json() == {"format": 1}


@pytest.mark.databases("sqlite")
def test_a_file_that_the_caller_has_is_not_sent_again(client, publish):
    publish()
    etag = client.get(FILE).headers["ETag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = client.get(FILE, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
    assert client.get(FILE, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=2000-", 2000, 2048),
        ("bytes=-5", 2043, 2048),
        ("bytes=-99999", 0, 2048),
        ("bytes=2040-99999", 2040, 2048),
    ],
)
@pytest.mark.databases("sqlite")
def test_a_part_of_a_file_is_sent(client, publish, asked, start, stop):
    publish()
    answer = client.get(FILE, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=2048-", "bytes=5000-6000", "bytes=-0"])
@pytest.mark.databases("sqlite")
def test_a_part_beyond_the_end_is_refused(client, publish, asked):
    publish()
    answer = client.get(FILE, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "items=0-5", "bytes=", "bytes=-", "bytes=9-2", "0-5", "bytes=a-b"])
@pytest.mark.databases("sqlite")
def test_a_range_that_is_not_understood_gives_the_whole_file(client, publish, asked):
    publish()
    answer = client.get(FILE, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.databases("sqlite")
def test_a_range_of_another_version_of_the_file_gives_the_whole_file(client, publish):
    publish()
    etag = client.get(FILE).headers["ETag"]
    assert client.get(FILE, headers={"Range": "bytes=0-9", "If-Range": etag}).status_code == 206
    assert client.get(FILE, headers={"Range": "bytes=0-9", "If-Range": '"old"'}).content == CONTENT


@pytest.mark.databases("sqlite")
def test_head_says_the_same_without_the_bytes(client, publish):
    publish()
    head, get = client.head(FILE), client.get(FILE)
    assert head.status_code == 200
    assert head.content == b""
    assert dict(head.headers) == dict(get.headers)


def test_bytes_that_are_not_those_that_were_published_are_never_sent(app, client, publish):
    publish()
    path = app.state.store.path(client.get(FILE).headers["ETag"].strip('"').removeprefix("sha256-"))
    path.write_bytes(CONTENT[:-1] + b"\0")
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = client.get(FILE, headers=headers)
        assert answer.status_code == 500
        assert answer.json()["type"] == "/problems/corrupt"
    path.unlink()
    assert client.get(FILE).status_code == 500
    publish()
    assert client.get(FILE).content == CONTENT


def test_an_alias_is_made_moved_and_removed(client, publish):
    for _ in range(2):
        publish()
    made = put(client, 1)
    assert made.status_code == 201
    assert made.json()["version"] == 1
    moved = put(client, 2)
    assert moved.status_code == 200
    assert moved.headers["ETag"] != made.headers["ETag"]
    seen = client.get("/v1/models/cartpole/aliases/champion")
    assert seen.json() == moved.json()
    assert seen.headers["ETag"] == moved.headers["ETag"]
    assert client.get("/v1/models/cartpole/aliases").json()["aliases"] == [moved.json()]
    assert client.delete("/v1/models/cartpole/aliases/champion").status_code == 204
    assert client.get("/v1/models/cartpole/aliases/champion").status_code == 404
    assert client.delete("/v1/models/cartpole/aliases/champion").status_code == 404


@pytest.mark.parametrize("version", [0, -1, 3, 2**31, 10**30, 1.5, "1", True, None])
def test_an_alias_to_a_version_that_is_none_is_refused(client, publish, version):
    publish()
    answer = put(client, version)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/version"
    assert client.get("/v1/models/cartpole/aliases").json()["aliases"] == []


@pytest.mark.parametrize("alias", ["Champion", "a b", "-a", "a" * 129, "1:rollback"])
@pytest.mark.databases("sqlite")
def test_an_alias_is_a_name(client, publish, alias):
    publish()
    assert put(client, 1, alias).status_code == 422


def test_an_alias_of_no_model_is_not_found(client):
    assert put(client, 1).status_code == 404


def test_an_alias_moves_only_from_where_the_caller_saw_it(client, publish):
    for _ in range(3):
        publish()
    assert put(client, 1, If_Match='"x"').status_code == 412
    assert put(client, 1, If_Match="*").status_code == 412
    first = put(client, 1, If_None_Match="*").headers["ETag"]
    assert put(client, 2, If_None_Match="*").status_code == 412
    second = put(client, 2, If_Match=first)
    assert second.status_code == 200
    assert put(client, 3, If_Match=first).status_code == 412
    assert put(client, 3, If_Match=f"W/{second.headers['ETag']}").status_code == 412
    assert client.delete("/v1/models/cartpole/aliases/champion", headers={"If-Match": first}).status_code == 412
    rollback = "/v1/models/cartpole/aliases/champion:rollback"
    assert client.post(rollback, headers={"If-Match": first}).status_code == 412
    assert target(client) == 2
    assert put(client, 3, If_Match=f"{first}, {second.headers['ETag']}").status_code == 200


def test_a_revision_never_comes_back(client, publish):
    publish()
    first = put(client, 1).headers["ETag"]
    client.delete("/v1/models/cartpole/aliases/champion")
    put(client, 1)
    assert put(client, 1, If_Match=first).status_code == 412


def test_of_those_who_move_an_alias_at_once_from_one_revision_one_succeeds(client, publish):
    for _ in range(9):
        publish()
    etag = put(client, 1).headers["ETag"]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda v: put(client, v, If_Match=etag).status_code, range(2, 10)))
    assert sorted(statuses) == [200] + [412] * 7
    events = client.get("/v1/models/cartpole/aliases/champion/history").json()["events"]
    assert len(events) == 2


def test_of_those_who_make_an_alias_at_once_one_succeeds(client, publish):
    publish()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: put(client, 1, If_None_Match="*").status_code, range(8)))
    assert sorted(statuses) == [201] + [412] * 7


def test_history_tells_who_moved_an_alias_newest_first(client, publish):
    for _ in range(2):
        publish()
    key = client.post("/v1/api-keys", json={"name": "release bot", "scopes": ["models:write"]}).json()["key"]
    put(client, 1)
    put(client, 2, Authorization=f"Bearer {key}")
    client.post("/v1/models/cartpole/aliases/champion:rollback")
    client.delete("/v1/models/cartpole/aliases/champion")
    history = client.get("/v1/models/cartpole/aliases/champion/history").json()
    assert [(e["action"], e["version"], e["previous_version"], e["by"]) for e in history["events"]] == [
        ("delete", None, 1, "admin"),
        ("rollback", 1, 2, "admin"),
        ("set", 2, 1, "release bot"),
        ("set", 1, None, "admin"),
    ]
    page = client.get("/v1/models/cartpole/aliases/champion/history?page_size=3").json()
    assert page["events"] == history["events"][:3]
    assert page["next_page_token"]


def test_rolling_back_goes_further_back_each_time(client, publish):
    for _ in range(3):
        publish()
    for version in (1, 2, 2, 3):
        put(client, version)
    rollback = "/v1/models/cartpole/aliases/champion:rollback"
    answer = client.post(rollback)
    assert (answer.status_code, answer.json()["version"]) == (200, 2)
    assert answer.headers["ETag"]
    assert client.post(rollback).json()["version"] == 1
    assert client.post(rollback).status_code == 409
    assert target(client) == 1
    put(client, 3)
    assert client.post(rollback).json()["version"] == 1
    assert client.post("/v1/models/cartpole/aliases/none:rollback").status_code == 404


def test_a_rollback_that_is_sent_twice_with_a_key_happens_once(client, publish):
    for version in (1, 2, 3):
        publish()
        put(client, version)
    for _ in range(2):
        answer = client.post("/v1/models/cartpole/aliases/champion:rollback", headers={"Idempotency-Key": "k"})
        assert answer.json()["version"] == 2
        assert answer.headers["ETag"]
    assert target(client) == 2


def test_only_a_key_with_models_write_moves_aliases(client, publish):
    publish()
    key = client.post("/v1/api-keys", json={"name": "x", "scopes": ["models:read"]}).json()["key"]
    assert put(client, 1, Authorization=f"Bearer {key}").status_code == 403
