from __future__ import annotations

import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import tree


class Pair(NamedTuple):
    w: Any
    b: Any


def sample() -> Any:
    rng = np.random.default_rng(0)
    return {
        "net": Pair(jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), jnp.arange(4, dtype=jnp.bfloat16)),
        "flags": [jnp.asarray([True, False]), jnp.zeros((0, 5), jnp.float32)],
        "scalar": jnp.float32(2.5),
        "image": jnp.asarray(rng.integers(0, 255, (2, 2)), jnp.uint8),
    }


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, leaf in tree.paths(a).items():
        other = tree.paths(b)[path]
        assert tree.describe(leaf) == tree.describe(other), path
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other))


def test_import_leaves_jax_alone() -> None:
    code = "import sys; from shoal import log; from shoal.core import tree; from shoal.runs import checkpoint\n"
    code += "assert 'jax' not in sys.modules, 'jax was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_paths_are_sorted_and_name_every_leaf() -> None:
    found = tree.paths({"b": Pair(1, 2), "a": (3,)})
    assert found == {"['a'][0]": 3, "['b'].b": 2, "['b'].w": 1}
    assert list(found) == sorted(found)


def test_bytes_needs_shapes_only() -> None:
    assert tree.bytes(sample()) == 3 * 4 * 4 + 4 * 2 + 2 + 0 + 4 + 4
    assert tree.bytes(jax.eval_shape(sample)) == tree.bytes(sample())
    assert tree.bytes(()) == 0


def test_flattener_returns_the_same_tree_inside_and_outside_jit() -> None:
    like = sample()
    flat = tree.flattener(like)
    vector = flat.flatten(like)
    assert vector.shape == (flat.size,)
    assert vector.dtype == jnp.float32
    assert flat.size == 12 + 4 + 2 + 0 + 1 + 4
    assert_equal(flat.unflatten(vector), like)
    assert_equal(jax.jit(flat.unflatten)(jax.jit(flat.flatten)(like)), like)


def test_flattener_takes_numpy_vectors_and_abstract_examples() -> None:
    flat = tree.flattener(jax.eval_shape(sample))
    vector = np.asarray(flat.flatten(sample()))
    assert_equal(flat.unflatten(vector), jax.device_get(sample()))


def test_flattener_order_is_that_of_the_paths() -> None:
    one = tree.flattener({"b": jnp.float32(2), "a": jnp.float32(1)})
    assert one.flatten({"a": jnp.float32(1), "b": jnp.float32(2)}).tolist() == [1.0, 2.0]
    pair = Pair(w=jnp.float32(1), b=jnp.float32(2))  # listed w, b: sorted b, w
    assert tree.flattener(pair).flatten(pair).tolist() == [2.0, 1.0]
    assert tree.flattener(pair).unflatten(jnp.asarray([2.0, 1.0])) == pair


def test_flattener_of_nothing() -> None:
    flat = tree.flattener({})
    assert flat.size == 0
    assert flat.unflatten(flat.flatten({})) == {}


@pytest.mark.parametrize("leaf", [np.int32(1), np.int64(1), np.float64(1), np.uint32(1)])
def test_flattener_refuses_what_float32_would_change(leaf: Any) -> None:
    with pytest.raises(TypeError, match=r"\['n'\].*float32"):
        tree.flattener({"n": leaf})


def test_flattener_refuses_another_tree() -> None:
    flat = tree.flattener({"a": jnp.zeros(3)})
    with pytest.raises(ValueError, match="differ"):
        flat.flatten({"a": jnp.zeros(4)})
    with pytest.raises(ValueError, match="differ"):
        flat.flatten({"b": jnp.zeros(3)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_sees_one_bad_element(bad: float) -> None:
    check = jax.jit(tree.all_finite)
    good = sample()
    assert bool(check(good))
    assert not bool(check({**good, "scalar": jnp.float32(bad)}))
    assert not bool(check({**good, "net": good["net"]._replace(b=jnp.asarray([1, bad], jnp.bfloat16))}))


def test_all_finite_ignores_integers_and_empty_trees() -> None:
    assert bool(tree.all_finite({"n": jnp.arange(3), "flag": True}))
    assert bool(tree.all_finite(()))


def test_sha256_is_one_for_numpy_and_jax() -> None:
    here = sample()
    assert tree.sha256(here) == tree.sha256(jax.device_get(here))
    assert tree.sha256({"x": np.arange(3, dtype=">f4")}) == tree.sha256({"x": jnp.arange(3, dtype=jnp.float32)})
    assert tree.sha256({"x": np.arange(6.0).reshape(2, 3).T}) == tree.sha256(
        {"x": np.arange(6.0).reshape(2, 3).T.copy()}
    )


def test_sha256_tells_path_dtype_shape_and_bytes_apart() -> None:
    digests = {
        tree.sha256({"x": np.zeros(4, np.float32)}),
        tree.sha256({"y": np.zeros(4, np.float32)}),
        tree.sha256({"x": np.zeros(4, np.int32)}),
        tree.sha256({"x": np.zeros((2, 2), np.float32)}),
        tree.sha256({"x": np.asarray([0, 0, 0, 1], np.float32)}),
        tree.sha256({"x": np.asarray([0, 0, 0, -0.0], np.float32)}),
        tree.sha256({}),
    }
    assert len(digests) == 7


def test_stack_and_unstack() -> None:
    trees = [
        jax.tree.map(lambda leaf, i=i: leaf + jnp.asarray(i, leaf.dtype), {"a": jnp.zeros(2), "b": jnp.int32(1)})
        for i in range(3)
    ]
    whole = tree.stack(trees)
    assert whole["a"].shape == (3, 2)
    for one, back in zip(trees, tree.unstack(whole), strict=True):
        assert_equal(one, back)
    with pytest.raises(ValueError, match="leading axis"):
        tree.unstack({"a": jnp.zeros(2), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match="leading axis"):
        tree.unstack({"a": jnp.float32(1)})


def test_lerp_is_exact_at_both_ends_and_keeps_dtypes() -> None:
    old = {"x": jnp.asarray([1.0, 3.3]), "h": jnp.asarray([1.0], jnp.bfloat16), "n": jnp.int32(1)}
    new = {"x": jnp.asarray([2.0, 1.1]), "h": jnp.asarray([3.0], jnp.bfloat16), "n": jnp.int32(9)}
    assert_equal(tree.lerp(old, new, 1.0), new)
    assert_equal(tree.lerp(old, new, 0.0), {**old, "n": new["n"]})
    assert_equal(jax.jit(tree.lerp)(old, old, jnp.float32(0.3)), old)
    half = jax.jit(tree.lerp)(old, new, jnp.float32(0.25))
    np.testing.assert_allclose(half["x"], [1.25, 2.75], rtol=1e-6)
    assert half["h"].dtype == jnp.bfloat16
    assert float(half["h"][0]) == 1.5


def test_typed_keys_are_refused_by_name() -> None:
    for verb in (tree.paths, tree.sha256, tree.bytes, tree.flattener, tree.all_finite):
        with pytest.raises(TypeError, match=r"\['key'\] is a typed PRNG key"):
            verb({"key": jax.random.key(0)})


def test_words_are_no_leaves() -> None:
    with pytest.raises(TypeError, match="no array of numbers"):
        tree.sha256({"name": "shoal"})
