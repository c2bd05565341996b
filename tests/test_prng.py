"""The written-out generator gives JAX's own bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from shoal.core import prng

DRAWS = {
    "split": lambda key: jax.random.key_data(jax.random.split(key, (3, 5))),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 77)),
    "bits": lambda key: jax.random.bits(key, (7, 3)),
    "bytes": lambda key: jax.random.bits(key, (7, 3), "uint8"),
    "uniform": lambda key: jax.random.uniform(key, (4,)),
    "normal": lambda key: jax.random.normal(key, ()),
    "categorical": lambda key: jax.random.categorical(key, jnp.arange(3.0)),
    "permutation": lambda key: jax.random.permutation(key, 10),
    "vmap": lambda key: jax.vmap(lambda one: jax.random.uniform(one, (2,)))(jax.random.split(key, 6)),
}


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_same_bits_as_jax(draw, seed):
    ours, theirs = draw(prng.key(np.uint32(seed))), draw(jax.random.key(np.uint32(seed)))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_known_answer_of_the_paper():
    # Random123's known-answer file: threefry2x32 with 20 rounds, all bits zero and all bits one.
    words = [jnp.uint32(0)] * 4
    assert [hex(int(word)) for word in prng.hash_words(*words)] == ["0x6b200159", "0x99ba4efe"]
    words = [jnp.uint32(0xFFFFFFFF)] * 4
    assert [hex(int(word)) for word in prng.hash_words(*words)] == ["0x1cb996fc", "0xbb002be7"]


def test_counted_keys_differ_and_enter_jit_as_plain_words():
    draw = jax.jit(lambda words: jax.random.bits(prng.counted(words), (2,)))
    drawn = {tuple(np.asarray(draw(np.array([1, 2, count], np.uint32))).tolist()) for count in range(50)}
    assert len(drawn) == 50


def test_a_compiled_draw_holds_no_loop():
    text = jax.jit(lambda words: jax.random.uniform(prng.counted(words), (4,))).lower(np.zeros(3, np.uint32)).as_text()
    assert "while" not in text


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 12, 16, 128, 1000, 1024])
def test_a_permutation_holds_every_number_once(n):
    draw = jax.jit(prng.permutation, static_argnums=1)
    for seed in range(20):
        found = np.asarray(draw(prng.key(seed), n))
        assert found.dtype == np.int32
        assert sorted(found.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [12, 16, 64])
def test_permutations_put_every_number_everywhere_alike(n):
    keys = jax.random.split(prng.key(0), 20_000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: prng.permutation(key, n)))(keys))
    assert len({row.tobytes() for row in found}) > 19_500, "hardly any order comes twice"
    for number in (0, 1, n // 2, n - 1):
        counts = np.bincount(np.argmax(found == number, axis=1), minlength=n)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    # Neighbours do not stay together: what experience lies side by side in is one stream at one time.
    apart = np.abs(np.argmax(found == 0, axis=1) - np.argmax(found == 1, axis=1))
    assert apart.mean() == pytest.approx((n + 1) / 3, rel=0.05)


def test_a_permutation_of_a_power_of_two_is_not_sorted():
    assert "sort" not in jax.jit(lambda key: prng.permutation(key, 1024)).lower(prng.key(0)).as_text()
