from __future__ import annotations

from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client import Client, Unauthorised
from headstart_client.discovery import find_key, find_url


def test_the_url_is_the_argument_then_the_environment_then_local(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(find_url()) == "http://127.0.0.1:8000"
    monkeypatch.setenv("HEADSTART_URL", "https://headstart.example.org/")
    assert str(find_url()) == "https://headstart.example.org"
    assert str(find_url("http://10.0.0.1:9/base/")) == "http://10.0.0.1:9/base"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://me:secret@localhost", "http://x:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|must be"):
        find_url(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_the_admin_key_is_found_for_a_service_on_this_machine(host: str, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "admin.key").write_text("hs_admin\n")
    assert find_key(find_url(f"http://{host}:8000")) == "hs_admin"


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.example.org"])
def test_the_admin_key_never_travels_to_another_machine(host: str, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "admin.key").write_text("hs_admin\n")
    assert find_key(find_url(f"http://{host}:8000")) is None


def test_a_given_key_comes_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "admin.key").write_text("hs_file")
    monkeypatch.setenv("HEADSTART_DATA", str(data))
    url = find_url()
    assert find_key(url) == "hs_file"
    monkeypatch.setenv("HEADSTART_API_KEY", "hs_environment")
    assert find_key(url) == "hs_environment"
    assert find_key(url, "hs_given") == "hs_given"


def test_no_key_is_no_error() -> None:
    assert find_key(find_url()) is None


def test_a_key_that_a_starting_service_writes_later_is_found_later(server: ScriptedServer, tmp_path: Path) -> None:
    def started() -> Answer:
        (tmp_path / "var").mkdir()
        (tmp_path / "var" / "admin.key").write_text("hs_admin\n")
        return problem(401)

    server.script(problem(401), started, answer({"tasks": []}))
    with Client(server.url) as client:
        with pytest.raises(Unauthorised) as caught:
            list(client.tasks.list())
        assert "no key was found" in caught.value.__notes__[0]
        assert not list(client.tasks.list())
    assert [request.headers.get("authorization") for request in server.requests] == [None, None, "Bearer hs_admin"]
