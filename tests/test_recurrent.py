"""A network with memory along streams: what it gives step by step, whatever is taken out of the loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import networks
from shoal.core import types

T, B = 5, 3
HEADS = {"policy": (2, 0.5), "value": (1, 1.0)}
CASES = {
    "vectors": ({"hidden": (4,), "lstm": 3}, (4,)),
    "a trunk each": ({"hidden": (4,), "lstm": 3, "shared": False}, (4,)),
    "pictures": ({"torso": "universe", "lstm": 3}, (42, 42, 1)),
    "form D": ({"hidden": (4,), "lstm": 3, "form": "D"}, (4,)),
    "form F": ({"hidden": (4,), "lstm": 3, "form": "F"}, (4,)),
}


def built(config, shape):
    picture = len(shape) == 3
    seen = types.ObservationSpec(shape, "uint8" if picture else "float32", picture)
    network = networks.build(networks.Config(**config), seen, HEADS)
    params = jax.tree.map(
        lambda leaf: leaf + (0.01 if picture else 0.1), network.init(jax.random.key(0))
    )  # no bias is zero
    obs = jax.random.randint(jax.random.key(1), (T, B, *shape), 0, 9 if picture else 255).astype(seen.dtype)
    over = jnp.zeros((T, B), bool).at[1, 0].set(True).at[2, 2].set(True).at[T - 1, 1].set(True)
    carry = jax.tree.map(lambda leaf: jnp.full((B, *leaf.shape), 0.3), network.carry)
    return network, params, (obs if picture else obs / 255.0), over, carry


def step_by_step(network, params, obs, over, carry):
    """One observation after the other, by `Network.apply` alone."""
    told = []
    for t in range(T):
        outputs, carry = jax.vmap(network.apply, (None, 0, 0))(params, obs[t], carry)
        told.append((outputs, carry))
        carry = jax.tree.map(lambda first, now, t=t: jnp.where(over[t][:, None], first, now), network.carry, carry)
    return jax.tree.map(lambda *steps: jnp.stack(steps), *told)


@pytest.mark.parametrize("case", CASES)
def test_along_streams_a_network_gives_what_it_gives_step_by_step(case):
    network, params, *given = built(*CASES[case])
    weights = jax.random.normal(jax.random.key(2), (T, B, 1))

    def loss(along):
        def of(params, carry):
            outputs, after = along(params, given[0], given[1], carry)
            terms = jax.tree.map(lambda leaf: (leaf**2 * weights).sum(), (outputs, after))
            return sum(jax.tree.leaves(terms)), (outputs, after)

        return jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True))

    def slowly(params, obs, over, carry):
        return step_by_step(network, params, obs, over, carry)

    found, expected = (loss(along)(params, given[2]) for along in (network.along, slowly))
    assert sorted(found[0][1][0]) == sorted(HEADS)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5), found, expected)
    recurrent = [leaf for path, leaf in jax.tree.leaves_with_path(found[1][0]) if "hf" in jax.tree_util.keystr(path)]
    assert recurrent, "the gradient of recurrent weights is not taken step by step, and not left out either"
    assert all(np.abs(leaf).max() > 1e-4 for leaf in recurrent)


def test_members_have_weights_of_their_own():
    """Under an axis over parameters, as populations and seeds have it."""
    network, params, obs, over, carry = built(*CASES["vectors"])
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), params)

    def loss(params):
        outputs, _ = network.along(params, obs, over, carry)
        return (outputs["policy"] ** 2).sum()

    found = jax.vmap(jax.grad(loss))(both)
    for member in range(2):
        alone = jax.grad(loss)(jax.tree.map(lambda leaf, member=member: leaf[member], both))
        mine = jax.tree.map(lambda leaf, member=member: leaf[member], found)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), mine, alone)


def test_nothing_without_memory_is_in_the_loop_over_steps():
    network, params, obs, over, carry = built(*CASES["pictures"])

    def loss(params):
        return sum(leaf.sum() for leaf in jax.tree.leaves(network.along(params, obs, over, carry)[0]))

    loops = [eqn for eqn in jax.make_jaxpr(jax.grad(loss))(params).eqns if eqn.primitive.name == "scan"]
    assert len(loops) == 2, "forwards and backwards"
    assert not any("convol" in str(eqn.params["jaxpr"]) for eqn in loops)
    cells = 4 * 3 * 3  # recurrent weights
    carried = [var.aval.shape for eqn in loops for var in eqn.outvars[: eqn.params["num_carry"]]]
    assert all(np.prod(shape) < cells for shape in carried), "no gradient of weights is added up step by step"


def test_a_network_without_memory_has_no_streams():
    seen = types.ObservationSpec((4,), "float32", False)
    assert networks.build(networks.Config(), seen, HEADS).along is None
