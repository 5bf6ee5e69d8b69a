"""Artefacts: tensors as safetensors, everything else as a JSON manifest with digests. Never pickle."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import safetensors
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from models.learners import CONFIGS, LEARNERS, Learner, LearnerConfig
from models.learners.base import LearnerState
from models.optimiser import AdamState
from models.policy import Policy, PolicyConfig
from models.training import Best, TrainingState
from models.types import Params, all_finite, canonical_json

FORMAT = 1
"""Number of the manifest format; a reader refuses any other."""

POLICY_FORMAT = "headstart-policy-1"
"""Name and number of the format of a policy's file; a reader refuses any other."""

PARAMETERS_FILE = "parameters.safetensors"
MANIFEST_FILE = "manifest.json"

Config = TypeVar("Config")


class InvalidArtefact(ValueError):
    """Bytes that are not what their manifest says."""


@dataclass(frozen=True)
class Artefact:
    """A loaded version: a learner's config, a policy architecture and one policy's parameters."""

    manifest: Mapping[str, Any]
    learner: LearnerConfig
    policy: Policy
    params: Params

    def build(self) -> Learner[Any]:
        """The learner that can adapt these parameters."""
        return LEARNERS[self.learner.name](self.learner, self.policy)


@functools.cache
def code_version() -> str:
    """The distribution's version and a digest of the core's source: equal strings compute equal numbers."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{importlib.metadata.version('headstart')}+core.{digest.hexdigest()[:12]}"


def save_params(params: Params, metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as safetensors bytes; equal tensors give equal bytes."""
    tensors = {name: params[name].detach().cpu().contiguous() for name in sorted(params)}
    return save_safetensors(tensors, dict(metadata) if metadata else None)


def load_params(data: bytes) -> Params:
    """Tensors of safetensors bytes.

    Raises:
        InvalidArtefact: If the bytes are not safetensors.
    """
    try:
        return load_safetensors(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InvalidArtefact(f"not a safetensors file: {error}") from error


def metadata_of(data: bytes) -> dict[str, str]:
    """What :func:`save_params` was given beside the tensors; empty where that was nothing.

    Raises:
        InvalidArtefact: If the bytes are not safetensors.
    """
    try:
        header, _ = _split(data)
    except ValueError as error:
        raise InvalidArtefact(f"not a safetensors file: {error}") from error
    return dict(header.get("__metadata__", {}))


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of safetensors bytes.

    Raises:
        ValueError: If the header is not JSON.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def to_json(config: object) -> dict[str, Any]:
    """A config dataclass as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload, no-any-return]


def from_json(config_class: type[Config], data: Mapping[str, Any]) -> Config:
    """A flat config dataclass from JSON values.

    Raises:
        InvalidArtefact: If a member is unknown.
    """
    known = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    if unknown := set(data) - known:
        raise InvalidArtefact(f"unknown members of {config_class.__name__}: {', '.join(sorted(unknown))}")
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def space_to_json(space: Box | Discrete[Any]) -> dict[str, Any]:
    """A space as ``{"type": "discrete", "n"}`` or ``{"type": "box", "low", "high"}``; an infinite bound is null."""
    if isinstance(space, Discrete):
        return {"type": "discrete", "n": int(space.n)}
    bounds = {"low": space.low, "high": space.high}
    return {"type": "box"} | {
        name: [float(x) if np.isfinite(x) else None for x in bound] for name, bound in bounds.items()
    }


def space_from_json(data: Mapping[str, Any]) -> Box | Discrete[Any]:
    """The inverse of :func:`space_to_json`."""
    if data["type"] == "discrete":
        return Discrete(int(data["n"]))
    low = np.array([-np.inf if x is None else x for x in data["low"]], np.float32)
    high = np.array([np.inf if x is None else x for x in data["high"]], np.float32)
    return Box(low, high)


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """Architecture and spaces: with the tensors, all that is needed to act."""
    return {
        "policy": to_json(policy.config),
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
    }


def save_policy(policy: Policy, params: Params) -> bytes:
    """One policy as safetensors bytes that say what policy it is; the same policy gives the same bytes.

    The header's ``__metadata__`` has ``format`` (:data:`POLICY_FORMAT`), ``policy`` (the canonical JSON of
    :func:`policy_to_json`) and ``sha256``, of that text and then the tensors' bytes, so that a reader sees damage.

    Args:
        policy: The architecture.
        params: One policy's tensors; others, such as a learner's rates, are left out.
    """
    plain = save_params({name: params[name].float() for name in policy.shapes()})
    header, tensors = _split(plain)
    spec = canonical_json(policy_to_json(policy))
    digest = hashlib.sha256(spec.encode() + tensors).hexdigest()
    header["__metadata__"] = {"format": POLICY_FORMAT, "policy": spec, "sha256": digest}
    # The library writes metadata in an order that changes from call to call.
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tensors


def policy_from_json(data: Mapping[str, Any]) -> Policy:
    """The inverse of :func:`policy_to_json`."""
    observation_space = space_from_json(data["observation_space"])
    if not isinstance(observation_space, Box):
        raise InvalidArtefact("observation_space must be a box")
    return Policy(from_json(PolicyConfig, data["policy"]), observation_space, space_from_json(data["action_space"]))


def pack(learner: LearnerConfig, policy: Policy, params: Params, about: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A version's two files.

    Args:
        learner: The learner's config.
        policy: The architecture.
        params: The initialisation.
        about: Further members of the manifest: run, seed, environment, tasks, metrics, ...

    Returns:
        ``manifest.json`` and ``parameters.safetensors``; the manifest holds the digest of the parameters.
    """
    parameters = save_params(params)
    manifest = {
        "format": FORMAT,
        "learner": to_json(learner),
        **policy_to_json(policy),
        "code_version": code_version(),
        **about,
        "files": {
            PARAMETERS_FILE: {
                "sha256": hashlib.sha256(parameters).hexdigest(),
                "size_bytes": len(parameters),
                "shapes": {name: list(value.shape) for name, value in sorted(params.items())},
            }
        },
    }
    return canonical_json(manifest).encode(), parameters


