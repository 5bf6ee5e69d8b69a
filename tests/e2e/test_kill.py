"""A run survives the death of whatever executes it, and ends in the same bits."""

import os
import signal
import time

import pytest
from live_service import is_alive, wait_until

RUN = {
    "model": "nav",
    "learner": {"name": "maml", "tasks_per_iteration": 3, "episodes_per_task": 4},
    "policy": {"hidden": [8]},
    "tasks": {"family": "navigation-2d"},
    "stop": {"iterations": 60},
    "evaluation": {"tasks": 2, "every_iterations": 5},
    "seed": 5,
}


@pytest.fixture(scope="module")
def undisturbed(service):
    """Digest of the parameters that the run ends in when nobody disturbs it."""
    return service.parameters_of(service.start_run(**RUN))


def start_and_get_going(service):
    run_id = service.start_run(**RUN)
    wait_until(lambda: service.has_checkpoint(run_id))
    return run_id


def iterations(service, run_id):
    page = service.http.get(f"/v1/runs/{run_id}/metrics?page_size=1000").json()
    return [metric["iteration"] for metric in page["metrics"]]


def test_a_run_whose_worker_is_killed_twice_ends_bit_for_bit_like_an_undisturbed_one(service, undisturbed):
    run_id = start_and_get_going(service)
    for attempt, reached in ((1, 8), (2, 20)):
        wait_until(lambda reached=reached: service.run(run_id)["progress"]["iterations"] >= reached)
        run = service.run(run_id)
        assert (run["state"], run["attempts"]) == ("running", attempt)
        os.kill(service.worker_of(run_id), signal.SIGKILL)
    assert service.parameters_of(run_id) == undisturbed
    run = service.run(run_id)
    assert (run["attempts"], service.crashes_of(run_id)) == (3, 2)
    assert run["best"]["iteration"] % 5 == 0
    assert iterations(service, run_id) == list(range(1, 61))


def test_a_worker_that_is_asked_to_end_hands_its_run_over_without_losing_an_iteration(service, undisturbed):
    run_id = start_and_get_going(service)
    pid = service.worker_of(run_id)
    os.kill(pid, signal.SIGTERM)
    asked = time.monotonic()
    wait_until(lambda: not is_alive(pid))
    assert time.monotonic() - asked < 5
    given_back = service.run(run_id)
    assert given_back["state"] == "queued"
    assert iterations(service, run_id)[-1] == given_back["progress"]["iterations"]
    assert service.parameters_of(run_id) == undisturbed
    assert (service.run(run_id)["attempts"], service.crashes_of(run_id)) == (2, 0)


def test_a_running_run_is_cancelled_within_two_seconds_in_the_middle_of_an_iteration(service):
    learner = {"name": "maml", "tasks_per_iteration": 100, "episodes_per_task": 100}
    run_id = service.start_run(**RUN | {"learner": learner, "policy": {"hidden": [256, 256]}})
    wait_until(lambda: service.run(run_id)["state"] == "running")
    time.sleep(0.5)
    asked = time.monotonic()
    service.http.post(f"/v1/runs/{run_id}:cancel")
    run = wait_until(lambda: (run := service.run(run_id))["state"] == "cancelled" and run)
    assert time.monotonic() - asked < 2
    assert run["progress"]["iterations"] == 0


def test_the_worker_is_well_after_a_cancellation(service, undisturbed):
    assert service.parameters_of(service.start_run(**RUN)) == undisturbed


# Processes are what this is about; one database shows it.
@pytest.mark.databases("sqlite")
def test_a_service_that_is_stopped_or_killed_goes_on_where_it_was(service, undisturbed):
    run_id = start_and_get_going(service)
    children = service.children()
    assert service.stop() == 0
    assert not any(is_alive(pid) for pid in children)
    service.start()
    wait_until(lambda: service.worker_of(run_id))
    assert service.crashes_of(run_id) == 0
    children = service.children()
    assert len(children) == 4
    service.stop(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in children), 10)
    service.start()
    assert service.parameters_of(run_id) == undisturbed


FINE_TUNING = {
    "model": None,
    "policy": {"hidden": [8]},
    "task": {"environment": "CartPole-v1", "horizon": 50},
    "method": {"name": "dqn", "environment_steps": 6000, "warm_up_steps": 200, "evaluation_episodes": 2},
    "seed": 5,
}


