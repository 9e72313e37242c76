"""Random numbers as a pure function of (seed, purpose, step, image index).

Nothing here keeps state, so nothing has to be stored for an exact resume, and neither the number of workers nor
the batch an image happens to sit in changes what is drawn for it. The generator is SplitMix64 (Steele, Lea &
Flood 2014) used in counter mode: every key and every counter value is mixed through its finaliser.
"""

import contextlib
import random
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of 64-bit words; overflow wraps on purpose."""
    with np.errstate(over="ignore"):
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniforms(
    seed: int, purpose: str, step: int, indices: Int64[np.ndarray, " b"], count: int
) -> Float[np.ndarray, "b {count}"]:
    """Draw `count` float64 numbers in [0, 1) for each image index.

    `purpose` names the stream ("crop", "mask", ...): streams with different names are independent.
    """
    key = np.array([seed], dtype=np.int64).view(np.uint64)
    for word in (zlib.crc32(purpose.encode()), step):
        key = _mix(key ^ _mix(np.array([word], dtype=np.int64).view(np.uint64)))
    rows = _mix(key ^ _mix(np.asarray(indices, dtype=np.int64).view(np.uint64)))
    cells = _mix(rows[:, None] ^ _mix(np.arange(count, dtype=np.uint64))[None, :])
    return (cells >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(seed: int, purpose: str, number: int) -> int:
    """The seed of one of several independent draws; that of number 0 is the seed itself."""
    return int(uniforms(seed, purpose, number, np.zeros(1, dtype=np.int64), 1)[0, 0] * 2.0**53) if number else seed


def permutation(seed: int, purpose: str, epoch: int, count: int) -> Int64[np.ndarray, " {count}"]:
    """A random order of 0..count-1 that depends on nothing but its arguments."""
    keys = uniforms(seed, purpose, epoch, np.arange(count), 1)[:, 0]
    return np.argsort(keys, kind="stable")


@contextlib.contextmanager
def seeded(seed: int, purpose: str, step: int, index: int) -> Iterator[None]:
    """For libraries that draw from the global generators of Python, numpy and torch (CPU): seeded inside the block as a
    pure function of the arguments, and left afterwards as they were before."""
    import torch

    word = int(uniforms(seed, purpose, step, np.array([index]), 1)[0, 0] * 2**32)
    python, state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(word)
    np.random.seed(word)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(word)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(state)  # noqa: NPY002
