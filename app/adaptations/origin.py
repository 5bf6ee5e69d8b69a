"""What adaptations start from: a version, a policy that came of one or of none, or a new policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from gymnasium.spaces import Box, Discrete
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.policies.service import learner_of
from app.store import ArtefactStore
from app.tables import Policy, Version, VersionFile
from models.checkpoint import MANIFEST_FILE, PARAMETERS_FILE, check_params, from_json, load_params, unpack
from models.learners import MAML, Learner, MAMLConfig
from models.policy import Policy as Network
from models.policy import PolicyConfig
from models.types import Params, stack_params


class Spaces(Protocol):
    """What a new policy is to act in: an environment's model, or a remote task."""

    @property
    def observation_space(self) -> Box:
        """Of what it sees."""

    @property
    def action_space(self) -> Box | Discrete[Any]:
        """Of what it does."""


@dataclass(frozen=True)
class Origin:
    """What is written down of it.

    Attributes:
        architecture: Of a new policy, where there is neither version nor policy.
        files: Digests of the version's files.
        policy: Digest of the policy's parameters, with the learner that adapts it further.
    """

    architecture: Mapping[str, Any]
    files: Mapping[str, str]
    policy: tuple[str, Learner[Any]] | None

    def build(self, store: ArtefactStore, spaces: Spaces, seeds: Sequence[int]) -> tuple[Learner[Any], Params]:
        """The learner, and a policy to start from for each seed, [N, ...].

        Raises:
            Corrupt: If an artefact's bytes are not those that were stored.
            InvalidArtefact: If they do not fit together.
        """
        params: Params = {}
        if self.files:
            artefact = unpack(store.read(self.files[MANIFEST_FILE]), store.read(self.files[PARAMETERS_FILE]))
            learner, params = artefact.build(), artefact.params
        if self.policy is not None:
            sha256, learner = self.policy
            # What a version has learned beside its policy, such as inner rates, goes on.
            params = params | check_params(learner.policy.shapes(), load_params(store.read(sha256)))
        if params:
            return learner, stack_params(params, len(seeds))
        learner = learner_from_scratch(from_json(PolicyConfig, self.architecture), spaces)
        new = [learner.initialise(seed).params for seed in seeds]
        return learner, {name: torch.stack([each[name] for each in new]) for name in new[0]}


def learner_from_scratch(config: PolicyConfig, spaces: Spaces) -> Learner[Any]:
    """What adapts a new policy of this architecture: MAML's inner loop, as it is by default.

    Raises:
        InvalidValue: At ``/policy/...``, if the architecture does not fit the spaces or the inner loop.
    """
    return MAML(MAMLConfig(), Network(config, spaces.observation_space, spaces.action_space))


def read_origin(
    session: Session,
    model: str | None,
    version: int | None,
    policy_id: str | None,
    architecture: Mapping[str, Any] | None = None,
) -> Origin:
    """What adaptations start from.

    Args:
        session: Where to read.
        model: Name of the model, where it is a version or a policy that comes from one.
        version: Number of the version.
        policy_id: The policy, where it is one.
        architecture: Of a new policy, where it is that.

    Raises:
        NotFound: If it was a policy which is no more.
    """
    statement = (
        select(VersionFile.name, VersionFile.sha256)
        .join(Version, Version.id == VersionFile.version_id)
        .where(Version.model == model, Version.number == version)
    )
    files = {name: sha256 for name, sha256 in session.execute(statement)}
    if policy_id is None:
        return Origin(architecture or {}, files, None)
    policy = session.get(Policy, policy_id)
    if policy is None:
        raise NotFound(f"there is no policy {policy_id!r}")
    return Origin({}, files, (policy.sha256, learner_of(session, policy)))
