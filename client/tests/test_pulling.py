from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from policy_files import policy_file
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client import Client, DigestMismatch, LocalPolicy
from headstart_client.cli import main
from headstart_client.pulling import pull

POLICY_ID = "0198c3a0-7b1e-7000-8000-000000000000"
CONTENT = {
    "manifest.json": b'{"format":1}',
    "parameters.safetensors": b"parameters",
    "policy.safetensors": policy_file(),
    "policy.onnx": b"graph",
}
LISTED = ("manifest.json", "parameters.safetensors")
ORDER = ["policy.safetensors", "policy.onnx", "parameters.safetensors", "manifest.json"]


def digest(name: str) -> str:
    return hashlib.sha256(CONTENT[name]).hexdigest()


def sent(name: str, body: bytes | None = None) -> Answer:
    return Answer(200, CONTENT[name] if body is None else body, {"ETag": f'"sha256-{digest(name)}"'})


def files(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "sha256": digest(name), "size_bytes": len(CONTENT[name])} for name in names]


VERSION = answer({"model": "cartpole", "version": 3, "files": files(*LISTED)})
POLICY = answer({"id": POLICY_ID, "files": files("policy.safetensors")})


def test_a_version_is_pulled_whole_its_manifest_last(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    server.script(answer({"model": "cartpole", "alias": "champion", "version": 3}), VERSION, VERSION, *map(sent, ORDER))
    pulled = pull(client, "cartpole@champion")
    assert (pulled.reference, pulled.folder) == ("cartpole/3", Path("cartpole-3"))
    assert [path.name for path in pulled.files] == ORDER
    assert {path.name: path.read_bytes() for path in (tmp_path / "cartpole-3").iterdir()} == CONTENT
    base = "/v1/models/cartpole/versions/3/files/"
    assert [request.path for request in server.requests[3:]] == [base + name for name in ORDER]
    assert LocalPolicy.load(pulled.folder / "policy.safetensors")([0.0, 1.0]) == 1


def test_a_policy_is_pulled_by_its_id(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    server.script(POLICY, sent("policy.safetensors"), POLICY, sent("policy.onnx"))
    pulled = pull(client, POLICY_ID, tmp_path / "out")
    assert {path: path.read_bytes() for path in pulled.files} == {
        tmp_path / "out" / name: CONTENT[name] for name in ("policy.safetensors", "policy.onnx")
    }
    assert server.requests[-1].path == f"/v1/policies/{POLICY_ID}/files/policy.onnx"


def test_what_is_here_is_not_transferred_again(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    server.script(VERSION, VERSION, *[Answer(304)] * 4)
    assert len(pull(client, "cartpole/3", tmp_path).files) == 4
    asked = {request.path.rpartition("/")[2]: request.headers.get("if-none-match") for request in server.requests[2:]}
    assert asked == {name: f'"sha256-{digest(name)}"' for name in CONTENT}


@pytest.mark.parametrize("name", ["policy.onnx", "policy.safetensors"])
def test_a_made_file_that_is_not_what_its_etag_says_is_not_kept(
    server: ScriptedServer, client: Client, tmp_path: Path, name: str
) -> None:
    answers = {each: sent(each) for each in ORDER} | {name: sent(name, b"damaged")}
    server.script(VERSION, VERSION, *answers.values())
    with pytest.raises(DigestMismatch, match=digest(name)):
        pull(client, "cartpole/3", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(ORDER[: ORDER.index(name)])


def test_the_command_prints_each_file_with_its_digest(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--url", server.url, "--key", "hs_test", "pull", "cartpole/3", "-o", str(tmp_path / "out")]
    server.script(VERSION, VERSION, *map(sent, ORDER))
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["reference"], document["folder"]) == ("cartpole/3", str(tmp_path / "out"))
    assert document["files"] == [
        {"path": str(tmp_path / "out" / name), "size_bytes": len(CONTENT[name]), "sha256": digest(name)}
        for name in ORDER
    ]
    server.script(VERSION, VERSION, *[Answer(304)] * 4)
    assert main(words) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["FILE", "BYTES", "SHA256"]
    assert [row.split()[2] for row in rows] == [digest(name) for name in ORDER]


def test_a_version_that_does_not_stand_is_exit_code_1(server: ScriptedServer, tmp_path: Path) -> None:
    server.script(problem(404, "there is no model 'none'"))
    assert main(["--url", server.url, "--key", "hs_test", "pull", "none/1", "-o", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
