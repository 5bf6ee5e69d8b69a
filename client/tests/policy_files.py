"""Policies small enough to work out by hand, as the files that the service makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

DISCRETE: Mapping[str, Any] = {
    "policy": {"hidden": [2], "activation": "relu"},
    "observation_space": {"type": "box", "low": [None, None], "high": [None, None]},
    "action_space": {"type": "discrete", "n": 2},
}
"""Features are the positive parts of the observation; each is the logit of one action, and their sum the value."""

DISCRETE_TENSORS: Mapping[str, Any] = {
    "trunk.0.weight": [[1, 0], [0, 1]],
    "trunk.0.bias": [0, 0],
    "policy.weight": [[1, 0], [0, 1]],
    "policy.bias": [0, 0],
    "value.weight": [[1], [1]],
    "value.bias": [0.5],
}

CONTINUOUS: Mapping[str, Any] = {
    "policy": {"hidden": [2], "activation": "relu"},
    "observation_space": DISCRETE["observation_space"],
    "action_space": {"type": "box", "low": [10.0], "high": [14.0]},
}
"""The mean is the difference of the positive parts of the observation, its standard deviation 1."""

CONTINUOUS_TENSORS: Mapping[str, Any] = {
    **DISCRETE_TENSORS,
    "policy.weight": [[1], [-1]],
    "policy.bias": [0],
    "log_std": [0],
}


def packed(tensors: Mapping[str, Any], about: Mapping[str, str] | None = None) -> bytes:
    """Tensors, and texts beside them, as safetensors; numbers become float32."""
    header: dict[str, Any] = {} if about is None else {"__metadata__": about}
    content = b""
    for name, value in tensors.items():
        array = np.array(value, "<f4")
        offsets = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}
        content += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def policy_file(
    spec: Mapping[str, Any] = DISCRETE, tensors: Mapping[str, Any] = DISCRETE_TENSORS, **about: str
) -> bytes:
    """The file of a policy, with the digest that belongs there."""
    content = b"".join(np.array(value, "<f4").tobytes() for value in tensors.values())
    text = json.dumps(spec)
    digest = hashlib.sha256(text.encode() + content).hexdigest()
    return packed(tensors, {"format": "headstart-policy-1", "policy": text, "sha256": digest, **about})
