import json
import socket
import time

import httpx
import pytest

# Most is refused before any database hears of it.
pytestmark = pytest.mark.databases("sqlite")

TASK = {"environment": "CartPole-v1"}
JSON = {"Content-Type": "application/json"}


def problem_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("/problems/")
    assert problem["title"]
    assert problem["detail"]
    return problem


def errors_of(response, status=422):
    return {error["pointer"]: error["detail"] for error in problem_of(response, status)["errors"]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"environment": }', 400),
        (b"\xff\xfe{}", 400),
        (b'\xef\xbb\xbf{"environment": "CartPole-v1"}', 400),
        (b'{"environment": "Cart\x00Pole"}', 400),
        (b"[" * 100_000, 400),
        (b'{"parameters":' * 100_000, 400),
        (b'{"environment": "CartPole-v1", "parameters": ' + b"[" * 65 + b"]" * 65 + b"}", 400),
        (b'{"environment": "CartPole-v1", "discount": NaN}', 422),
        (b'{"environment": "CartPole-v1", "discount": -Infinity}', 422),
        (b'{"environment": "CartPole-v1", "discount": 1e400}', 422),
        (b'{"environment": "CartPole-v1", "discount": 1' + b"0" * 400 + b"}", 422),
        (b'{"environment": "CartPole-v1", "horizon": 1' + b"0" * 5000 + b"}", 422),
        (b'{"environment": "CartPole-v1", "horizon": 9223372036854775808}', 422),
        (b'{"environment": "CartPole-v1", "name": "a\\u0000b"}', 422),
        (b'{"environment": "CartPole-v1", "name": "a\\ud800b"}', 422),
        (b'{"environment": "CartPole-v1", "\\ud800": 1}', 422),
        (b'{"environment": "CartPole-v1", "labels": {"a": "\\udfff"}}', 422),
        (b'{"environment": "\\ud83d\\ude00"}', 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"17", 422),
        (b"", 422),
    ],
)
@pytest.mark.databases("sqlite", "postgresql")
def test_a_body_that_cannot_be_read_or_kept_is_a_problem(client, body, status):
    problem_of(client.post("/v1/tasks", content=body, headers=JSON), status)
    assert client.get("/v1/tasks").json()["tasks"] == []


def test_a_number_that_is_not_finite_is_pointed_at(client):
    body = b'{"environment": "CartPole-v1", "parameters": {"length": 1e999, "a/b": [1, NaN]}}'
    errors = errors_of(client.post("/v1/tasks", content=body, headers=JSON))
    assert set(errors) == {"/parameters/length", "/parameters/a~1b/1"}
    assert "finite" in errors["/parameters/length"]


@pytest.mark.parametrize(
    ("change", "pointer", "said"),
    [
        ({"environment": "Pong"}, "/environment", "CartPole-v1"),
        ({"environment": 3}, "/environment", "string"),
        ({"parameters": {"lenght": 1.0}}, "/parameters/lenght", "length"),
        ({"parameters": {"length": -1}}, "/parameters/length", "must be"),
        ({"parameters": {"length": "long"}}, "/parameters/length", "must be"),
        ({"parameters": {"length": True}}, "/parameters/length", "must be"),
        ({"parameters": [1]}, "/parameters", "must be"),
        ({"discount": 0}, "/discount", "above 0"),
        ({"discount": 1.5}, "/discount", "at most 1"),
        ({"discount": True}, "/discount", "number"),
        ({"discount": "0.9"}, "/discount", "number"),
        ({"horizon": 0}, "/horizon", "whole number"),
        ({"horizon": 2.5}, "/horizon", "integer"),
        ({"horizon": 10**30}, "/horizon", "integer"),
        ({"reward": {"expression": "__import__('os')"}}, "/reward/expression", ""),
        ({"reward": {"expression": "(" * 10_000 + "1" + ")" * 10_000}}, "/reward/expression", ""),
        ({"reward": {"expression": "9**9**9"}}, "/reward/expression", ""),
        ({"reward": {"formula": "1"}}, "/reward/formula", "unknown field; known: expression"),
        ({"reward": "1"}, "/reward", "object"),
        ({"rewards": None}, "/rewards", "unknown field; known: discount, environment, family"),
        ({"family": "nowhere"}, "/family", "nowhere"),
        ({"family": "navigation-2d"}, "/environment", "Navigation2D-v0"),
        ({"split": "holdout"}, "/split", "'train', 'validation' or 'test'"),
        ({"name": "Upper"}, "/name", "match"),
        ({"name": "-dash"}, "/name", "match"),
        ({"name": "a" * 129}, "/name", "match"),
        ({"labels": {"a": 1}}, "/labels/a", "string"),
        ({"labels": {str(i): "x" for i in range(33)}}, "/labels", "at most 32"),
    ],
)
def test_a_member_that_is_wrong_is_pointed_at(client, change, pointer, said):
    errors = errors_of(client.post("/v1/tasks", json={**TASK, **change}))
    assert pointer in errors
    assert said in errors[pointer]


def test_every_wrong_member_is_named_at_once(client):
    body = {"discount": "x", "horizon": "y", "nonsense": 1}
    errors = errors_of(client.post("/v1/tasks", json=body))
    assert set(errors) == {"/environment", "/discount", "/horizon", "/nonsense"}
    assert errors["/environment"] == "required"


