"""What simulators give that is not finite is kept out where it enters, alike in every runtime, and counted.

With real processes: ``faults/test_workers.py``.
"""

from __future__ import annotations

import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.core import types
from shoal.experiment import presets
from shoal.runs.session import ending
from shoal.runtimes.experience import finite
from tests import conftest
from tests.conformance.test_runtimes import Observer

BAD = [np.nan, np.inf, -np.inf, 1e39]
SHAPES = [(3,), (2, 2, 1)]


class Scripted:
    """Shows 1, 2, 3 ...; what is broken of a step is given."""

    spec = None

    def __init__(self, broken, ends=(), shape=(3,)):
        self.broken, self.ends, self.shape, self.steps = broken, ends, shape, 0
        self.closed = False

    def show(self, name, value):
        obs = np.full(self.shape, value, np.float32)
        obs.flat[1] = np.float32(self.broken.get((self.steps, name), value))
        return obs

    def reset(self, seed):
        del seed
        self.steps = 0
        return self.show("obs", 0.5)

    def step(self, action):
        del action
        self.steps += 1
        successor, over = self.show("next_obs", self.steps), self.steps in self.ends
        reward = self.broken.get((self.steps, "reward"), 1.0)
        return self.show("obs", 0.5) if over else successor, types.Outcome(
            reward, 0.0 if over else 1.0, False, successor
        )

    def close(self):
        self.closed = True


@pytest.mark.parametrize("shape", [(1,), (3,), (100,), (2, 2, 1)])
def test_to_look_at_what_is_large_is_silent(shape):
    look, large = finite.Guard(Scripted({}, shape=shape)).looks, np.full(shape, 1e30, np.float32)
    assert look(large, large) == np.inf, "which is asked again; here, warnings are errors"
    assert look(large / 1e30, large / 1e30) == np.prod(shape)


def alone(env, steps=4):
    """What one guarded simulator gives: observations, outcomes, counts."""
    guard = finite.Guard(env)
    obs = [guard.reset(0)]
    outcomes = []
    for _ in range(steps):
        seen, outcome = guard.step(0)
        obs.append(seen)
        outcomes.append(outcome)
    counts = guard.take()
    assert guard.take() == (0, 0), "told once"
    guard.close()
    assert env.closed
    return np.stack(obs), outcomes, counts


def lock_step(envs, steps=4):
    """The same of several, looked at together, NumPy."""
    streams = finite.Streams()
    obs = [streams.first(np.stack([env.reset(0) for env in envs]))]
    outcomes = []
    for _ in range(steps):
        batch = streams.step(obs[-1], batched(envs))
        obs.append(batch.obs)
        outcomes.append(batch.outcome)
    return np.stack(obs), outcomes, (streams.rewards, streams.observations)


def batched(envs):
    found = [env.step(0) for env in envs]
    outcome = types.Outcome(*(np.array(column) for column in zip(*(one for _, one in found), strict=True)))
    with np.errstate(over="ignore"):
        outcome = outcome._replace(reward=outcome.reward.astype(np.float32))
    return types.Batch(np.stack([seen for seen, _ in found]), outcome)


def compiled(envs, steps=4):
    """The same inside a compiled program."""
    within = jax.jit(finite.within)
    obs = [finite.start(jnp.stack([env.reset(0) for env in envs]))]
    outcomes, counts = [], np.zeros(2, int)
    for _ in range(steps):
        seen, outcome, unfit = within(obs[-1], *batched(envs))
        obs.append(seen)
        outcomes.append(outcome)
        counts += np.asarray(unfit).sum(axis=0)
    return np.stack(obs), outcomes, tuple(counts)


