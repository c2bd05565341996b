"""The actor-critic learns what is known about each probe: its values, its best action, what memory is for.

The mistakes these find are gross: a value not learned is off by 1 or more, a wrong bootstrap by several. What remains
after training, the step size annealed to 0, was at most 0.002 over four seeds; the tolerance is five times that.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import evaluation, experiment, presets, types
from shoal.environments import probe
from tests import faults  # noqa: F401  its compilation cache

GAMMA = 0.9
TOLERANCE = 0.01  # of values on the scale of 1
SEEN = {  # probe -> observations whose value is known
    "constant": [[1.0]],
    "observation": [[-1.0], [1.0]],
    "discount": [[0.0], [1.0]],
    "action": [[1.0]],
    "match": [[-1.0], [1.0]],
    "truncated": [[1.0]],
    "target": [[-1.0], [1.0]],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "algorithm": {"discount": GAMMA, "entropy_cost": 0.0},
    "optimiser": {"learning_rate": 3e-3},
    "network": {"hidden": (32,)},
    "runtime": {"environments": 32},
}


class Watch:
    """An observer that only lets the run go on."""

    def __call__(self, _: types.Progress) -> bool:
        return True

    def fault(self, kind: str, message: str) -> None:
        raise AssertionError(f"{kind}\n{message}")


def learn(name, steps, *, change=lambda env: env, **settings):
    """The parts and the policy after `steps`; `change` makes another environment of the probe."""
    experiment.cache()
    merged = {kind: {**SETTINGS[kind], **settings.get(kind, {})} for kind in SETTINGS}
    made, opened = presets.resolve(presets.Request("a2c", f"probe:{name}", steps, settings=merged))
    built = experiment.build(made, opened._replace(device=change(opened.device)))
    result = built.runtime.run(built.parts, made.seed, made.steps, None, Watch(), None)
    assert result.final.faults["non_finite"] == 0
    return built.parts, result.policy


def values(parts, policy, name):
    """(learned, true) values of the observations known."""
    obs = jnp.asarray(SEEN[name])
    learned = jax.vmap(lambda one: parts.agent.network.apply(policy.params, one, ())[0]["value"][0])(obs)
    return np.asarray(learned), np.asarray(probe.TRUTHS[name].value(obs, GAMMA))


def greedy_return(parts, policy):
    return float(np.mean(evaluation.evaluate(parts, policy, 64, 0).returns))


@pytest.mark.parametrize("name", ["constant", "observation", "discount", "action", "match"])
def test_values_and_actions_become_those_known(name):
    parts, policy = learn(name, 80_000)
    learned, true = values(parts, policy, name)
    np.testing.assert_allclose(learned, true, atol=TOLERANCE)
    if name in ("action", "match"):
        assert greedy_return(parts, policy) == probe.TRUTHS[name].optimal_return


def test_a_truncated_episode_is_worth_what_would_have_followed():
    parts, policy = learn("truncated", 200_000)
    learned, true = values(parts, policy, "truncated")
    assert true == pytest.approx(1 / (1 - GAMMA))
    np.testing.assert_allclose(learned, true, rtol=TOLERANCE)


def test_truncation_taken_for_termination_is_noticed():
    """The negative control: with every tenth step an end, V = 1 + 0.9 γ V for a critic that sees no clock: 5.3."""

    def terminate(env):
        def step(state, action, key):
            state, obs, outcome = env.step(state, action, key)
            ended = jnp.where(outcome.truncated, 0.0, outcome.discount)
            return state, obs, outcome._replace(discount=ended, truncated=jnp.zeros_like(outcome.truncated))

        return env._replace(step=step)

    parts, policy = learn("truncated", 200_000, change=terminate)
    assert values(parts, policy, "truncated")[0] < 7.0


def test_a_bounded_action_finds_its_target():
    parts, policy = learn("target", 160_000)
    # Standing still, at 0, earns -(cue / 2)² = -0.25; 95 % of the way from there to the optimum of 0.
    assert greedy_return(parts, policy) >= -0.25 * 0.05
    learned, _ = values(parts, policy, "target")
    assert (learned > -0.25).all()


@pytest.mark.parametrize(("lstm", "least", "most"), [(16, 0.95, 1.0), (0, -0.6, 0.6)], ids=["lstm", "feed-forward"])
def test_only_a_memory_recalls_the_cue(lstm, least, most):
    parts, policy = learn("memory", 200_000, network={"lstm": lstm}, algorithm={"entropy_cost": 0.01})
    found = greedy_return(parts, policy)
    # 64 coin flips of a network that cannot know stay within ±0.6 (4.8 standard deviations).
    assert least * probe.TRUTHS["memory"].optimal_return <= found <= most
