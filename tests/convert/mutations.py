"""Damaged copies of a file, for the fuzz tests: truncated, bits flipped, bytes lost, added or overwritten."""

import numpy as np


def truncate(data, rng):
    return data[: rng.integers(len(data))], 0


def flip_bits(data, rng):
    count = int(rng.integers(1, 9))
    damaged = bytearray(data)
    for position in rng.integers(len(data), size=count):
        damaged[position] ^= 1 << int(rng.integers(8))
    return bytes(damaged), count


def flip_bits_in_head(data, rng):
    """Where headers are: the first and last 4 KB."""
    damaged, near = bytearray(data), min(4096, len(data))
    position = int(rng.integers(near))
    position = position if rng.integers(2) else len(data) - 1 - position
    damaged[position] ^= 1 << int(rng.integers(8))
    return bytes(damaged), 1


def lose_bytes(data, rng):
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
    return data[:start] + data[start + length :], 0


def add_bytes(data, rng):
    start = int(rng.integers(len(data)))
    return data[:start] + rng.bytes(int(rng.integers(1, 200))) + data[start:], 0


def overwrite(data, rng):
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 100))
    damaged = bytearray(data)
    damaged[start : start + length] = rng.bytes(len(damaged[start : start + length]))
    return bytes(damaged), length


MUTATIONS = (truncate, flip_bits, flip_bits_in_head, lose_bytes, add_bytes, overwrite)


def mutations(data, count, seed):
    """``count`` damaged copies, each with how many numbers it may change at most without being noticed."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        mutate = MUTATIONS[number % len(MUTATIONS)]
        damaged, touched = mutate(data, rng)
        yield f"{mutate.__name__} {number}", damaged, touched
