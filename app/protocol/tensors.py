"""Tensors of the Open Inference Protocol: in JSON, or as binary data after it.

Source: the protocol's `inference_rest.md`, and Triton's extensions "binary tensor data" and "parameters".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.bodies import read_struct
from app.decisions import MAX_OBSERVATIONS, Number, Seed
from app.errors import BadRequest, Invalid, PayloadTooLarge
from app.validation import FieldError, pointer_to
from models.runtime import Architecture, Array, Decision

OBSERVATION = "observation"
"""The one input there is."""

DATATYPES = {
    "FP32": "<f4",
    "FP64": "<f8",
    "FP16": "<f2",
    "BF16": "<u2",
    **{f"{sign}INT{bits}": f"<{kind}{bits // 8}" for sign, kind in (("", "i"), ("U", "u")) for bits in (8, 16, 32, 64)},
}
"""Datatypes in which observations may come, and NumPy's for their bytes; NumPy has no bfloat16."""

_JSON, _BINARY = b"application/json", b"application/octet-stream"
_HEADER_LENGTH = b"inference-header-content-length"


_ROWS: dict[str, Any] = {
    "type": "array",
    "items": {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]},
}


class InputParameters(msgspec.Struct, forbid_unknown_fields=True):
    """How many bytes of the binary data are the tensor's; without it the tensor is in JSON."""

    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class InferInput(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor to infer from: `observation`, of shape [N, O]; `data` row by row, flat or nested."""

    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    parameters: InputParameters | None = None
    data: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=_ROWS)] | msgspec.UnsetType = msgspec.UNSET


class OutputParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the tensor is to come as binary data; null is as the request's `binary_data_output` says."""

    binary_data: bool | None = None


class InferRequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor that is asked for."""

    name: str
    parameters: OutputParameters | None = None


class InferParameters(msgspec.Struct, forbid_unknown_fields=True):
    """How to act: as of `:act`; and whether tensors are to come as binary data."""

    deterministic: bool = True
    seed: Seed | None = None
    revision: Annotated[int, msgspec.Meta(ge=0)] = 0
    binary_data_output: bool = False


class InferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Observations to act on; without `outputs` all there are are answered.

    `model_name` and `model_version`, which some clients repeat from the path, are not read.
    """

    inputs: list[InferInput]
    id: str | None = None
    parameters: InferParameters | None = None
    outputs: list[InferRequestedOutput] | None = None
    model_name: str | None = None
    model_version: str | None = None


class InferOutput(msgspec.Struct, omit_defaults=True):
    """A tensor: `data` row by row, flat; or `binary_data_size` of its `parameters` bytes of the binary data."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[int | float] | None = None


class InferResponse(msgspec.Struct, omit_defaults=True):
    """The tensors that were asked for, in that order, and the policy or version that they are of."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    id: str | None = None


_REQUEST = msgspec.json.Decoder(InferRequest)
_FLOATS, _NESTED_FLOATS = msgspec.json.Decoder(list[Number]), msgspec.json.Decoder(list[list[Number]])
_WHOLES, _NESTED_WHOLES = msgspec.json.Decoder(list[int]), msgspec.json.Decoder(list[list[int]])
_TO_JSON = msgspec.json.Encoder()


@dataclass(frozen=True)
class Question:
    """An inference request that was read.

    Attributes:
        observations: [N, O] finite float32; O may be another policy's.
        parameters: How to act.
        outputs: Those asked for; none: all.
        id: The client's.
    """

    observations: Array
    parameters: InferParameters
    outputs: Sequence[InferRequestedOutput]
    id: str | None


def read_question(body: bytes, header_length: bytes | None) -> Question:
    """Read a request's body.

    Args:
        body: JSON, and binary data after it if its length is given.
        header_length: The header `Inference-Header-Content-Length`: bytes that are JSON.

    Raises:
        BadRequest: If it is not JSON, or has fewer bytes than the header says.
        Invalid: If it can be read but not accepted.
        PayloadTooLarge: If it has more observations than one request may hold.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isdigit() and len(header_length) <= 18 and int(header_length) <= length):
            said = header_length.decode("latin-1")
            raise BadRequest(f"Inference-Header-Content-Length is {said}, but the body has {length} bytes")
        length = int(header_length)
    request = read_struct(_REQUEST, body[:length])
    observations = _read_observations(request.inputs, memoryview(body)[length:])
    return Question(observations, request.parameters or InferParameters(), request.outputs or (), request.id)


def outputs_of(architecture: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Datatype and shape, without N, of each tensor that such a policy answers with."""
    outputs = {"action": ("INT64" if architecture.discrete else "FP32", architecture.action_shape)}
    outputs |= {"log_prob": ("FP32", ()), "value": ("FP32", ())}
    return outputs if architecture.discrete else outputs | {"policy_action": ("FP32", architecture.action_shape)}


def require_outputs(architecture: Architecture, asked: Sequence[InferRequestedOutput]) -> None:
    """Refuse to answer with what such a policy has not.

    Raises:
        Invalid: At the first output that is unknown or asked for twice.
    """
    known = outputs_of(architecture)
    names = [output.name for output in asked]
    for index, name in enumerate(names):
        if name not in known:
            raise Invalid(pointer_to("outputs", index, "name"), f"unknown output; known: {', '.join(known)}")
        if name in names[:index]:
            raise Invalid(pointer_to("outputs", index, "name"), "is asked for twice")


def write_answer(
    question: Question, decision: Decision, architecture: Architecture, name: str, version: str
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The answer to a question whose outputs there are: its body and its headers."""
    known = outputs_of(architecture)
    tensors: Mapping[str, NDArray[Any]] = dict(
        zip(("action", "log_prob", "value", "policy_action"), decision, strict=True)
    )
    outputs, parts = [], []
    for asked in question.outputs or [InferRequestedOutput(name) for name in known]:
        datatype, _ = known[asked.name]
        tensor = np.ascontiguousarray(tensors[asked.name], DATATYPES.get(datatype))
        output = InferOutput(asked.name, datatype, list(tensor.shape))
        binary = None if asked.parameters is None else asked.parameters.binary_data
        if question.parameters.binary_data_output if binary is None else binary:
            parts.append(tensor.tobytes())
            output.parameters = {"binary_data_size": len(parts[-1])}
        else:
            output.data = tensor.ravel().tolist()
        outputs.append(output)
    content = _TO_JSON.encode(InferResponse(name, version, outputs, question.id))
    if not parts:
        return content, [(b"content-type", _JSON)]
    headers = [(b"content-type", _BINARY), (_HEADER_LENGTH, b"%d" % len(content))]
    return b"".join([content, *parts]), headers


def _read_observations(inputs: Sequence[InferInput], binary: memoryview) -> Array:
    for index, tensor in enumerate(inputs):
        if tensor.name != OBSERVATION:
            raise Invalid(pointer_to("inputs", index, "name"), f"unknown input; known: {OBSERVATION}")
        if index:
            raise Invalid(pointer_to("inputs", index), f"{OBSERVATION} comes twice")
    if not inputs:
        raise Invalid("/inputs", f"the input {OBSERVATION} is missing")
    tensor = inputs[0]
    if tensor.datatype not in DATATYPES:
        raise Invalid("/inputs/0/datatype", f"must be one of {', '.join(DATATYPES)}, not {tensor.datatype}")
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise Invalid("/inputs/0/shape", f"must be [observations, numbers of each], both above 0, not {tensor.shape}")
    if tensor.shape[0] > MAX_OBSERVATIONS:
        raise PayloadTooLarge(f"one request may hold {MAX_OBSERVATIONS} observations, not more")
    size = None if tensor.parameters is None else tensor.parameters.binary_data_size
    values = _from_json(tensor) if size is None else _from_binary(tensor, size, binary)
    if size is None and len(binary):
        raise Invalid("/inputs/0/parameters", f"{len(binary)} bytes follow the JSON, but no input has binary_data_size")
    with np.errstate(over="ignore"):
        observations: Array = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(observations).all(1))
    if len(bad):
        raise Invalid("/inputs/0", f"observation {bad[0]} must hold finite numbers within {tensor.datatype} and FP32")
    return observations


def _from_binary(tensor: InferInput, size: int, binary: memoryview) -> NDArray[Any]:
    dtype = np.dtype(DATATYPES[tensor.datatype])
    expected = math.prod(tensor.shape) * dtype.itemsize
    if tensor.data is not msgspec.UNSET:
        raise Invalid("/inputs/0/data", "goes without binary_data_size")
    if size != expected:
        detail = f"is {size}, but shape {tensor.shape} of {tensor.datatype} is {expected} bytes"
        raise Invalid("/inputs/0/parameters/binary_data_size", detail)
    if size != len(binary):
        detail = f"is {size}, but {len(binary)} bytes follow the JSON (its length: Inference-Header-Content-Length)"
        raise Invalid("/inputs/0/parameters/binary_data_size", detail)
    values = np.frombuffer(binary, dtype).reshape(tensor.shape)
    if tensor.datatype == "BF16":
        # The upper half of a float32.
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _from_json(tensor: InferInput) -> NDArray[Any]:
    datatype = tensor.datatype
    if isinstance(tensor.data, msgspec.UnsetType):
        raise Invalid("/inputs/0/data", "required, or binary_data_size")
    if datatype == "BF16":
        raise Invalid("/inputs/0/datatype", "BF16 comes as binary data only")
    raw = bytes(tensor.data)
    nested = re.match(rb"\[\s*\[", raw) is not None
    floats, wholes = (_NESTED_FLOATS, _NESTED_WHOLES) if nested else (_FLOATS, _WHOLES)
    try:
        numbers: list[Any] = read_struct(wholes if "INT" in datatype else floats, raw)
    except Invalid as error:
        raise Invalid.all_of(
            [FieldError(f"/inputs/0/data{each.pointer}", each.detail) for each in error.errors]
        ) from error
    rows, columns = tensor.shape
    lengths = [len(numbers), *(len(row) for row in numbers)] if nested else [len(numbers)]
    if lengths != ([rows] + rows * [columns] if nested else [rows * columns]):
        raise Invalid("/inputs/0/data", f"must hold as many numbers as shape {tensor.shape} says")
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, DATATYPES[datatype]).reshape(rows, columns)
    except OverflowError as error:
        raise Invalid("/inputs/0/data", f"must hold numbers within {datatype}") from error
