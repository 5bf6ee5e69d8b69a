"""Episodes that come in: whole, in pieces, twice, at once, and such as should never have come."""

import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from acting import CARTPOLE, METHOD, NAVIGATION, act, begin, finish, in_pieces, look, upload
from sqlalchemy import event, func, select, update

from app.adaptations.episodes import lines
from app.adaptations.remote import close_expired
from app.database import now
from app.tables import Adaptation, Episode, EpisodePiece, Policy
from app.worker import Worker

EPISODE = {
    "id": "actor-1/7",
    "revision": 0,
    "observations": [[0.1, -1 / 3, 1e-17, 123456.789], [0.0, 5, 1.0, 3e38], [0.1, 0.2, 0.3, 0.4]],
    "actions": [1, 0],
    "rewards": [1.0, 0.1],
    "log_probs": [-0.7, -1 / 3],
    "truncated": True,
}
NUMBERS = {
    "id": "n",
    "revision": 0,
    "observations": [[0.1, 0.2], [0.3, 0.4]],
    "actions": [[0.05, -0.05]],
    "rewards": [1.0],
    "terminated": True,
}


def problem(response, status=422):
    assert response.status_code == status, response.text
    return {error["pointer"]: error["detail"] for error in response.json()["errors"]}


def rows_of(client, adaptation, **query):
    response = client.get(f"/v1/adaptations/{adaptation['id']}/episodes", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def lines_of(client, adaptation):
    response = client.get(f"/v1/adaptations/{adaptation['id']}/episodes?format=jsonl")
    assert response.headers["content-type"].startswith("application/jsonl")
    return [json.loads(line) for line in response.text.splitlines()]


def stored(database):
    with database.snapshot() as session:
        return tuple(session.scalar(select(func.count()).select_from(table)) for table in (Episode, EpisodePiece))


def test_what_was_uploaded_comes_back_to_the_last_digit(client):
    adaptation = begin(client)
    assert upload(client, adaptation, [EPISODE]).json()["accepted"] == 1
    [row] = rows_of(client, adaptation)["episodes"]
    created_at = row.pop("created_at")
    assert created_at
    assert row == {
        "id": "actor-1/7",
        "revision": 0,
        "steps": 2,
        "return": 1.1,
        "terminated": False,
        "truncated": True,
        "complete": True,
        "off_policy": None,
        "used_in": None,
    }
    [line] = lines_of(client, adaptation)
    assert line == EPISODE | {"terminated": False, "offset": 0}
    again = upload(client, adaptation, [line]).json()
    assert (again["accepted"], again["duplicates"]) == (0, 1)


def test_continuous_actions_come_back_with_their_originals(client):
    adaptation = begin(client, NAVIGATION)
    episodes = act(client, adaptation, NAVIGATION, episodes=3)
    upload(client, adaptation, episodes)
    assert lines_of(client, adaptation) == [episode | {"offset": 0} for episode in episodes]


def test_pieces_in_any_order_are_one_episode_when_all_are_in(client):
    adaptation = begin(client)
    [episode] = act(client, adaptation, episodes=1)
    length = len(episode["actions"])
    pieces = in_pieces(episode, 2, 5, length - 1)
    assert len(pieces) == 4
    for count, place in enumerate((3, 0, 2), 1):
        upload(client, adaptation, [pieces[place]])
        [row] = rows_of(client, adaptation)["episodes"]
        assert (row["complete"], look(client, adaptation)["remote"]["episodes"]) == (False, 0)
        assert len(lines_of(client, adaptation)) == count
    body = upload(client, adaptation, [pieces[1]]).json()
    assert body["adaptation"]["remote"]["environment_steps"] == length
    [row] = rows_of(client, adaptation)["episodes"]
    assert (row["complete"], row["steps"], row["return"]) == (True, length, pytest.approx(sum(episode["rewards"])))
    assert lines_of(client, adaptation) == [episode | {"offset": 0}]
    assert upload(client, adaptation, pieces).json()["duplicates"] == 4


def test_episodes_are_listed_in_pages_in_the_order_in_which_they_came(client):
    adaptation = begin(client)
    names = [f"z{9 - i}" for i in range(5)]
    for name in names:
        upload(client, adaptation, [EPISODE | {"id": name}])
    first = rows_of(client, adaptation, page_size=3)
    rest = rows_of(client, adaptation, page_size=3, page_token=first["next_page_token"])
    assert [row["id"] for row in first["episodes"] + rest["episodes"]] == names
    assert rest["next_page_token"] is None
    assert client.get("/v1/adaptations/nothing/episodes").status_code == 404
    assert client.get("/v1/adaptations/nothing/episodes?format=jsonl").status_code == 404


def test_more_episodes_than_are_in_memory_at_a_time_are_all_downloaded(client):
    adaptation = begin(client, method=METHOD | {"episodes": 1000})
    upload(client, adaptation, [EPISODE | {"id": f"{i}"} for i in range(120)])
    assert [line["id"] for line in lines_of(client, adaptation)] == [f"{i}" for i in range(120)]


def test_of_a_download_few_steps_are_in_memory_at_a_time_however_long_episodes_are(client, database):
    adaptation = begin(client, CARTPOLE | {"horizon": 3000}, method=METHOD | {"episodes": 100})
    episodes = [
        {
            "id": f"{i}",
            "revision": 0,
            "observations": [[0.5] * 4] * (steps + 1),
            "actions": [1] * steps,
            "rewards": [1.0] * steps,
            "terminated": True,
        }
        for i, steps in enumerate([600] * 10 + [2500, 2500] + [600] * 10)
    ]
    upload(client, adaptation, episodes)
    alive, most = weakref.WeakSet(), 0

    def note(piece, _):
        alive.add(piece)

    event.listen(EpisodePiece, "load", note)
    try:
        for episode, line in zip(episodes, lines(database, adaptation["id"]), strict=True):
            assert json.loads(line) == episode | {"truncated": False, "offset": 0}
            most = max(most, sum(piece.steps for piece in alive))
    finally:
        event.remove(EpisodePiece, "load", note)
    assert 0 < most <= 2500


CARTPOLE_FAULTS = {
    "no JSON number": ({"rewards": [1.0, "x"]}, "/rewards/1", "Expected `float`"),
    "fewer rewards": ({"rewards": [1.0]}, "/rewards", "must hold 2 for 2 actions, not 1"),
    "fewer observations": ({"observations": [[0.0] * 4] * 2}, "/observations", "must hold 3 for 2 actions, not 2"),
    "more log-probabilities": ({"log_probs": [-1.0] * 3}, "/log_probs", "must hold 2"),
    "a log-probability above 0": ({"log_probs": [-1.0, 0.5]}, "/log_probs/1", "at most 0"),
    "a short observation": ({"observations": [[0.0] * 4, [0.0] * 3, [0.0] * 4]}, "/observations/1", "4 numbers, not 3"),
    "a number that no float32 holds": ({"rewards": [1.0, 1e39]}, "/rewards/1", "<= 3.4"),
    "an action out of range": ({"actions": [0, 2]}, "/actions/1", "from 0 to 1, not 2"),
    "an action that is a list": ({"actions": [0, [1.0]]}, "/actions/1", "not a list"),
    "no actions": ({"actions": []}, "/actions", "length >= 1"),
    "originals of discrete actions": ({"policy_actions": [[0.1], [0.1]]}, "/policy_actions", "must be null"),
    "an unknown revision": ({"revision": 1}, "/revision", "unknown revision 1; the newest is 0"),
    "a revision below 0": ({"revision": -1}, "/revision", ">= 0"),
    "an episode past the horizon": ({"offset": 29}, "/actions", "ends at step 31"),
    "an episode that does not end": ({"offset": 28, "truncated": False}, "/truncated", "must be true"),
    "an unprintable id": ({"id": "a\u0000b"}, "/id", ""),
    "an empty id": ({"id": ""}, "/id", "length >= 1"),
    "an id of a recorded action": ({"id": "event-1"}, "/id", "must not begin with"),
    "an unknown member": ({"colour": 1}, "/colour", "unknown field; known: id, revision"),
}


@pytest.mark.parametrize(("changes", "pointer", "detail"), CARTPOLE_FAULTS.values(), ids=CARTPOLE_FAULTS)
@pytest.mark.databases("sqlite")
def test_an_episode_that_cannot_be_is_refused_with_its_place_and_nothing_is_stored(
    client, database, changes, pointer, detail
):
    adaptation = begin(client)
    response = upload(client, adaptation, [EPISODE | {"id": "good"}, EPISODE | changes])
    found = problem(response)
    assert detail in found[f"/episodes/1{pointer}"], found
    assert stored(database) == (0, 0)


NUMBER_FAULTS = {
    "an action out of bounds": ({"actions": [[0.0, 7.0]]}, "/actions/0/1", "the bounds of the action space, not 7"),
    "a short action": ({"actions": [[0.0]]}, "/actions/0", "must hold 2 numbers, not 1"),
    "an action that is a number": ({"actions": [1]}, "/actions/0", "must be a list of 2 numbers"),
    "more originals": ({"policy_actions": [[0.0, 0.0]] * 2}, "/policy_actions", "must hold 1"),
    "a short original": ({"policy_actions": [[0.0]]}, "/policy_actions/0", "must hold 2 numbers"),
}


@pytest.mark.parametrize(("changes", "pointer", "detail"), NUMBER_FAULTS.values(), ids=NUMBER_FAULTS)
@pytest.mark.databases("sqlite")
def test_an_episode_whose_numbers_cannot_be_is_refused_with_its_place(client, changes, pointer, detail):
    adaptation = begin(client, NAVIGATION)
    found = problem(upload(client, adaptation, [NUMBERS | changes]))
    assert detail in found[f"/episodes/0{pointer}"], found
    # A density may be above 1, and its logarithm above 0.
    assert upload(client, adaptation, [NUMBERS | {"log_probs": [2.5]}]).status_code == 200


@pytest.mark.databases("sqlite")
def test_what_is_no_json_of_episodes_is_refused(client):
    adaptation = begin(client)
    path = f"/v1/adaptations/{adaptation['id']}/episodes"
    json_type = {"Content-Type": "application/json"}
    whole = json.dumps({"episodes": [EPISODE]})
    assert client.post(path, content=b"[", headers=json_type).status_code == 400
    assert client.post(path, content=whole, headers={"Content-Type": "text/plain"}).status_code == 415
    not_finite = client.post(path, content=whole.replace("0.1]", "NaN]"), headers=json_type)
    assert "finite" in problem(not_finite)["/episodes/0/rewards/1"]
    assert problem(client.post(path, json={}))["/episodes"] == "required"
    assert "length >= 1" in problem(client.post(path, json={"episodes": []}))["/episodes"]
    assert problem(client.post(path, json={"episodes": [{}]}))["/episodes/0/id"] == "required"
    many = client.post(path, json={"episodes": [EPISODE | {"id": f"{i}"} for i in range(1001)]})
    assert (many.status_code, "send 1000" in many.json()["detail"]) == (413, True)
    assert client.post("/v1/adaptations/nothing/episodes", json={"episodes": [EPISODE]}).status_code == 404


@pytest.mark.databases("sqlite")
def test_many_faults_are_told_at_once(client):
    adaptation = begin(client)
    bad = [EPISODE | {"id": f"{i}", "rewards": [1.0], "revision": 3} for i in range(3)]
    found = problem(upload(client, adaptation, bad))
    assert set(found) == {f"/episodes/{i}/{name}" for i in range(3) for name in ("rewards", "revision")}


def test_an_episode_that_is_sent_again_with_other_content_is_a_conflict_and_nothing_is_stored(client, database):
    adaptation = begin(client)
    upload(client, adaptation, [EPISODE])
    for changes in ({"rewards": [1.0, 0.2]}, {"truncated": False, "terminated": True}, {"log_probs": None}):
        response = upload(client, adaptation, [EPISODE | {"id": "new"}, EPISODE | changes])
        found = problem(response, 409)
        assert "stands with other content" in found["/episodes/1"]
        assert "'actor-1/7'" in response.json()["detail"]
        assert stored(database) == (1, 1)
    twice = upload(client, adaptation, [EPISODE | {"id": "new"}, EPISODE | {"id": "new", "rewards": [0.0, 0.0]}])
    assert twice.status_code == 409


LONG = {
    "id": "long",
    "revision": 0,
    "observations": [[float(t)] * 4 for t in range(7)],
    "actions": [0, 1] * 3,
    "rewards": [1.0] * 6,
    "terminated": True,
}
HEAD, MIDDLE, TAIL = in_pieces(LONG, 2, 4)

SEAMS = {
    "another observation": (MIDDLE | {"observations": [[9.0] * 4, *MIDDLE["observations"][1:]]}, "two observations"),
    "log-probabilities on one side": (MIDDLE | {"log_probs": [-1.0, -1.0]}, "log_probs on one side only"),
    "an overlap": (MIDDLE | {"offset": 1}, "overlaps"),
    "a second end": (MIDDLE | {"truncated": True}, "over after step 4"),
    "an end after the end": (
        TAIL | {"offset": 6, "actions": [0], "rewards": [1.0], "observations": [[6.0] * 4] * 2},
        "over",
    ),
}


@pytest.mark.parametrize(("piece", "detail"), SEAMS.values(), ids=SEAMS)
def test_a_piece_that_does_not_go_with_the_others_is_a_conflict(client, database, piece, detail):
    adaptation = begin(client)
    upload(client, adaptation, [HEAD, TAIL])
    found = problem(upload(client, adaptation, [piece]), 409)
    assert detail in found["/episodes/0"]
    assert stored(database) == (1, 2)
    assert upload(client, adaptation, [MIDDLE]).json()["adaptation"]["remote"]["episodes"] == 1


def test_pieces_of_one_episode_are_of_one_revision(client, idle):
    adaptation = begin(client)
    upload(client, adaptation, [HEAD])
    upload(client, adaptation, act(client, adaptation))
    idle.work_once()
    found = problem(upload(client, adaptation, [MIDDLE | {"revision": 1}]), 409)
    assert "stands with revision 0" in found["/episodes/0"]


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_of_uploads_of_one_episode_at_once_one_wins(client, database, same):
    adaptation = begin(client)
    episodes = [EPISODE | {"rewards": [1.0, 0.1 if same else float(i)]} for i in range(8)]
    with ThreadPoolExecutor(8) as actors:
        answers = list(actors.map(lambda episode: upload(client, adaptation, [episode]), episodes))
    assert stored(database) == (1, 1)
    accepted = [answer.json()["accepted"] for answer in answers if answer.status_code == 200]
    assert sum(accepted) == 1
    assert len(accepted) == (8 if same else 1)
    assert {answer.status_code for answer in answers} == ({200} if same else {200, 409})
    assert look(client, adaptation)["remote"]["episodes"] == 1


def test_many_actors_at_once_lose_nothing(client, database):
    adaptation = begin(client, method=METHOD | {"episodes": 1000})

    def actor(number):
        for i in range(10):
            # Every fifth is sent twice, as by a client whose connection broke.
            for _ in range(1 + (i % 5 == 0)):
                assert upload(client, adaptation, [EPISODE | {"id": f"actor-{number}/{i}"}]).status_code == 200

    with ThreadPoolExecutor(6) as actors:
        list(actors.map(actor, range(6)))
    counts = look(client, adaptation)["remote"]
    assert (counts["episodes"], counts["environment_steps"]) == (60, 120)
    with database.snapshot() as session:
        assert sorted(session.scalars(select(Episode.sequence))) == list(range(1, 61))


def test_what_comes_while_a_step_is_computed_waits_for_the_next(client, idle, monkeypatch):
    adaptation = begin(client, NAVIGATION)
    episodes = act(client, adaptation, NAVIGATION)
    upload(client, adaptation, episodes)
    compute, seen = idle._interrupter.compute, []

    def computed_while_others_upload(function):
        outcome = compute(function)
        if not seen:
            late = [episode | {"id": f"late-{i}"} for i, episode in enumerate(episodes)]
            seen.append(upload(client, adaptation, late).json()["adaptation"])
        return outcome

    monkeypatch.setattr(idle._interrupter, "compute", computed_while_others_upload)
    assert idle.work_once()
    assert (seen[0]["state"], seen[0]["revision"]) == ("running", 0)
    between = look(client, adaptation)
    assert (between["state"], between["revision"], between["remote"]["episodes_used"]) == ("queued", 1, 6)
    assert idle.work_once()
    assert not idle.work_once()
    used = {row["id"]: row["used_in"] for row in rows_of(client, adaptation)["episodes"]}
    assert {used[f"late-{i}"] for i in range(6)} == {2}
    assert look(client, adaptation)["state"] == "collecting"


def test_a_worker_that_dies_in_a_step_leaves_it_to_another_with_the_same_result(client, settings, idle, database):
    expected = begin(client)
    upload(client, expected, act(client, expected))
    idle.work_once()
    adaptation = begin(client)
    upload(client, adaptation, act(client, adaptation))
    dying = Worker(settings, "adaptations")
    dying._interrupter.compute = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        dying.work_once()
    dying.close()
    assert look(client, adaptation)["state"] == "running"
    assert not idle.work_once()
    with database.transaction() as session:
        past = now() - timedelta(seconds=1)
        session.execute(update(Adaptation).where(Adaptation.id == adaptation["id"]).values(lease_expires_at=past))
    assert idle.work_once()
    first, second = (
        client.get(f"/v1/policies/{each['policy']}").json()["files"][0]["sha256"] for each in (expected, adaptation)
    )
    assert first == second
    with database.snapshot() as session:
        row = session.get(Adaptation, adaptation["id"])
        assert (row.state, row.attempt, row.crashes) == ("collecting", 2, 0)


def test_an_adaptation_that_is_over_takes_no_episodes_but_keeps_those_it_has(client, idle):
    adaptation = begin(client)
    upload(client, adaptation, [EPISODE])
    finish(client, adaptation, 0)
    being_finished = upload(client, adaptation, [EPISODE])
    assert being_finished.status_code == 409
    assert "is being finished" in being_finished.json()["detail"]
    idle.work_once()
    over = upload(client, adaptation, [EPISODE | {"id": "late"}])
    assert over.status_code == 409
    assert "is over: succeeded since" in over.json()["detail"]
    assert len(lines_of(client, adaptation)) == 1


def test_an_adaptation_to_a_task_of_the_services_own_takes_no_episodes(client):
    body = {"model": None, "task": CARTPOLE, "policy": {"hidden": [4]}}
    adaptation = client.post("/v1/adaptations", json=body, headers={"Prefer": "wait=0"}).json()
    assert upload(client, adaptation, [EPISODE]).status_code == 409
    assert client.post(f"/v1/adaptations/{adaptation['id']}:finish").status_code == 409
    assert (adaptation["remote"], adaptation["revision"]) == (None, 0)
    assert rows_of(client, adaptation)["episodes"] == []


def test_an_adaptation_whose_policy_has_expired_says_when_and_is_closed(client, database, idle):
    waiting, due = begin(client), begin(client)
    upload(client, due, act(client, due))
    with database.transaction() as session:
        session.execute(update(Policy).values(expires_at=now() - timedelta(seconds=1)))
    gone = upload(client, waiting, [EPISODE])
    assert (gone.status_code, gone.json()["title"]) == (410, "No longer there")
    assert "expired at 20" in gone.json()["detail"]
    assert idle.work_once()
    close_expired(database)
    for adaptation in (waiting, due):
        closed = look(client, adaptation)
        assert (closed["state"], closed["error"]["type"]) == ("failed", "gone")
        assert "expired at" in closed["error"]["detail"]
        assert upload(client, adaptation, [EPISODE]).status_code == 409


def test_a_step_that_diverges_fails_the_adaptation_with_the_reason(client, idle):
    adaptation = begin(client, method=METHOD | {"learning_rate": 1000.0})
    episodes = act(client, adaptation)
    # Rewards that no float32 can add up.
    upload(client, adaptation, [episode | {"rewards": [3e38] * len(episode["rewards"])} for episode in episodes])
    idle.work_once()
    failed = look(client, adaptation)
    assert (failed["state"], failed["error"]["type"]) == ("failed", "adaptation-diverged")
    assert failed["revision"] == 0


def test_an_upload_waits_for_the_step_as_long_as_it_is_told_and_no_longer(client):
    adaptation = begin(client)
    response = upload(client, adaptation, act(client, adaptation), Prefer="wait=1")
    assert response.headers["preference-applied"] == "wait=1"
    assert response.json()["adaptation"]["state"] == "queued"
    assert "preference-applied" not in upload(client, adaptation, [EPISODE]).headers


def test_an_idempotency_key_gives_the_first_answer_again(client):
    adaptation = begin(client)
    first, again = (upload(client, adaptation, [EPISODE], **{"Idempotency-Key": "k"}).json() for _ in range(2))
    assert first == again
    assert first["accepted"] == 1


def test_uploading_needs_the_scope_and_the_document_has_an_example(client):
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/adaptations/{adaptation_id}/episodes"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    adaptation = begin(client)
    assert upload(client, adaptation, example["episodes"]).status_code == 200
    key = client.post("/v1/api-keys", json={"name": "reader", "scopes": ["runs:write"]}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert upload(client, adaptation, example["episodes"], **headers).status_code == 403
    assert client.get(f"/v1/adaptations/{adaptation['id']}/episodes", headers=headers).status_code == 200


def test_single_precision_actions_at_the_bounds_are_within_them(client):
    adaptation = begin(client, NAVIGATION)
    bound = adaptation["task"]["remote"]["action_space"]["high"][0]
    beyond = float(np.nextafter(np.float32(bound), np.float32(1)))
    assert upload(client, adaptation, [NUMBERS | {"actions": [[beyond, -beyond]]}]).status_code == 200
