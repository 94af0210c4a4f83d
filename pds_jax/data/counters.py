"""Randomness by counter: numbers that are a function of (seed, stream, index) alone, whatever was drawn before."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _hash(seed: int, stream: int, indices: np.ndarray) -> np.ndarray:
    """64 well-mixed bits per index: the SplitMix64 finaliser (Steele, Lea, Flood 2014) of seed, stream and index."""
    with np.errstate(over="ignore"):
        state = np.uint64(seed & 0xFFFFFFFF) * np.uint64(0xD1342543DE82EF95) + np.uint64(stream)
        bits = _mix(indices.astype(np.uint64) * _GOLDEN + _mix(np.asarray(state) + _GOLDEN))
    return bits


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def uniform(seed: int, stream: int, indices: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), one per index."""
    return (_hash(seed, stream, indices) >> np.uint64(11)) * (1.0 / (1 << 53))


def below(seed: int, stream: int, indices: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Whole numbers in [0, bound), one per index."""
    return (uniform(seed, stream, indices) * bound).astype(np.int64)
