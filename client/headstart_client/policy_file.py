"""Reading ``policy.safetensors``: a header that says what policy it is, then its tensors."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart_client.errors import HeadstartError

FORMAT = "headstart-policy-1"
"""The only format that this client reads."""

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]

# Every member of an architecture, with its default. One that is not here may change what the policy does.
_ARCHITECTURE: dict[str, Any] = {
    "hidden": (64, 32),
    "activation": "tanh",
    "action_scaling": "scale",
    "initial_log_std": 0.0,
    "log_std": "free",
    "normalise_observations": False,
    "context_size": 0,
    "layer_norm": False,
    "initialisation": "glorot",
}
_CHOICES = {
    "activation": ("tanh", "relu", "gelu"),
    "action_scaling": ("scale", "clip", "squash"),
    "log_std": ("free", "state"),
}


class InvalidPolicyFile(HeadstartError, ValueError):
    """Bytes that are not a policy, are damaged, or are of a format that this client does not know."""


class Architecture:
    """What a policy's description says.

    Args:
        spec: The description.

    Attributes:
        spec: The description itself: ``policy``, ``observation_space``, ``action_space``.
        config: Every member of ``policy``, defaults filled in.
        observation_size: O.
        discrete: Whether actions are ids 0..A-1.
        action_size: A.
        bounds: Least and greatest continuous action, each [A]; ``None`` where actions are discrete.
        shapes: Name and shape of every tensor.

    Raises:
        InvalidPolicyFile: If the description makes no sense, or has what this client does not know.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        try:
            self.spec = spec
            self.config: dict[str, Any] = _ARCHITECTURE | dict(spec["policy"])
            self.observation_size = len(spec["observation_space"]["low"])
            self.discrete = _one_of("action_space", spec["action_space"]["type"], ("discrete", "box")) == "discrete"
            clipped = self.config["action_scaling"] == "clip"
            self.bounds = None if self.discrete else _bounds(spec["action_space"], clipped)
            self.action_size = int(spec["action_space"]["n"]) if self.bounds is None else len(self.bounds[0])
            if unknown := set(self.config) - set(_ARCHITECTURE):
                raise InvalidPolicyFile(f"a newer headstart-client is needed: unknown {', '.join(sorted(unknown))}")
            for member, known in _CHOICES.items():
                _one_of(member, self.config[member], known)
            self.shapes = self._shapes([int(units) for units in self.config["hidden"]])
        except InvalidPolicyFile:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise InvalidPolicyFile(f"the policy's description makes no sense: {error!r}") from error

    def _shapes(self, hidden: list[int]) -> dict[str, tuple[int, ...]]:
        config = self.config
        shapes: dict[str, tuple[int, ...]] = {}
        if config["normalise_observations"]:
            shapes["observation.count"] = (1,)
            shapes["observation.mean"] = shapes["observation.variance"] = (self.observation_size,)
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise([self.observation_size, *hidden])):
            shapes[f"trunk.{i}.weight"], shapes[f"trunk.{i}.bias"] = (fan_in, fan_out), (fan_out,)
            if config["layer_norm"]:
                shapes[f"trunk.{i}.scale"] = shapes[f"trunk.{i}.shift"] = (fan_out,)
        if config["context_size"]:
            shapes["context"] = (config["context_size"],)
            shapes["trunk.0.context"] = (config["context_size"], hidden[0])
        head_size = self.action_size * (2 if config["log_std"] == "state" else 1)
        for head, size in (("policy", head_size), ("value", 1)):
            shapes[f"{head}.weight"], shapes[f"{head}.bias"] = (hidden[-1], size), (size,)
        if not self.discrete and config["log_std"] == "free":
            shapes["log_std"] = (self.action_size,)
        return shapes


def read_policy(data: bytes, spec: Mapping[str, Any] | None = None) -> tuple[Architecture, Tensors]:
    """The policy in the bytes of a ``policy.safetensors``.

    Args:
        data: The whole file.
        spec: The description of a policy whose file has none.

    Raises:
        InvalidPolicyFile: If they are not such a file, or not as they were written.
    """
    header, buffer = _split(data)
    about = header.pop("__metadata__", {})
    tensors = _tensors(header, buffer)
    if "policy" in about:
        spec = _described(about, buffer)
    elif spec is None:
        raise InvalidPolicyFile(
            "the file holds tensors but does not say what policy they are: an older service made it. Give its "
            "description, LocalPolicy.load(path, spec=client.policies.get(ID).raw), or use its policy.onnx"
        )
    architecture = Architecture(spec)
    found, wanted = {name: tensor.shape for name, tensor in tensors.items()}, architecture.shapes
    for name in sorted(found.keys() | wanted):
        if found.get(name) != wanted.get(name):
            shapes = [shape.get(name, "none") for shape in (found, wanted)]
            raise InvalidPolicyFile("the tensor {} is {} where there should be {}".format(name, *shapes))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InvalidPolicyFile(f"the tensor {name} holds a NaN or an infinity")
    return architecture, tensors


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and tensors' bytes."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise InvalidPolicyFile("not a safetensors file, or not all of it")
    header = _json(data[8 : 8 + length], "not a safetensors file: its header is")
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise InvalidPolicyFile("not a safetensors file: its header is no object of objects")
    return header, memoryview(data)[8 + length :]


def _tensors(header: Mapping[str, Any], buffer: memoryview) -> dict[str, Array]:
    tensors, end = {}, 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
            if entry["dtype"] != "F32":
                raise InvalidPolicyFile(f"the tensor {name} is of type {entry['dtype']}; this client reads F32")
            if start != end or stop - start != 4 * math.prod(shape) or stop > len(buffer):
                raise InvalidPolicyFile(f"the file is damaged: the tensor {name} is not where it should be")
            # A copy, in this machine's byte order and as it likes it aligned.
            tensors[name] = np.frombuffer(buffer[start:stop], "<f4").reshape(shape).astype(np.float32)
            end = stop
    except InvalidPolicyFile:
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InvalidPolicyFile(f"not a safetensors file: {error!r}") from error
    if end != len(buffer):
        raise InvalidPolicyFile("the file is damaged: it has bytes that belong to no tensor")
    return tensors


def _described(about: Mapping[str, Any], buffer: memoryview) -> Mapping[str, Any]:
    """The description in the header, if header and tensors are as they were written."""
    if about.get("format") != FORMAT:
        raise InvalidPolicyFile(f"the format {about.get('format')!r} is unknown; this client reads {FORMAT!r}")
    text = str(about["policy"]).encode(errors="surrogatepass")
    digest = hashlib.sha256(text)
    digest.update(buffer)
    if digest.hexdigest() != about.get("sha256"):
        raise InvalidPolicyFile("the file is damaged: its digest is not the one that was written into it")
    spec: Mapping[str, Any] = _json(text, "the policy's description is")
    return spec


def _json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPolicyFile(f"{what} not JSON: {error}") from error


def _bounds(space: Mapping[str, Any], clipped: bool) -> tuple[Array, Array]:
    low = np.array([-np.inf if bound is None else bound for bound in space["low"]], np.float32)
    high = np.array([np.inf if bound is None else bound for bound in space["high"]], np.float32)
    if low.ndim != 1 or low.shape != high.shape or not (low <= high).all():
        raise ValueError(f"actions lie between {low} and {high}")
    if not (clipped or np.isfinite([low, high]).all()):
        raise ValueError("actions without bounds cannot be scaled")
    return low, high


def _one_of(member: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InvalidPolicyFile(f"a newer headstart-client is needed: unknown {member} {value!r}")
    return str(value)
