"""The learner's forward with the packed weights (specification 11.18): by hand numbers, and what has no such form."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, types
from shoal.runtimes.actor_learner import learner, precision
from shoal.runtimes.crew import turns
from tests import faults
from tests.conformance.test_runtimes import Observer
from tests.test_actor_learner import STEPS, built

RATE, X, Y = 0.1, 2.0, 3.0  # one weight w learns w x = y


class State(NamedTuple):
    params: Any
    seen: Any  # the weight that the update computed with


def slope(w):
    return (w * X - Y) * X


def rule(part, steps=1):
    """Descends (w x - y)² / 2, and a critic's v² / 2 where there is one."""

    def policy(params):
        return params["policy"] if part else params

    def snapshot(state):
        return types.Policy(policy(state.params), (), jnp.float32(1.0))

    def update(state, rollout, key):
        del rollout, key
        first = now = policy(state.params)["w"]
        for _ in range(steps):
            now = now - RATE * slope(now)
        learned = {"w": now}
        params = {"policy": learned, "critic": 0.9 * state.params["critic"]} if part else learned
        return State(params, first), {"w": first}

    about = types.About(rollout_length=1, head="greedy", networks={}, fields=types.Fields(policy=part))
    return types.Agent(init=None, snapshot=snapshot, act=None, update=update, about=about)


def halves(policy, key):
    """To whole multiples of a half."""
    del key
    return policy._replace(params=jax.tree.map(lambda w: jnp.round(2 * w) / 2, policy.params))


def coarse(simulate=halves, here=False):
    return types.Compressor(
        name="halves", init=None, compress=None, runner=None, plain=None, here=here, simulate=simulate
    )


@pytest.mark.parametrize("part", ["", "policy"])
def test_the_step_is_that_at_the_packed_weights_and_changes_the_full_ones(part):
    agent = precision.packed(rule(part), coarse())
    weights = {"w": jnp.float32(0.7)}
    params = {"policy": weights, "critic": jnp.float32(1.0)} if part else weights
    state, metrics = jax.jit(agent.update)(State(params, jnp.float32(0.0)), (), jax.random.key(0))
    # Q(0.7) = 0.5, where the slope is (0.5 · 2 - 3) · 2 = -4: 0.7 + 0.1 · 4; at 0.7 itself it would be -3.2
    after = state.params["policy"] if part else state.params
    assert float(after["w"]) == pytest.approx(1.1)
    assert float(metrics["w"]) == float(state.seen) == 0.5
    if part:
        assert float(state.params["critic"]) == pytest.approx(0.9), "critics learn as they are"


def test_small_changes_add_up_and_are_not_rounded_away():
    """From 0.1 the packed weight is 0 until the full one passes 0.25; then it is a half."""
    agent = precision.packed(rule(""), coarse())
    state, seen = State({"w": jnp.float32(0.1)}, jnp.float32(0.0)), []
    small = agent._replace(
        update=lambda state: agent.update(state, (), jax.random.key(0))[0],
    )
    for _ in range(2):
        state = small.update(state)
        seen.append((float(state.seen), round(float(state.params["w"]), 4)))
    assert seen == [(0.0, 0.7), (0.5, 1.1)]


def test_several_gradient_steps_are_made_from_one_packing():
    agent = precision.packed(rule("", steps=2), coarse())
    state, _ = agent.update(State({"w": jnp.float32(0.7)}, jnp.float32(0.0)), (), jax.random.key(0))
    first = 0.5 - RATE * slope(0.5)  # 0.9
    second = first - RATE * slope(first)  # 1.14
    assert float(state.params["w"]) == pytest.approx(0.7 + second - 0.5)


@pytest.mark.parametrize("preset", ["ppo", "td3", "dqn"])
def test_rules_learn_with_it(preset):
    ends = []
    for how in ("full", "packed"):
        made, there = built(
            preset,
            environments=4,
            lockstep=True,
            precision=how,
            compressor="quantise",
            more={"compressor": {"bits": 3}},
        )
        run = learner.Run(made.configs["runtime"], there.parts, 0, STEPS, Observer(), None)
        final = run.train(time.monotonic(), turns.Turns)
        assert final.final.env_steps == STEPS
        ends.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(final.policy.params)]))
    assert all(np.isfinite(end).all() for end in ends)
    assert not np.array_equal(*ends)


def test_what_has_no_such_form_is_refused():
    agent = rule("policy")
    assert "nothing is packed" in precision.refuses(agent, coarse(simulate=None, here=True))
    assert "learns from observations" in precision.refuses(agent, coarse(simulate=None))
    assert "made of its own in another way" in precision.refuses(rule(None), coarse())
    assert precision.refuses(agent, coarse()) == ""
    with pytest.raises(errors.Refused, match="nothing is packed"):
        precision.packed(agent, coarse(simulate=None, here=True))


@pytest.mark.parametrize(("compressor", "says"), [("identity", "nothing is packed"), ("distil", "quantise, prune or")])
def test_and_told_in_one_line_before_anything_is_made(compressor, says, tmp_path, capsys):
    ended = faults.call(
        capsys,
        "train",
        "impala",
        "--compressor",
        compressor,
        "--runtime.precision",
        "packed",
        "--out",
        tmp_path / "run",
    )
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()
    assert experiment.ways("actor_learner").packs_learner is False