CASES = {
    "reward": {(2, "reward"): "bad"},
    "seen": {(2, "next_obs"): "bad"},
    "twice": {(2, "next_obs"): "bad", (3, "next_obs"): "bad", (4, "reward"): "bad"},
    "at the end": {(3, "next_obs"): "bad"},
    "after the end": {(3, "obs"): "bad"},
    "at first": {(0, "obs"): "bad"},
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", CASES)
def test_numbers_that_are_not_finite_are_replaced_and_counted(case, bad, shape):
    broken = dict.fromkeys(CASES[case], bad)
    with np.errstate(over="ignore"):
        make = [lambda broken=broken: Scripted(broken, (3,), shape), lambda: Scripted({}, (3,), shape)]
        obs, outcomes, counts = alone(make[0]())
        many, each, told = lock_step([one() for one in make])
        inside, every, there = compiled([one() for one in make])
    assert np.isfinite(obs).all()
    np.testing.assert_array_equal(many[:, 0], obs)
    np.testing.assert_array_equal(inside[:, 0], obs)
    clean = alone(Scripted({}, (3,), shape))
    for others in (many, inside):
        np.testing.assert_array_equal(others[:, 1], clean[0], "the other stream is left alone")
    for one, other, third in zip(outcomes, each, every, strict=True):
        for a, b, c in zip(one, other, third, strict=True):
            np.testing.assert_array_equal(a, b[0])
            np.testing.assert_array_equal(a, c[0])
    rewards = sum(name == "reward" for _, name in broken)
    assert counts == told == (rewards, len(broken) - rewards)
    assert there == (rewards, len(broken) - rewards - (case == "at first")), "a first reset inside is not counted"


def test_what_they_are_replaced_by():
    obs, outcomes, _ = alone(Scripted({(2, "next_obs"): np.nan, (3, "obs"): np.inf, (3, "reward"): np.nan}, (3,)))
    assert outcomes[1].next_obs.tolist() == [2.0, 1.0, 2.0], "as a step before"
    assert obs[2].tolist() == [2.0, 1.0, 2.0]
    assert obs[3].tolist() == [0.5, 0.0, 0.5], "nothing of the episode before"
    assert [outcome.reward for outcome in outcomes] == [1.0, 1.0, 0.0, 1.0]


def test_what_is_finite_passes_untouched():
    large = {(1, "next_obs"): 3e38, (2, "reward"): 3.4e38}  # whose squares are not
    env = Scripted(large)
    guard = finite.Guard(env)
    guard.reset(0)
    for _ in range(2):
        seen, outcome = guard.step(0)
        assert seen is outcome.next_obs
    assert outcome.reward == 3.4e38
    assert guard.take() == finite.NONE
    batch = types.Batch(np.full((2, 3), 3e38, np.float32), batched([Scripted({}), Scripted({})]).outcome)
    after = finite.Streams().step(batch.obs, batch)
    assert after.obs is batch.obs
    assert after.outcome is batch.outcome
    bytes_ = np.zeros((2, 4, 4, 1), np.uint8)
    assert finite.Streams().first(bytes_) is bytes_


# ---------------------------------------------------------------------------------------------- in runtimes


def built(preset, env, steps, **settings):
    return experiment.build(presets.resolve(presets.Request(preset, env, steps, settings=settings))[0])


def pays(env, every=10):
    """A pure-JAX environment whose every tenth step pays NaN, and whose every fifth shows infinity."""

    def step(state, action, key):
        (inner, count), bad = state, jnp.float32(jnp.inf)
        inner, obs, outcome = env.step(inner, action, key)
        count = count + 1
        outcome = outcome._replace(reward=jnp.where(count % every == 0, jnp.nan, outcome.reward))
        shown = jnp.where(count % (every // 2) == 0, bad, outcome.next_obs)
        return (inner, count), jnp.where(count % (every // 2) == 0, bad, obs), outcome._replace(next_obs=shown)

    def init(key):
        inner, obs = env.init(key)
        return (inner, jnp.int32(0)), obs

    return env._replace(init=init, step=step)


@pytest.mark.parametrize("seeds", [1, 2])
def test_on_device(seeds):
    made = built("a2c", "probe:match", 320, runtime={"environments": 4, "chunk_steps": 80})
    parts = made.parts._replace(device_env=pays(made.parts.device_env), programs=None)
    results = []
    places = [types.Place(seed, Observer(), results.append, None) for seed in range(seeds)]
    if seeds == 1:
        results.append(made.runtime.run(parts, 0, 320, None, Observer(), None))
    else:
        made.runtime.run_many(parts, places, 320, None)
    for result in results:
        assert result.final.faults == {"non_finite": 0, "non_finite_rewards": 32, "non_finite_observations": 64}
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.policy.params))
    conftest.give_back_memory()


class Pays:
    """A simulator whose every tenth step pays NaN, and whose every fifth shows infinity."""

    def __init__(self, host):
        self._env, self._steps = host(), 0
        self.spec = self._env.spec
        self.reset, self.close = self._env.reset, self._env.close

    def step(self, action):
        self._steps += 1
        seen, outcome = self._env.step(action)
        if self._steps % 10 == 0:
            outcome = outcome._replace(reward=np.nan)
        if self._steps % 5 == 0:
            outcome = outcome._replace(next_obs=np.full_like(seen, np.inf))
        return seen, outcome


@pytest.mark.parametrize(
    ("preset", "env", "runtime"),
    [
        ("parallel_sarsa", "MountainCar-v0", {"workers": 2, "spawn": False}),
        ("batch_linear", "CartPole-v1", {"workers": 2, "spawn": False}),
        ("a2c", "CartPole-v1", {"environments": 2, "processes": 0}),
    ],
)
def test_in_this_process(preset, env, runtime):
    made = built(preset, env, 400, runtime=runtime)
    opener = made.parts.environment
    parts = made.parts._replace(
        environment=python_types.SimpleNamespace(host=lambda: Pays(opener.host), steps_many=False, elsewhere="")
    )
    final = made.runtime.run(parts, 0, 400, None, Observer(), None).final
    assert final.faults["non_finite_rewards"] == pytest.approx(final.env_steps / 10, abs=2)
    twice = 2 if preset == "batch_linear" else 1  # a sample begins with what the one before showed
    assert final.env_steps / 5 - 2 <= final.faults["non_finite_observations"] <= twice * final.env_steps / 5
    assert final.faults["non_finite"] == 0
    assert all(np.isfinite(episode.episode_return) for episode in final.episodes)


# ---------------------------------------------------------------------------------------------- the end of a run


def judged(steps, updates, *, last=False, preset="a2c", **faults):
    """Why a run would be given up."""
    made, _ = presets.resolve(presets.Request(preset, "probe:constant", 1000))
    one = ending.Ending(made)
    final = types.Progress(
        env_steps=steps, updates=updates, train_s=1.0, episodes=[], metrics={}, split={}, workers={}, faults=faults,
        save=dict,
    )  # fmt: skip
    one.take(final, last=last)
    return one.gave_up


def test_a_simulator_that_gives_nothing_to_learn_from_ends_the_run_and_is_named():
    why = judged(2000, 20, non_finite_rewards=1000)
    assert why.startswith("1,000 of 2,000 rewards that the simulator gave were not finite")
    assert "shoal check-env probe:constant" in why
    assert "learning rate" not in why
    assert "observations that the simulator" in judged(2000, 20, non_finite_observations=1999)
    assert judged(2000, 20, non_finite_rewards=999) is None, "the others can be learned from"
    assert judged(20, 1, non_finite_rewards=20) is None, "not yet"
    assert judged(20, 1, non_finite_rewards=20, last=True)


def test_a_run_that_dropped_most_gradient_steps_is_not_complete():
    assert judged(8192, 320, non_finite=320) is None
    assert judged(8192, 320, non_finite=320, last=True).startswith("320 of 320 gradients were not finite; lower")
    assert judged(8192, 320, non_finite=150, last=True) is None
    steps = experiment.traits("ppo").gradients
    assert steps == 16
    assert judged(8192, 20, non_finite=150, last=True, preset="ppo") is None, "an update is several of them"
    assert judged(8192, 20, non_finite=160, last=True, preset="ppo").startswith("160 of 320 gradients")
    assert judged(8192, 0, non_finite=7, last=True), "one whose dropped gradients are no updates"
    assert judged(80_000, 2000, non_finite=1000)
