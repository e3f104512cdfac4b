"""Random numbers that depend on what they are for, never on what was drawn before.

`uniform(seed, draw, index, purpose, n)` hashes its arguments (SplitMix64, Steele et al. 2014), so
the augmentation of clip i in draw d is the same whatever the batch, the worker or the resume point.
"""

from __future__ import annotations

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, draw: int, index: np.ndarray, purpose: str, n: int = 1) -> np.ndarray:
    """Uniform numbers in [0, 1).

    Args:
        seed, draw: integers of any sign.
        index: (B,) integers, one a clip.
        purpose: names what the numbers are for; different purposes are independent.
        n: numbers a clip.

    Returns:
        (B, n) float64.
    """
    key = np.zeros(1, np.uint64)
    for part in (seed, draw, zlib.crc32(purpose.encode())):
        key = _mix(key ^ np.array([part], np.int64).astype(np.uint64))
    rows = _mix(key ^ np.asarray(index).astype(np.int64).astype(np.uint64))
    bits = _mix(rows[:, None] + np.arange(n, dtype=np.uint64))
    return (bits >> np.uint64(11)) * 2.0**-53


def between(low: float, high: float, u: np.ndarray) -> np.ndarray:
    """Map uniform numbers in [0, 1) to [low, high)."""
    return low + (high - low) * u


def _mix(x: np.ndarray) -> np.ndarray:
    z = x + _GOLDEN  # arrays of integers wrap around without a warning
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
