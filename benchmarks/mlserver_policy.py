"""The policy of the benchmarks as a model of MLServer: read by `serving.py`'s peer, in an environment of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class PolicyModel(MLModel):  # type: ignore[misc]
    """The forward pass in NumPy, as short as it can be written."""

    async def load(self) -> bool:
        """Read the policy's file."""
        data = Path("policy.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8 : 8 + size])
        params = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                params[name] = np.frombuffer(data[start:end], "<f4").reshape(entry["shape"])
        self._trunk = [(params[f"trunk.{i}.weight"], params[f"trunk.{i}.bias"]) for i in range(2)]
        self._heads = np.concatenate([params["policy.weight"], params["value.weight"]], 1)
        self._bias = np.concatenate([params["policy.bias"], params["value.bias"]])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Actions, log-probabilities and values."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        for weight, bias in self._trunk:
            x = np.tanh(x @ weight + bias)
        out = x @ self._heads + self._bias
        logits, value = out[:, :-1], out[:, -1]
        log_probs = -np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
        outputs = {"action": logits.argmax(1), "log_prob": log_probs, "value": value}
        encoded = [NumpyCodec.encode_output(name, array) for name, array in outputs.items()]
        return InferenceResponse(model_name=self.name, outputs=encoded)
