"""Policies to act with, as rows and artefacts."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
from fastapi import FastAPI
from httpx import Client, Response

from app import tables
from app.database import Database, now
from app.registry.service import publish_version
from app.store import ArtefactStore
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, pack, policy_to_json, save_params
from models.environments import ENVIRONMENTS
from models.learners import MAMLConfig
from models.policy import Policy, PolicyConfig
from models.types import Params

CARTPOLE = ENVIRONMENTS["CartPole-v1"]
PENDULUM = ENVIRONMENTS["Pendulum-v1"]
OBSERVATION = [0.01, 0.0, 0.02, 0.0]
POLICY = Policy(PolicyConfig(hidden=(8,)), CARTPOLE.observation_space, CARTPOLE.action_space)
WIDER = Policy(PolicyConfig(hidden=(8, 8)), CARTPOLE.observation_space, CARTPOLE.action_space)
TORQUE = Policy(PolicyConfig(hidden=(8,)), PENDULUM.observation_space, PENDULUM.action_space)


def some_params(seed: int = 0, policy: Policy = POLICY) -> Params:
    params = policy.initialise(seed)
    return params | {"policy.weight": params["policy.weight"] * 100}


def put_policy(
    database: Database,
    store: ArtefactStore,
    seed: int = 0,
    ttl_s: float | None = 60,
    policy: Policy = POLICY,
    scale: float = 1.0,
) -> str:
    params = {name: value * scale for name, value in some_params(seed, policy).items()}
    return put_params(database, store, policy, params, ttl_s)


def put_params(
    database: Database, store: ArtefactStore, policy: Policy, params: Params, ttl_s: float | None = 60
) -> str:
    sha256, size_bytes = store.put(save_params(params))
    expires_at = None if ttl_s is None else now() + timedelta(seconds=ttl_s)
    with database.transaction() as session:
        row = tables.Policy(spec=policy_to_json(policy), sha256=sha256, size_bytes=size_bytes, expires_at=expires_at)
        session.add(row)
        session.flush()
        return row.id


def store_policy(
    app: FastAPI, seed: int = 0, ttl_s: float | None = 60, policy: Policy = POLICY, scale: float = 1.0
) -> str:
    return put_policy(app.state.database, app.state.store, seed, ttl_s, policy, scale)


def store_params(app: FastAPI, policy: Policy, params: Params) -> str:
    return put_params(app.state.database, app.state.store, policy, params)


def revise(database: Database, store: ArtefactStore, policy_id: str, seed: int) -> None:
    """Give a policy other parameters, as another process would."""
    sha256, size_bytes = store.put(save_params(some_params(seed)))
    with database.transaction() as session:
        row = session.get(tables.Policy, policy_id)
        row.sha256, row.size_bytes = sha256, size_bytes


def delete(database: Database, policy_id: str) -> None:
    with database.transaction() as session:
        session.get(tables.Policy, policy_id).deleted_at = now()


def store_version(app: FastAPI) -> None:
    manifest, parameters = pack(MAMLConfig(), POLICY, some_params(), {})
    store: ArtefactStore = app.state.store
    files = {MANIFEST_FILE: store.put(manifest), PARAMETERS_FILE: store.put(parameters)}
    with app.state.database.transaction() as session:
        publish_version(session, "cartpole", json.loads(manifest), files, None)


def act_binary(client: Client, policy: str, rows: np.ndarray, query: str = "", **headers: str) -> Response:
    shape = ",".join(map(str, rows.shape))
    headers = {"content-type": "application/octet-stream", "headstart-shape": shape} | headers
    return client.post(f"/v1/policies/{policy}:act{query}", content=rows.astype("<f4").tobytes(), headers=headers)