def test_an_answer_does_not_send_a_long_input_back(client):
    response = client.post("/v1/tasks", json={**TASK, "name": "x" * 1_000_000})
    assert len(response.content) < 5_000
    response = client.post("/v1/tasks", json={**TASK, "y" * 100_000: 1})
    assert len(response.content) < 5_000
    assert len(client.get("/v1/tasks/" + "z" * 1000).content) < 5_000


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
def test_a_body_that_is_not_called_json_is_refused(client, kind):
    response = client.post("/v1/tasks", content=json.dumps(TASK), headers={"Content-Type": kind})
    assert "application/json" in problem_of(response, 415)["detail"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
def test_a_body_that_is_called_json_is_read(client, kind):
    response = client.post("/v1/tasks", content=json.dumps(TASK), headers={"Content-Type": kind})
    assert response.status_code == 201


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1/tasks/nobody", "/nothing", "/v1/tasks/", "/v1/models/x/versions/1"]
)
@pytest.mark.databases("sqlite", "postgresql")
def test_what_is_not_there_is_a_problem(client, path):
    problem_of(client.get(path), 404)


def test_a_method_that_a_path_does_not_take_is_a_problem(client):
    response = client.put("/v1/tasks:batchCreate", json={})
    problem_of(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/tasks/a%00b", "/v1/tasks?family=%00", "/v1/models/" + "m" * 3000])
@pytest.mark.databases("sqlite", "postgresql")
def test_a_url_that_no_database_takes_is_a_problem(client, path):
    problem_of(client.get(path), 400)


@pytest.mark.parametrize("number", ["0", "-1", "1e3", "99999999999", "1" * 500, "x", "١"])
@pytest.mark.databases("sqlite", "postgresql")
def test_a_version_number_that_is_none_is_not_found(client, number):
    problem_of(client.get(f"/v1/models/m/versions/{number}"), 404)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("page_size=0", "/page_size"),
        ("page_size=1001", "/page_size"),
        ("page_size=many", "/page_size"),
        ("page_size=" + "9" * 5000, "/page_size"),
        ("split=half", "/split"),
        ("label=nocolon", "/label"),
        ("famly=x", "/famly"),
    ],
)
def test_a_wrong_query_is_pointed_at(client, query, pointer):
    assert pointer in errors_of(client.get(f"/v1/tasks?{query}"))


def test_a_body_above_the_limit_is_refused_by_its_length(client, settings):
    response = client.post("/v1/tasks", content=b" " * (settings.max_body_bytes + 1), headers=JSON)
    assert str(settings.max_body_bytes) in problem_of(response, 413)["detail"]


def test_a_body_above_the_limit_is_refused_without_a_length_too(client, settings):
    sent = 0

    def chunks():
        nonlocal sent
        while sent <= settings.max_body_bytes:
            sent += 2**20
            yield b" " * 2**20

    problem_of(client.post("/v1/tasks", content=chunks(), headers=JSON), 413)


def test_a_body_of_100_megabytes_is_refused_and_the_connection_goes_on(server_url, admin_headers):
    def chunks():
        for _ in range(100):
            yield b" " * 2**20

    with httpx.Client(base_url=server_url, headers={**admin_headers(), **JSON}, timeout=30) as client:
        problem_of(client.post("/v1/tasks", content=b" " * 100 * 2**20), 413)
        problem_of(client.post("/v1/tasks", content=chunks()), 413)
        assert client.post("/v1/tasks", json=TASK).status_code == 201


def test_a_refusal_does_not_wait_for_the_body(server_url, admin_headers):
    host, port = server_url.removeprefix("http://").split(":")
    key = admin_headers()["Authorization"]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 99999999999\r\n\r\n"
        start = time.monotonic()
        connection.sendall(head.encode())
        assert b"413" in connection.recv(100)
        assert time.monotonic() - start < 5


def test_an_unexpected_error_is_a_problem_without_its_text(app, client, caplog):
    @app.get("/v1/explode")
    def explode():
        raise ZeroDivisionError("a secret of the server")

    problem = problem_of(client.get("/v1/explode"), 500)
    assert "secret" not in json.dumps(problem)
    assert "a secret of the server" in caplog.text


def test_openapi_is_public_and_says_how_to_authenticate(client):
    description = client.get("/openapi.json", headers={"Authorization": ""}).json()
    [scheme] = description["components"]["securitySchemes"].values()
    assert scheme["scheme"] == "bearer"
    operations = [(path, operation) for path, methods in description["paths"].items() for operation in methods.values()]
    for path, operation in operations:
        assert bool(operation.get("security")) != path.startswith("/v2/health/"), path
        assert operation["summary"]
        assert "4XX" in operation["responses"], path
    names = [operation["operationId"] for _, operation in operations]
    assert len(names) == len(set(names))
    assert "create_task" in names


@pytest.mark.databases("sqlite", "postgresql")
def test_health_is_public(client):
    assert client.get("/v2/health/live", headers={"Authorization": ""}).json() == {"live": True}
    assert client.get("/v2/health/ready", headers={"Authorization": ""}).json() == {"ready": True}
