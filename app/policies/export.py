"""Policies, and versions as policies, in files that stand by themselves: made of stored bytes when they are asked for.

Equal policies give equal bytes, so that what is made twice has one digest. Nothing of it is stored.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Session

from app.errors import Corrupt
from app.policies import service as policies
from app.registry import service as registry
from app.store import ArtefactStore
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, InvalidArtefact, save_policy, unpack
from models.export import to_onnx
from models.policy import Policy
from models.types import Params

ONNX_FILE: Final = "policy.onnx"
"""What a policy as an ONNX graph is called."""


def policy_onnx(session: Session, store: ArtefactStore, policy_id: str) -> bytes:
    """An adapted policy as an ONNX graph.

    Raises:
        NotFound: If it does not stand.
        Corrupt: If its bytes are not those that were stored.
    """
    policy = policies.get_policy(session, policy_id).policy
    return to_onnx(*policies.read_policy(store, policy_id, policy.spec, policy.sha256))


def version_onnx(session: Session, store: ArtefactStore, model: str, number: str) -> bytes:
    """The bare initialisation of a version as an ONNX graph.

    Raises:
        NotFound: If there is no such version.
        Corrupt: If its bytes are not those that were stored.
    """
    return to_onnx(*read_bare(session, store, model, number))


def version_policy(session: Session, store: ArtefactStore, model: str, number: str) -> bytes:
    """The bare initialisation of a version as the file of a policy.

    Raises:
        NotFound: If there is no such version.
        Corrupt: If its bytes are not those that were stored.
    """
    return save_policy(*read_bare(session, store, model, number))


def read_bare(session: Session, store: ArtefactStore, model: str, number: str) -> tuple[Policy, Params]:
    """The bare initialisation of a version: its architecture and tensors.

    Raises:
        NotFound: If there is no such version.
        Corrupt: If its bytes are not those that were stored.
    """
    files = [registry.get_file(session, model, number, name) for name in (MANIFEST_FILE, PARAMETERS_FILE)]
    try:
        artefact = unpack(*(store.read(file.sha256) for file in files))
    except InvalidArtefact as error:
        raise Corrupt(f"{model}/{number}: {error}") from error
    return artefact.policy, artefact.params
