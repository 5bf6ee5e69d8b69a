from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client import Client, DigestMismatch, InvalidResponse

BYTES = bytes(range(256)) * 40
DIGEST = hashlib.sha256(BYTES).hexdigest()
ETAG = f'"sha256-{DIGEST}"'


def whole(cut: int | None = None, body: bytes = BYTES, etag: str = ETAG) -> Answer:
    return Answer(200, body, {"ETag": etag}, cut)


def rest(offset: int) -> Answer:
    content_range = f"bytes {offset}-{len(BYTES) - 1}/{len(BYTES)}"
    return Answer(206, BYTES[offset:], {"ETag": ETAG, "Content-Range": content_range})


def version(name: str = "parameters.safetensors") -> Answer:
    files = [{"name": name, "sha256": DIGEST, "size_bytes": len(BYTES)}]
    return answer({"model": "m", "version": 3, "files": files})


def test_a_file_is_put_in_place_whole(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    server.script(version(), whole())
    (path,) = client.versions.download("m/3", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "parameters.safetensors"
    assert path.read_bytes() == BYTES
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert server.requests[1].path == "/v1/models/m/versions/3/files/parameters.safetensors"


def test_a_file_that_is_here_is_not_transferred_again(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.write_bytes(BYTES)
    server.script(Answer(304, headers={"ETag": ETAG}))
    assert client.runs.checkpoint("r1", target).read_bytes() == BYTES
    assert server.requests[0].headers["if-none-match"] == ETAG


def test_a_newer_file_replaces_the_one_that_is_here(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.write_bytes(b"old")
    server.script(whole())
    client.runs.checkpoint("r1", target)
    assert target.read_bytes() == BYTES


def test_a_transfer_that_breaks_off_is_continued(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    server.script(whole(cut=4000), rest(4000))
    client.runs.checkpoint("r1", tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_bytes() == BYTES
    assert server.requests[1].headers["range"] == "bytes=4000-"
    assert server.requests[1].headers["if-range"] == ETAG


def test_a_part_of_an_earlier_call_is_continued(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    (tmp_path / "parameters.safetensors.part").write_bytes(BYTES[:10])
    server.script(version(), rest(10))
    client.versions.download("m/3", tmp_path)
    assert (tmp_path / "parameters.safetensors").read_bytes() == BYTES


def test_a_part_of_something_else_is_thrown_away(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    (tmp_path / "parameters.safetensors.part").write_bytes(b"?" * 10)
    server.script(version(), rest(10), whole())
    client.versions.download("m/3", tmp_path)
    assert (tmp_path / "parameters.safetensors").read_bytes() == BYTES
    assert "range" not in server.requests[2].headers


def test_a_part_that_is_too_long_is_thrown_away(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    (tmp_path / "parameters.safetensors.part").write_bytes(BYTES + b"?")
    server.script(version(), problem(416), whole())
    client.versions.download("m/3", tmp_path)
    assert (tmp_path / "parameters.safetensors").read_bytes() == BYTES


def test_bytes_that_are_not_the_promised_ones_leave_nothing(
    server: ScriptedServer, client: Client, tmp_path: Path
) -> None:
    server.script(version(), whole(body=b"!" + BYTES[1:]))
    with pytest.raises(DigestMismatch, match=DIGEST):
        client.versions.download("m/3", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", ".bashrc", ""])
def test_a_file_name_cannot_lead_out_of_the_folder(
    server: ScriptedServer, client: Client, tmp_path: Path, name: str
) -> None:
    server.script(version(name))
    with pytest.raises(InvalidResponse, match="named a file"):
        client.versions.download("m/3", tmp_path)
    assert len(server.requests) == 1
