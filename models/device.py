"""Where tensors live: the processor, or a graphics card where the machine has one."""

from __future__ import annotations

from typing import Literal

import torch

from models.types import InvalidValue

Device = Literal["auto", "cpu", "cuda"]
"""A choice of device; `auto` is `cuda` where there is one, else `cpu`."""


def resolve_device(device: Device) -> torch.device:
    """The device that a choice means on this machine.

    Raises:
        InvalidValue: If it is none of the choices, or `cuda` where torch finds no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidValue("/device", f"must be one of auto, cpu, cuda, not {str(device)[:40]!r}")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InvalidValue("/device", "torch finds no CUDA device on this machine; use 'cpu', or 'auto' to take either")
    return torch.device("cuda" if available and device != "cpu" else "cpu")