def learner_from_json(manifest: Mapping[str, Any]) -> Learner[Any]:
    """The learner that can adapt a version, from the version's manifest."""
    learner = from_json(CONFIGS[manifest["learner"]["name"]], manifest["learner"])
    return LEARNERS[learner.name](learner, policy_from_json(manifest))


def unpack(manifest: bytes, parameters: bytes) -> Artefact:
    """Read a version's two files.

    Raises:
        InvalidArtefact: On a wrong digest, an unknown format number, a shape that disagrees, a number that is not
            finite, or anything else that the manifest and the tensors do not agree on.
    """
    try:
        data = json.loads(manifest)
        if data.get("format") != FORMAT:
            raise InvalidArtefact(f"format {data.get('format')!r} is unknown; this reader knows {FORMAT}")
        entry = data["files"][PARAMETERS_FILE]
        digest = hashlib.sha256(parameters).hexdigest()
        if entry["sha256"] != digest:
            raise InvalidArtefact(f"{PARAMETERS_FILE} has sha256 {digest}, the manifest says {entry['sha256']}")
        learner = learner_from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidArtefact):
            raise
        raise InvalidArtefact(f"the manifest is malformed: {error!r}") from error
    return Artefact(data, learner.config, learner.policy, check_params(learner.shapes(), load_params(parameters)))


def check_params(shapes: Mapping[str, tuple[int, ...]], params: Params) -> Params:
    """The tensors, if they are of these names and shapes.

    Raises:
        InvalidArtefact: On a missing, surplus or misshapen tensor, or one that is not finite.
    """
    if set(shapes) != set(params):
        raise InvalidArtefact(f"tensors {sorted(params)} where there should be {sorted(shapes)}")
    for name, shape in shapes.items():
        if tuple(params[name].shape) != shape:
            raise InvalidArtefact(f"{name} is {tuple(params[name].shape)}, but should be {shape}")
    if not all_finite(params):
        raise InvalidArtefact("a parameter is NaN or infinite")
    return params


def save_state(state: TrainingState) -> bytes:
    """A training state as one safetensors file; counters travel in its header."""
    adam, best = state.learner.optimiser, state.best
    groups = {"params": state.learner.params, "mean": adam.mean, "square": adam.square, "memory": state.learner.memory}
    # safetensors refuses tensors that share memory, as the best's do while it is the newest.
    groups |= {"best": {name: value.clone() for name, value in best.params.items()}} if best else {}
    tensors = {f"{group}/{name}": value for group, params in groups.items() for name, value in params.items()}
    tensors["history"] = torch.tensor(state.history, dtype=torch.float64)
    tensors["gaps"] = torch.tensor(state.gaps, dtype=torch.float64)
    counters = {
        "iterations": state.iterations,
        "environment_steps": state.environment_steps,
        "seconds": state.seconds,
        "optimiser_step": adam.step,
        "best": None if best is None else {"iteration": best.iteration, "metrics": best.metrics},
        "code_version": code_version(),
    }
    return save_params(tensors, {"headstart": json.dumps(counters)})


def load_state(data: bytes) -> TrainingState:
    """The inverse of :func:`save_state`.

    Raises:
        InvalidArtefact: If the bytes are not a training state.
    """
    tensors = load_params(data)
    try:
        counters = json.loads(metadata_of(data)["headstart"])

        def group(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        adam = AdamState(counters["optimiser_step"], group("mean/"), group("square/"))
        # A checkpoint of an earlier version has neither a best nor gaps.
        best, gaps = counters.get("best"), tensors.get("gaps")
        return TrainingState(
            LearnerState(group("params/"), adam, group("memory/")),
            counters["iterations"],
            counters["environment_steps"],
            counters["seconds"],
            tuple(tensors["history"].tolist()),
            () if gaps is None else tuple(gaps.tolist()),
            None if best is None else Best(group("best/"), best["iteration"], best["metrics"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArtefact(f"not a training state: {error!r}") from error


def numpy_params(params: Params) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """One policy's tensors as float32 arrays, for :class:`models.runtime.NumpyPolicy`."""
    return {name: value.detach().cpu().float().numpy() for name, value in params.items()}
