"""JAX's Threefry generator with its twenty rounds written out; the same bits, without the loop.

On a CPU, JAX compiles Threefry as a loop of five iterations, and every iteration of a loop inside a compiled program
costs microseconds: a jitted decision of a small policy takes 130 µs with it and 20 without, a compiled rollout is a
third slower. Written out, the rounds fuse with what uses the numbers. Keys are ordinary typed keys; only their
implementation differs, and tests hold it to the bits of ``jax.random``.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Threefry-2x32, 20 rounds).
"""

from __future__ import annotations

import functools
from typing import Any

from etils import epy

with epy.lazy_imports():
    import jax
    import jax.extend.random
    import jax.numpy as jnp

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def key(seed: int) -> jax.Array:
    """A typed key; ``jax.random.key(seed)`` with this implementation."""
    return jax.random.key(seed, impl=implementation())


def wrap(data: Any) -> jax.Array:
    """A typed key from its two words, ``[2]`` u32."""
    return jax.random.wrap_key_data(data, impl=implementation())


def counted(words: Any) -> jax.Array:
    """The n-th key of a stream from three words, ``[3]`` u32: two of key and the count n.

    Plain words enter a compiled call by its fast path; typed keys do not.
    """
    return jax.random.fold_in(wrap(words[:2]), words[2])


ROUNDS = 4  # of `permutation`; each mixes the upper half of the bits into the lower and multiplies


def permutation(key: Any, n: int) -> Any:
    """A random order of ``0 .. n - 1``, ``[n]`` i32, without a sort where `n` is a power of two.

    A keyed hash that is one-to-one on k-bit numbers: x ← (x · odd + c) mod 2^k, x ← x ⊕ (x >> ⌈k/2⌉), four rounds with
    random odd and c. It reaches only some of the n! orders, which is enough to deal experience into minibatches, and
    takes microseconds where sorting takes a millisecond. Other sizes are sorted.

    Args:
        key: Consumed.
        n: How many, at least 1.
    """
    bits = n.bit_length() - 1
    if n != 1 << bits or bits < 2:
        return jnp.argsort(jax.random.bits(key, (n,)), stable=False).astype(jnp.int32)
    mask = jnp.uint32(n - 1)
    x = jax.lax.iota(jnp.uint32, n)
    words = jax.random.bits(key, (ROUNDS, 2))
    for i in range(ROUNDS):
        x = (x * (words[i, 0] | jnp.uint32(1)) + words[i, 1]) & mask
        x = x ^ (x >> jnp.uint32((bits + 1) // 2))
    return x.astype(jnp.int32)


@functools.cache
def implementation() -> Any:
    """The implementation, registered once a process."""
    return jax.extend.random.define_prng_impl(
        key_shape=(2,),
        seed=_seed,
        split=_split,
        random_bits=_random_bits,
        fold_in=_fold_in,
        name="threefry2x32_unrolled",
        tag="tfu",
    )


def hash_words(k0: Any, k1: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """Threefry-2x32 of two words under a key of two words; u32 arrays of one shape or scalars."""
    ks = (k0, k1, k0 ^ k1 ^ jnp.uint32(PARITY))
    x0, x1 = x0 + k0, x1 + k1
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = (x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))
            x1 = x0 ^ x1
        x0 = x0 + ks[(block + 1) % 3]
        x1 = x1 + ks[(block + 2) % 3] + jnp.uint32(block + 1)
    return x0, x1


def _seed(seed: Any) -> Any:
    """As JAX: the low word of the seed behind a high word (0 for 32-bit seeds)."""
    seed = jnp.asarray(seed)
    high = jnp.zeros((), jnp.uint32) if seed.dtype.itemsize <= 4 else (seed >> 32).astype(jnp.uint32)
    return jnp.stack([high, seed.astype(jnp.uint32)])


def _counters(data: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    size = functools.reduce(lambda a, b: a * b, shape, 1)
    if size >= 2**32:
        raise ValueError(f"{size} random numbers from one key; at most 2^32 - 1 are drawn at once")
    low = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return hash_words(data[0], data[1], jnp.zeros_like(low), low)


def _split(data: Any, shape: tuple[int, ...]) -> Any:
    return jnp.stack(_counters(data, tuple(shape)), axis=-1)


def _fold_in(data: Any, number: Any) -> Any:
    return jnp.stack(hash_words(data[0], data[1], *_seed(jnp.asarray(number, jnp.uint32))))


def _random_bits(data: Any, width: int, shape: tuple[int, ...]) -> Any:
    if width == 64:
        high, low = _counters(data, tuple(shape))
        return high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)
    high, low = _counters(data, tuple(shape))
    bits = high ^ low
    return bits if width == 32 else bits.astype(f"uint{width}")
