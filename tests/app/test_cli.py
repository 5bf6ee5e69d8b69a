import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.auth import digest_of
from app.cli import SLOTS, main
from app.settings import table
from app.tables import ApiKey
from app.worker import SLOTS as WORKER_SLOTS

COMMAND = str(Path(sys.executable).with_name("headstart-server"))


@pytest.fixture
def run_main(monkeypatch, settings, capsys):
    monkeypatch.setenv("HEADSTART_DATA", str(settings.data))
    monkeypatch.setenv("HEADSTART_DATABASE_URL", settings.database_url)

    def run(*arguments):
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


def start(tmp_path, *arguments, **environ):
    return subprocess.Popen(
        [COMMAND, *arguments],
        env=os.environ | {"HEADSTART_DATA": str(tmp_path / "var"), "HEADSTART_DATABASE_URL": ""} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert table() in shown
    for command in ("serve", "api", "worker", "migrate", "openapi", "keys"):
        assert command in shown


def test_every_slot_has_a_worker_process():
    assert tuple(WORKER_SLOTS) == SLOTS


def test_keys_are_made_listed_and_revoked(run_main, database):
    code, token, err = run_main("keys", "create", "pipeline", "--scope", "tasks:write", "--days", "30")
    assert (code, token.startswith("hs_")) == (0, True)
    key_id = err.split()[0]
    _, listed, _ = run_main("keys", "list")
    assert key_id in listed
    assert "tasks:write" in listed
    assert token.strip() not in listed
    code, _, err = run_main("keys", "create", "x", "--scope", "everything")
    assert (code, err.count("\n")) == (1, 1)
    assert "models:write" in err
    assert run_main("keys", "revoke", key_id)[0] == 0
    assert "revoked" in run_main("keys", "list")[1]
    code, _, err = run_main("keys", "revoke", "nothing")
    assert (code, err) == (1, "headstart-server: there is no API key 'nothing'\n")
    with database.snapshot() as session:
        assert session.get(ApiKey, key_id).digest == digest_of(token.strip())


def test_a_setting_that_cannot_be_used_is_one_line(run_main, monkeypatch):
    monkeypatch.setenv("HEADSTART_PORT", "eighty")
    code, _, err = run_main("keys", "list")
    assert (code, err.count("\n")) == (1, 1)
    assert "HEADSTART_PORT" in err


@pytest.mark.parametrize("command", ["serve", "api"])
def test_a_port_that_is_taken_is_one_line_and_exit_code_1(tmp_path, command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = start(tmp_path, command, HEADSTART_PORT=port)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert f"127.0.0.1:{port}" in err
    assert "in use" in err


def test_a_data_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "var").write_text("")
    process = start(tmp_path, "serve", HEADSTART_PORT="0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert "HEADSTART_DATA" in err


def test_the_api_migrates_an_empty_database_and_ends_in_order(tmp_path):
    process = start(tmp_path, "api", HEADSTART_PORT="0")
    assert process.stdout.readline().startswith("Headstart listens on http://127.0.0.1:")
    assert "admin.key" in process.stdout.readline()
    for line in process.stderr:
        if "startup complete" in line:
            break
    assert (tmp_path / "var" / "admin.key").stat().st_mode & 0o777 == 0o600
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_worker_migrates_an_empty_database_and_ends_in_order(tmp_path):
    process = start(tmp_path, "worker", "--slot", "runs")
    assert "admin.key" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
