"""Every call that changes something: whether it is sent again when its answer is lost or there is too much to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scripted_server import Answer, ScriptedServer, answer, problem

from headstart_client import Client, ConnectionFailed, ServiceFailed

STOP = {"seconds": 1}
RUN = {"id": "r1", "state": "queued"}
ADAPTATION = {"id": "a1", "state": "succeeded", "policy": "p1"}
EVALUATION = {"id": "e1", "state": "queued"}
TASK = {"id": "t1", "name": "long", "environment": "CartPole-v1"}
VERSION = {"model": "m", "version": 3}
ALIAS = {"model": "m", "alias": "champion", "version": 3}
ACTIONS = {"actions": [1], "log_probs": [-0.2], "values": [88.1], "policy": "p1"}

Call = Callable[[Client], object]

CREATING: dict[str, tuple[Call, object]] = {
    "family": (lambda c: c.families.create("f", "CartPole-v1"), {"name": "f", "environment": "CartPole-v1"}),
    "sample": (lambda c: c.families.sample("f", 1), {"tasks": [TASK]}),
    "task": (lambda c: c.tasks.create("CartPole-v1"), TASK),
    "tasks": (lambda c: c.tasks.create_many([TASK]), {"tasks": [TASK]}),
    "apply": (lambda c: c.tasks.apply([TASK]), {"applied": True}),
    "run": (lambda c: c.runs.create("m", tasks="f", stop=STOP), RUN),
    "adaptation": (lambda c: c.adapt("m", "long"), ADAPTATION),
    "adaptations": (
        lambda c: c.adaptations.create_many("m", ["long"], wait=False),
        {"adaptations": [ADAPTATION]},
    ),
    "evaluation": (lambda c: c.evaluate(["m/3"], {"family": "f"}, wait=False), EVALUATION),
    "publish": (lambda c: c.policies.publish("p1", "m"), VERSION),
    "key": (lambda c: c.api_keys.create("ci", ["admin"]), {"id": "k1"}),
}
REPEATED: dict[str, tuple[Call, object]] = {
    "act": (lambda c: c.act("p1", [0.0]), ACTIONS),
    "draw": (lambda c: c.act("p1", [0.0], deterministic=False, seed=1), ACTIONS),
    "reward": (lambda c: c.policies.reward("v1", 1.0), {"event_id": "v1", "reward": 1.0}),
    "bring": (
        lambda c: c.adaptations.upload("a1", [{"id": "e1"}]),
        {"accepted": 1, "duplicates": 0, "adaptation": ADAPTATION},
    ),
    "finish": (lambda c: c.adaptations.finish("a1"), ADAPTATION),
    "try to apply": (lambda c: c.tasks.apply([TASK], dry_run=True), {"applied": False}),
    "cancel run": (lambda c: c.runs.cancel("r1"), RUN),
    "cancel adaptation": (lambda c: c.adaptations.cancel("a1"), ADAPTATION),
    "cancel evaluation": (lambda c: c.evaluations.cancel("e1"), EVALUATION),
    "move": (lambda c: c.aliases.set("m", "champion", 3), ALIAS),
    "delete task": (lambda c: c.tasks.delete("long"), {}),
    "delete policy": (lambda c: c.policies.delete("p1"), {}),
    "delete alias": (lambda c: c.aliases.delete("m", "champion"), {}),
    "revoke": (lambda c: c.api_keys.revoke("k1"), {}),
}
ONCE: dict[str, Call] = {
    "act and record": lambda c: c.act("p1", [0.0], deterministic=False, record=True),
    "roll back": lambda c: c.aliases.rollback("m", "champion"),
    "move under a condition": lambda c: c.aliases.set("m", "champion", 3, if_match='"7"'),
    "make a new one": lambda c: c.aliases.set("m", "champion", 3, only_new=True),
    "delete under a condition": lambda c: c.aliases.delete("m", "champion", if_match='"7"'),
}
TROUBLE = {"429": problem(429), "503": problem(503, Retry_After="0"), "lost": Answer(cut=0)}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("name", CREATING)
def test_what_creates_is_sent_again_with_its_key(
    server: ScriptedServer, client: Client, name: str, trouble: str
) -> None:
    call, created = CREATING[name]
    server.script(TROUBLE[trouble], answer(created))
    call(client)
    first, second = server.requests
    assert first.method == "POST"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert (first.path, first.body) == (second.path, second.body)


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("name", REPEATED)
def test_what_comes_to_the_same_twice_is_sent_again(
    server: ScriptedServer, client: Client, name: str, trouble: str
) -> None:
    call, done = REPEATED[name]
    server.script(TROUBLE[trouble], answer(done))
    call(client)
    first, second = server.requests
    assert (first.method, first.path, first.body) == (second.method, second.path, second.body)


@pytest.mark.parametrize("trouble", ["503", "lost"])
@pytest.mark.parametrize("name", ONCE)
def test_what_does_not_is_sent_once(server: ScriptedServer, client: Client, name: str, trouble: str) -> None:
    server.script(TROUBLE[trouble])
    with pytest.raises((ServiceFailed, ConnectionFailed)):
        ONCE[name](client)
    assert len(server.requests) == 1
