"""A remote adaptation survives the death of the worker that takes its step, and a restart of everything."""

import os
import random
import signal

import pytest
from live_service import wait_until

SPACES = {
    "observation_space": {"type": "box", "low": [None] * 4, "high": [None] * 4},
    "action_space": {"type": "discrete", "n": 2},
}
ASKED = {
    "model": None,
    "policy": {"hidden": [64, 64]},
    "task": {"remote": SPACES | {"horizon": 100}},
    "method": {"name": "ppo", "environment_steps": 6000, "parallel_episodes": 20, "steps": 100, "epochs": 80},
    "seed": 5,
}


def begin(service, **method):
    response = service.http.post("/v1/adaptations", json=ASKED | {"method": ASKED["method"] | method})
    assert response.status_code == 201, response.text
    return response.json()


def look(service, adaptation):
    return service.http.get(f"/v1/adaptations/{adaptation['id']}").json()


def upload(service, adaptation, number):
    """Twenty episodes of a hundred steps that nobody acted: what is learned from them is no matter here."""
    chance = random.Random(number)
    episodes = [
        {
            "id": f"{number}-{i:02}",
            "revision": 0,
            "observations": [[chance.gauss(0, 1) for _ in range(4)] for _ in range(101)],
            "actions": [chance.randrange(2) for _ in range(100)],
            "rewards": [chance.random() for _ in range(100)],
            "log_probs": [-0.7] * 100,
            "truncated": True,
        }
        for i in range(20)
    ]
    response = service.http.post(f"/v1/adaptations/{adaptation['id']}/episodes", json={"episodes": episodes})
    assert response.status_code == 200, response.text


def stepped(service, adaptation, revision):
    """Digest of the policy's parameters when a step is taken."""
    wait_until(lambda: look(service, adaptation)["revision"] == revision, 120)
    return service.http.get(f"/v1/policies/{adaptation['policy']}").json()["files"][0]["sha256"]


def test_a_step_whose_worker_is_killed_is_taken_again_with_the_same_result(service):
    undisturbed, killed = begin(service), begin(service)
    upload(service, undisturbed, 0)
    expected = [stepped(service, undisturbed, 1)]
    upload(service, undisturbed, 1)
    expected.append(stepped(service, undisturbed, 2))

    upload(service, killed, 0)
    assert stepped(service, killed, 1) == expected[0]
    upload(service, killed, 1)
    worker = wait_until(lambda: service.adapter_of(killed["id"]))
    os.kill(worker, signal.SIGKILL)
    between = look(service, killed)
    assert (between["state"], between["revision"]) == ("running", 1)
    assert stepped(service, killed, 2) == expected[1]
    done = look(service, killed)
    assert (done["state"], done["remote"]["steps_taken"], done["attempts"]) == ("collecting", 2, 3)


# Processes are what this is about; what they keep is kept alike on each database.
@pytest.mark.databases("sqlite")
def test_a_service_that_is_restarted_goes_on_collecting(service):
    adaptation = begin(service, epochs=2)
    upload(service, adaptation, 0)
    expected = stepped(service, adaptation, 1)
    assert service.stop() == 0
    service.start()
    again = look(service, adaptation)
    assert (again["state"], again["revision"]) == ("collecting", 1)
    assert stepped(service, adaptation, 1) == expected
    upload(service, adaptation, 1)
    finished = service.http.post(f"/v1/adaptations/{adaptation['id']}:finish", headers={"Prefer": "wait=60"}).json()
    assert (finished["state"], finished["revision"]) == ("succeeded", 2)