def fine_tune(service):
    return service.http.post("/v1/adaptations", json=FINE_TUNING, headers={"Prefer": "wait=0"}).json()["id"]


def adaptation(service, adaptation_id):
    return service.http.get(f"/v1/adaptations/{adaptation_id}").json()


def fine_tuned(service, adaptation_id):
    """The learning curve and the digest of the policy."""
    wait_until(lambda: adaptation(service, adaptation_id)["state"] not in ("queued", "running"), 120)
    body = adaptation(service, adaptation_id)
    assert body["state"] == "succeeded", body
    return body["curve"], service.http.get(f"/v1/policies/{body['policy']}").json()["files"][0]["sha256"]


def test_fine_tuning_whose_worker_is_killed_ends_bit_for_bit_like_an_undisturbed_one(service):
    undisturbed = fine_tuned(service, fine_tune(service))
    adaptation_id = fine_tune(service)
    wait_until(lambda: adaptation(service, adaptation_id)["progress"]["fraction"] >= 0.3)
    assert adaptation(service, adaptation_id)["attempts"] == 1
    os.kill(service.adapter_of(adaptation_id), signal.SIGKILL)
    assert fine_tuned(service, adaptation_id) == undisturbed
    assert adaptation(service, adaptation_id)["attempts"] == 2


def test_running_fine_tuning_is_cancelled_within_two_seconds(service):
    method = FINE_TUNING["method"] | {"environment_steps": 10**8, "updates": 100, "batch_size": 10_000}
    body = FINE_TUNING | {"method": method}
    adaptation_id = service.http.post("/v1/adaptations", json=body, headers={"Prefer": "wait=0"}).json()["id"]
    wait_until(lambda: adaptation(service, adaptation_id)["state"] == "running")
    time.sleep(0.5)
    asked = time.monotonic()
    service.http.post(f"/v1/adaptations/{adaptation_id}:cancel")
    wait_until(lambda: adaptation(service, adaptation_id)["state"] == "cancelled")
    assert time.monotonic() - asked < 2


EVALUATION = {
    "subjects": [RUN["model"]],
    "tasks": {"family": "navigation-2d", "count": 4},
    "training_tasks": 2,
    "methods": [{"name": "ppo", "environment_steps": 2000, "evaluation_episodes": 2}],
    "seeds": 4,
    "scratch": False,
}


def evaluation(service, evaluation_id):
    return service.http.get(f"/v1/evaluations/{evaluation_id}").json()


def evaluate(service, **changes):
    response = service.http.post("/v1/evaluations", json=EVALUATION | changes)
    assert response.status_code == 202, response.text
    return response.json()["id"]


@pytest.mark.usefixtures("undisturbed")
def test_an_evaluation_whose_worker_is_killed_has_the_numbers_of_an_undisturbed_one(service):
    def numbers(evaluation_id):
        wait_until(lambda: evaluation(service, evaluation_id)["state"] not in ("queued", "running"), 120)
        assert evaluation(service, evaluation_id)["state"] == "succeeded", evaluation(service, evaluation_id)["error"]
        return service.http.get(f"/v1/evaluations/{evaluation_id}/evaluation.json").json()["runs"]

    killed = evaluate(service)
    wait_until(lambda: evaluation(service, killed)["progress"]["done"] >= 8)
    assert evaluation(service, killed)["attempts"] == 1
    os.kill(service.evaluator_of(killed), signal.SIGKILL)
    assert numbers(killed) == numbers(evaluate(service))
    assert evaluation(service, killed)["attempts"] == 2


@pytest.mark.usefixtures("undisturbed")
def test_a_running_evaluation_is_cancelled_within_two_seconds(service):
    evaluation_id = evaluate(service, methods=[{"name": "ppo", "environment_steps": 10**7}])
    wait_until(lambda: evaluation(service, evaluation_id)["state"] == "running")
    time.sleep(0.5)
    asked = time.monotonic()
    service.http.post(f"/v1/evaluations/{evaluation_id}:cancel")
    wait_until(lambda: evaluation(service, evaluation_id)["state"] == "cancelled")
    assert time.monotonic() - asked < 2
