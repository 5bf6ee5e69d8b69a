"""Random numbers that are a function of a key, never of what was drawn before.

A key is an int64; a tensor of keys is a tensor of independent streams. Work that is keyed by (seed, iteration, task,
episode, step) gives the same numbers however tasks are sharded, batched or resumed, on any device.

Source: SplitMix64, Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(z: Tensor) -> Tensor:
    # torch shifts int64 arithmetically; the masks make the shifts logical.
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def key(*parts: int | str, device: torch.device | str | None = None) -> Tensor:
    """A scalar key from anything that names a piece of work: ``key(seed, "support", iteration)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.tensor(_signed(int.from_bytes(digest, "little")), dtype=torch.int64, device=device)


def fold_in(keys: Tensor, data: Tensor | int) -> Tensor:
    """Keys of a finer piece of work. ``keys`` and ``data`` broadcast: ``fold_in(task_keys[:, None], arange(B))``."""
    if isinstance(data, int):
        return _mix(keys + _signed((data + 1) * 0x9E3779B97F4A7C15))
    return _mix(keys + (data + 1) * _GOLDEN)


def uniform(keys: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in the open interval (0, 1), ``[*keys.shape, count]``; 24 bits each, 53 in float64."""
    bits = 53 if dtype == torch.float64 else 24
    counter = torch.arange(count, dtype=torch.int64, device=keys.device)
    z = fold_in(keys.unsqueeze(-1), counter)
    whole = (z >> (64 - bits)) & ((1 << bits) - 1)
    # The half keeps both ends out: log and the inverse normal stay finite.
    return ((whole.to(torch.float64) + 0.5) * 2.0**-bits).to(dtype).clamp(max=1.0 - 2.0**-bits)


def normal(keys: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, ``[*keys.shape, count]``, by the inverse of the cumulative distribution."""
    draws: Tensor = torch.special.ndtri(uniform(keys, count, dtype))
    return draws


def permutation(key_: Tensor, size: int) -> list[int]:
    """A random order of ``range(size)``."""
    draws = uniform(fold_in(key_, torch.arange(size, device=key_.device)), 1, torch.float64)
    return [int(i) for i in torch.argsort(draws[:, 0], stable=True)]
