"""Whole runs of teams: under every runtime, several seeds at once, a number of episodes, and what goes wrong."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest

import shoal
from shoal import environments, experiment
from shoal.algorithms._teams import learning
from shoal.command import cli
from shoal.core import errors, seeds, types
from shoal.experiment import presets
from shoal.runtimes.experience import rollouts
from tests import conftest


@pytest.fixture(scope="module", autouse=True)
def rolled_up():
    """As in test_map_propagation: compiles faster."""
    before, learning.UNROLL = learning.UNROLL, 1
    yield
    learning.UNROLL = before


RMSPROP = {"rule": "rmsprop", "decay": 0.99, "epsilon": 1e-8}
SMALL = {"network": {"hidden": (8, 6)}, "algorithm": {"steps": 4}}


def built(env="gymnax:CartPole-v1", preset="map_propagation", **settings):
    experiment.cache()
    made, opened = presets.resolve(presets.Request(preset, env, 1000, settings=settings))
    return made, experiment.build(made, opened)


def train(tmp_path, preset="map_propagation", **given):
    return shoal.train(preset, out=tmp_path / "run", quiet=True, eval_episodes=0, **given)


def test_a_team_learns_on_device(tmp_path):
    run = train(tmp_path, steps=16_000, seed=1000)
    assert run.summary["return_mean"] > 100.0
    assert run.summary["faults"]["non_finite"] == 0


def test_on_device_and_host_agree_on_the_same_experience():
    """The same update, compiled apart, after 50 recorded steps of CartPole."""
    parts = built(**SMALL)[1].parts
    agent, env = parts.agent, parts.device_env
    start = jax.jit(agent.init)(seeds.key(0))

    @functools.partial(jax.jit, compiler_options=conftest.AS_USERS)
    def scanned(state, key):
        actors = rollouts.start(agent, env, 1, key)

        def one(at, key):
            state, actors = at
            act, learn = jax.random.split(key)
            actors, rollout, _ = rollouts.collect(agent, env, agent.snapshot(state), actors, act)
            return (agent.update(state, rollout, learn)[0], actors), (rollout, learn)

        (state, _), recorded = jax.lax.scan(one, (state, actors), jax.random.split(key, 50))
        return state, recorded

    on_device, (seen, keys) = scanned(start, seeds.key(1))
    update, state = jax.jit(agent.update, compiler_options=conftest.AS_USERS), start
    for at in range(50):
        state, _ = update(state, jax.tree.map(lambda leaf, at=at: leaf[at], seen), keys[at])
    for found, each in zip(jax.tree.leaves(on_device.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(found, each, rtol=1e-4, atol=1e-6)


def test_a_seed_learns_the_same_alone_and_among_others(tmp_path):
    alone = train(tmp_path, steps=50, seed=3, **SMALL)
    group = shoal.train(
        "map_propagation", seeds=5, seed=0, steps=50, out=tmp_path / "all", quiet=True, eval_episodes=0, **SMALL
    )
    for found, each in zip(
        jax.tree.leaves(group.runs[3].policy.params), jax.tree.leaves(alone.policy.params), strict=True
    ):
        np.testing.assert_allclose(found, each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["map_propagation", "map_async"])
def test_it_runs_on_the_host(preset, tmp_path):
    run = train(tmp_path, preset, env="CartPole-v1", steps=60, **SMALL)
    assert (run.summary["runtime"], run.summary["updates"], run.summary["status"]) == ("host", 60, "completed")


@pytest.mark.slow
def test_hogwild_workers_share_it_with_a_rate_for_every_layer(tmp_path):
    """A layer whose rate is 0 stays as it was; the others move."""
    algorithm = SMALL["algorithm"] | {"actor_rates": (1e-2, 0.0, 1e-3), "actor_rates_end": ()}
    run = train(
        tmp_path, env="CartPole-v1", steps=300, workers=2, runtime="hogwild", optimiser=RMSPROP,
        network=SMALL["network"], algorithm=algorithm,
    )  # fmt: skip
    assert run.summary["status"] == "completed"
    assert sum(run.summary["workers"]["updates"]) >= 300
    assert run.summary["faults"]["non_finite"] == 0
    agent = built(**SMALL)[1].parts.agent
    first = jax.jit(agent.init)(seeds.key(0, "init")).params["actor"]
    moved = {name: not np.array_equal(run.policy.params[name]["bias"], first[name]["bias"]) for name in first}
    assert moved == {"trunk_dense_0": True, "trunk_dense_1": False, "policy": True}


def test_episodes_end_a_run_and_are_all_counted(tmp_path):
    run = train(tmp_path, episodes=12, **SMALL)
    assert (run.summary["episodes"], run.summary["status"]) == (12, "completed")
    rows = (run.folder / "episodes.csv").read_text().splitlines()[1:]
    returns = [float(row.split(",")[1]) for row in rows]
    assert len(returns) == 12
    assert run.summary["train_return_mean"] == pytest.approx(np.mean(returns))
    assert run.summary["train_return_std"] == pytest.approx(np.std(returns))
    assert json.loads((run.folder / "config.json").read_text())["episodes"] == 12
    with pytest.raises(errors.Refused, match="complete"):
        shoal.resume(run.folder, quiet=True)


def test_a_seed_that_has_its_episodes_counts_no_more(tmp_path):
    group = shoal.train(
        "map_propagation", seeds=3, episodes=5, out=tmp_path / "all", quiet=True, eval_episodes=0, **SMALL
    )
    means = [run.summary["train_return_mean"] for run in group.runs]
    assert [run.summary["episodes"] for run in group.runs] == [5, 5, 5]
    assert group.summary["train_return_mean"] == pytest.approx(np.mean(means))
    assert group.summary["train_return_std"] == pytest.approx(np.std(means))


def test_episodes_without_an_end_in_sight_need_steps(tmp_path):
    with pytest.raises(errors.Refused, match="give --steps as well"):
        train(tmp_path, env="tests.scripted:Endless-v0", episodes=3)
    with pytest.raises(errors.Refused, match="at least 1"):
        train(tmp_path, episodes=0)
    assert cli.main(["train", "map_propagation", "--episodes", "0"]) == 2


def test_without_its_guard_a_diverged_run_fails_in_one_line(tmp_path, capsys):
    """With a critic so quiet that A is its own mean in float32, 1 / (A - mean) is infinite."""
    given = ["--algorithm.critic-variance", "1e-30", "1e-30", "1e-30", "--algorithm.guard", "0", "--steps", "4000"]
    code = cli.main(["train", "map_propagation", "--out", str(tmp_path / "run"), "--quiet", *given])
    said = capsys.readouterr().err.strip()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert code == 3
    assert "gradients were not finite" in said
    assert "\n" not in said.strip().replace("\n  ", " ").splitlines()[-1]
    assert summary["status"] == "failed"
    assert summary["faults"]["non_finite"] >= 1000
    with pytest.raises(errors.GaveUp, match="seeds 0, 1"):
        shoal.train(
            "map_propagation", seeds=2, steps=4000, out=tmp_path / "all", quiet=True, eval_episodes=0,
            algorithm={"critic_variance": (1e-30, 1e-30, 1e-30), "guard": 0.0}, network={"hidden": (8, 6)},
        )  # fmt: skip
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["status"] == "failed"


def test_resuming_gives_the_same_bits(tmp_path):
    whole = train(tmp_path / "whole", steps=4000, runtime={"chunk_steps": 1000}, **SMALL)

    class Stop:
        def __init__(self):
            self.saved = None

        def __call__(self, progress: types.Progress) -> bool:
            if progress.stage is None:
                self.saved = progress.save()
            return progress.stage is not None or progress.env_steps < 2000

        def fault(self, kind, message):
            raise AssertionError(kind + message)

    made, half = built(runtime={"chunk_steps": 1000}, **SMALL)
    stop = Stop()
    half.runtime.run(half.parts, made.seed, 4000, None, stop, None)
    result = half.runtime.run(half.parts, made.seed, 4000, None, Stop(), stop.saved)
    while result.final.env_steps < 4000:
        result = half.runtime.run(half.parts, made.seed, 4000, None, lambda _: True, result.final.save())
    for a, b in zip(jax.tree.leaves(whole.policy.params), jax.tree.leaves(result.policy.params), strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------ tasks


def test_the_multiplexer_pays_for_the_addressed_bit():
    env = environments.open("task:Multiplexer-3", environments.Config()).device
    step = jax.jit(env.step)
    for seed in range(20):
        state, obs = env.init(seeds.key(seed))
        bits = (np.asarray(obs) > 0).astype(int)
        right = bits[3 + int("".join(map(str, bits[:3])), 2)]
        assert step(state, right, seeds.key(99))[2].reward == 1.0
        outcome = step(state, 1 - right, seeds.key(99))[2]
        assert (outcome.reward, outcome.discount) == (-1.0, 0.0)
        assert not np.any(outcome.next_obs)


def test_a_regression_shows_its_answer_after_the_question():
    opened = environments.open("task:Regression-8", environments.Config())
    step = jax.jit(opened.device.step)
    state, _ = opened.device.init(seeds.key(0))
    assert (opened.spec.observation.shape, opened.spec.action.shape) == ((8,), (1,))
    outcomes = [step(state, np.float32([action]), seeds.key(1))[2] for action in (0.5, -2.0)]
    answer = outcomes[0].next_obs[0]
    assert answer >= 0.0
    np.testing.assert_allclose(
        [o.reward for o in outcomes], [-((0.5 - answer) ** 2), -((-2.0 - answer) ** 2)], rtol=1e-6
    )
    assert not np.any(outcomes[0].next_obs[1:])
    again = environments.open("task:Regression-8", environments.Config()).device.step
    assert again(state, np.float32([0.5]), seeds.key(1))[2].reward == outcomes[0].reward
    with pytest.raises(errors.Refused, match="did you mean"):
        environments.open("task:Regresion-8", environments.Config())


@pytest.mark.slow
def test_units_learn_a_small_multiplexer_and_reinforce_lags(tmp_path):
    settings = {"network": {"hidden": (32, 16)}, "runtime": {"chunk_steps": 12_800}}
    algorithm = presets.find("map_propagation").tuned["Multiplexer-5"].settings["algorithm"]
    rewards = {}
    for preset in ("map_propagation", "reinforce_team"):
        own = dict(algorithm, **presets.find(preset).settings.get("algorithm", {})) | {"critic_rule": "none"}
        run = train(
            tmp_path / preset, preset, env="task:Multiplexer-2", steps=128 * 300, algorithm=own,
            runtime={"environments": 128, **settings["runtime"]}, network=settings["network"],
        )  # fmt: skip
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
        rewards[preset] = json.loads(lines[-1])["reward"]
    assert rewards["map_propagation"] > 0.5 > rewards["reinforce_team"]


# ------------------------------------------------------------------------------------------------ environments


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_gymnax_and_gymnasium_agree_step_by_step(name):
    """From the same state by the same actions: the same observations, rewards and ends."""
    import gymnasium

    device = environments.open(f"gymnax:{name}", environments.Config()).device
    raw, step = gymnasium.make(name), jax.jit(device.step)
    chance, lengths, ends = np.random.default_rng(0), 0, 0
    state, _ = jax.jit(device.init)(seeds.key(0))
    raw.reset(seed=0)
    raw.unwrapped.state = inner(name, state)
    for at in range(600):
        action = chance.integers(raw.action_space.n) if hasattr(raw.action_space, "n") else chance.uniform(-1, 1, 1)
        state, _, outcome = step(state, np.int32(action) if np.ndim(action) == 0 else np.float32(action), seeds.key(at))
        seen, reward, terminated, truncated, _ = raw.step(action)
        lengths += 1
        np.testing.assert_allclose(outcome.next_obs, seen, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(outcome.reward, reward, rtol=1e-4, atol=1e-4)
        assert (float(outcome.discount) == 0.0) == terminated
        assert bool(outcome.truncated) == (truncated and not terminated)
        if terminated or truncated:
            raw.reset()
            ends, lengths = ends + 1, 0
        raw.unwrapped.state = inner(name, state)  # rounding is not to pile up: Acrobot is chaotic
    assert ends or name == "MountainCarContinuous-v0"


def inner(name, state):
    """gymnax's state as Gymnasium keeps it."""
    fields = {
        "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
        "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
        "MountainCarContinuous-v0": ("position", "velocity"),
    }
    return np.array([float(getattr(state, field)) for field in fields[name]])
