"""Evaluations whose worker stops, dies or is told to cancel."""

import contextlib
import dataclasses
import json
import time

import pytest
from evaluating import ask, evaluated, find, look, whole, work_once

from app.evaluations import execution
from app.execution import Interrupter
from app.tables import Evaluation
from app.worker import Worker

pytestmark = pytest.mark.usefixtures("good_and_bad")


def test_one_that_is_interrupted_goes_on_with_what_was_not_measured(client, settings, evaluator, monkeypatch):
    expected = evaluated(client, evaluator, seed=3)
    asked = ask(client, seed=3)
    interrupter = Interrupter()
    measured = execution.measure
    counted = []

    def stopping(*arguments):
        counted.append(arguments)
        if len(counted) == 3:
            interrupter.stopping = True
            interrupter._interrupt()
        return measured(*arguments)

    monkeypatch.setattr(execution, "measure", stopping)
    work_once(settings, "evaluations", interrupter)
    waiting = find(client, asked)
    assert (waiting["state"], waiting["progress"]["done"], waiting["result"]) == ("queued", 6, None)
    work_once(settings, "evaluations")
    # Six units of three runs: two before, the third once more, three after.
    assert len(counted) == 3 + 4
    assert whole(client, look(client, asked))["runs"] == whole(client, expected)["runs"]


def test_one_that_lost_its_worker_goes_on_from_its_checkpoint(client, settings, evaluator, database, monkeypatch):
    eager = dataclasses.replace(settings, checkpoint_seconds=0.0, lease_seconds=0.3)
    expected = evaluated(client, evaluator, seed=3)
    asked = ask(client, seed=3)
    measured = execution.measure
    counted = []

    class Killed(BaseException):
        pass

    def dying(*arguments):
        counted.append(arguments)
        if len(counted) == 3:
            raise Killed
        return measured(*arguments)

    monkeypatch.setattr(execution, "measure", dying)
    with pytest.raises(Killed):
        work_once(eager, "evaluations")
    with contextlib.closing(Worker(eager, "evaluations")) as other:
        while not other.work_once():
            time.sleep(0.1)
    assert len(counted) == 3 + 4
    body = look(client, asked)
    assert body["attempts"] == 2
    assert whole(client, body)["runs"] == whole(client, expected)["runs"]
    with database.snapshot() as session:
        assert session.get(Evaluation, asked["id"]).checkpoint_sha256 is None


@pytest.mark.parametrize("saved", [None, {"code_version": "0.0.1", "runs": {"0/0/held_out/0/0": []}}])
@pytest.mark.databases("sqlite")
def test_a_checkpoint_that_is_damaged_or_of_other_code_is_measured_again(client, evaluator, database, store, saved):
    asked = ask(client)
    sha256 = "0" * 64 if saved is None else store.put(json.dumps(saved).encode())[0]
    with database.transaction() as session:
        session.get(Evaluation, asked["id"]).checkpoint_sha256 = sha256
    evaluator.work_once()
    assert look(client, asked)["progress"] == {"done": 18, "total": 18}


def test_a_queued_one_is_cancelled_at_once_and_a_running_one_by_its_worker(client, settings, monkeypatch):
    queued = ask(client)
    assert client.post(f"/v1/evaluations/{queued['id']}:cancel").json()["state"] == "cancelled"
    running = ask(client)
    measured = execution.measure

    def cancelling(*arguments):
        client.post(f"/v1/evaluations/{running['id']}:cancel")
        worker._interrupter.order("cancel")
        worker._interrupter._interrupt()
        return measured(*arguments)

    monkeypatch.setattr(execution, "measure", cancelling)
    with contextlib.closing(Worker(settings, "evaluations")) as worker:
        worker.work_once()
    ended = find(client, running)
    assert (ended["state"], ended["cancel_requested"], ended["files"]) == ("cancelled", True, [])
