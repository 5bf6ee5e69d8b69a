"""Aliases that move only where an evaluation speaks for the version."""

import pytest
from evaluating import ask, evaluated, publish, train

pytestmark = pytest.mark.usefixtures("good_and_bad")


def move(client, model, version, evaluation):
    body = {"version": version, "require_evaluation": evaluation}
    return client.put(f"/v1/models/{model}/aliases/champion", json=body)


def test_an_alias_moves_only_where_the_required_evaluation_speaks_for_the_version(client, evaluator, database, store):
    publish(database, store, "good", -0.5)  # good/2 is bad
    publish(database, store, "good", 0.5)  # good/3 is as good as good/1

    def compared(first, second):
        return evaluated(client, evaluator, subjects=[f"good/{first}", f"good/{second}"], scratch=False)["id"]

    alone = evaluated(client, evaluator, subjects=["good/1"])["id"]
    assert move(client, "good", 1, alone).status_code == 201
    worse, equal, queued = compared(2, 1), compared(3, 1), ask(client)["id"]
    for version, evaluation, reason in (
        (2, worse, "found good/2 worse than good/1"),
        (3, worse, "is about good/2, not good/3"),
        (2, queued, "is queued: only one that has succeeded speaks for good/2"),
        (3, alone, "is about good/1"),
    ):
        response = move(client, "good", version, evaluation)
        assert response.status_code == 409, response.text
        assert reason in response.json()["detail"]
        assert client.get("/v1/models/good/aliases/champion").json()["version"] == 1
    unknown = move(client, "good", 3, "none")
    assert unknown.status_code == 422
    assert unknown.json()["errors"][0]["pointer"] == "/require_evaluation"
    assert move(client, "good", 3, equal).status_code == 200
    unrelated = move(client, "good", 1, alone)
    assert unrelated.json()["detail"].endswith("does not compare good/1 with good/3, where the alias points")


def test_leakage_keeps_an_alias_where_it_is(client, evaluator, settings):
    train(client, settings)
    leaked = evaluated(client, evaluator, subjects=["trained"], tasks={"family": "near", "split": "train", "count": 2})
    response = move(client, "trained", 1, leaked["id"])
    assert response.status_code == 409
    assert "has leakage: trained was trained on 2 of the 2 held-out tasks" in response.json()["detail"]
