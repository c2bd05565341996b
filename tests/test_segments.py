"""Segments that end with their episode and are filled up with padding, as in the pseudo-code of Mnih et al. 2016."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.algorithms import actor_critic
from shoal.core import registry, types
from shoal.experiment import presets
from shoal.monitor import asynchrony
from shoal.runtimes.experience import segments
from tests import conftest, faults

T, USED = 6, 4
RULES: dict[str, dict[str, Any]] = {
    "actor_critic": {"rule": "actor_critic"},
    "mean": {"rule": "actor_critic", "algorithm": {"reduction": "mean"}},
    "lstm": {"rule": "actor_critic", "network": {"lstm": 4}},
    "vtrace": {"rule": "actor_critic", "corrector": "vtrace"},
    "rejecting": {"rule": "actor_critic", "corrector": "m2po", "correction": {"moment": 1.0, "weight": "tis"}},
    "sequences": {"rule": "actor_critic", "corrector": "seq_mis", "correction": {"product_low": 0.0}},
    "retrace": {
        "rule": "q_learning",
        "algorithm": {"target": "n_step", "epsilon_learned": 0.3, "reduction": "mean"},
        "corrector": "retrace",
        "correction": {"weight": "tis", "reject": "m2po", "moment": 1.0},
    },
    "normalised": {"rule": "actor_critic", "algorithm": {"normalise_observations": True}},
    "one_step": {"rule": "q_learning", "algorithm": {"target": "one_step"}},
    "sarsa": {"rule": "q_learning", "algorithm": {"target": "sarsa"}},
    "n_step": {"rule": "q_learning", "algorithm": {"target": "n_step", "normalise_observations": True}},
}
FORGETFUL = ("one_step", "sarsa", "n_step")  # they remember nothing of a decision


def test_every_rule_that_understands_padding_is_tested():
    padded = {name for name in registry.names("algorithm") if experiment.traits(name).padded}
    assert padded == {settings["rule"] for settings in RULES.values()}


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), a, b)


SPEC = conftest.env_spec((3,), choices=3)


@functools.cache
def learner(name: str) -> tuple[types.Agent, Any]:
    """An agent, and its update compiled: once for all that is tried with it."""
    agent = conftest.build_agent(SPEC, **RULES[name])
    return agent, jax.jit(agent.update)


@pytest.mark.parametrize("ending", ["terminal", "limit"])
@pytest.mark.parametrize("name", RULES)
def test_padding_teaches_nothing(name, ending, rollout, ends):
    """Whatever it holds, a padded segment is worth its first steps alone; also as the start of the next one."""
    spec, end = SPEC, np.zeros((USED, 1), bool)
    end[-1] = True
    agent, update = learner(name)
    state = agent.init(jax.random.key(0))
    carry = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], agent.about.carry)
    short = rollout(spec, USED, 1, seed=1, ends=ends(**{ending: end}), carry=carry)
    if name in FORGETFUL:
        short = short._replace(transitions=short.transitions._replace(extras=()))
    results = []
    for filling in (7.0, -300.0):
        steps = jax.tree.map(functools.partial(filled, value=filling), short.transitions)
        remembered = jax.tree.map(functools.partial(filled, value=-1.0), short.transitions.extras)  # no ratio overflows
        steps = steps._replace(discount=steps.discount.at[USED:].set(0.0), extras=remembered)
        long = types.Rollout(steps, short.carry, jnp.int32(USED))
        results.append(update(state, long, jax.random.key(1)))
    alone, told = update(state, short, jax.random.key(1))
    for after, metrics in results:
        close(after.optimiser.gradient, alone.optimiser.gradient)
        close(metrics, told)
        close(after._replace(optimiser=()), alone._replace(optimiser=()))  # steps, statistics, what is pending
    assert int(results[0][0].env_steps) == USED
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone.optimiser.gradient)) > 1e-3
    following = rollout(spec, T, 1, seed=2, carry=carry)
    if name in FORGETFUL:
        following = following._replace(transitions=following.transitions._replace(extras=()))
    again = [update(after, following, jax.random.key(2))[0].optimiser.gradient for after in (results[0][0], alone)]
    close(*again)


def filled(leaf: Any, value: float) -> Any:
    """``[T, 1, ...]`` from ``[USED, 1, ...]``."""
    value = 0 if leaf.dtype in (bool, jnp.int32) else value
    rest = jnp.full((T - USED, *leaf.shape[1:]), value, leaf.dtype)
    return jnp.concatenate([leaf, rest])


def built(env: str, preset: str = "a3c", **runtime: Any) -> Any:
    settings = {"runtime": {"workers": 1, **runtime}, "algorithm": {"rollout_length": T}, "network": {"hidden": (8,)}}
    made = presets.resolve(presets.Request(preset, env, 10_000, runtime="hogwild", settings=settings))[0]
    experiment.cache()
    return made, experiment.build(made).parts


def stream(parts: types.Parts, padded: bool) -> tuple[Any, types.Rollout]:
    """A stream of CartPole's segments, and the room they are written into."""
    room = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), segments.like(parts, padded))
    state = jax.tree.map(np.asarray, parts.agent.init(jax.random.key(3)))
    return segments.HostSegments(segments.Programs(parts, padded), state, room, 5, "here"), room


def test_cut_or_not_the_steps_are_the_same():
    """Nothing is lost or done twice where a segment is cut."""
    _, parts = built("CartPole-v1")
    seen: dict[bool, list[np.ndarray]] = {}
    ended: dict[bool, list[tuple[float, int]]] = {}
    for padded in (False, True):
        mine, room = stream(parts, padded)
        seen[padded], ended[padded] = [], []
        while len(seen[padded]) < 30 * T:
            segment = mine.collect(None)
            steps = room.transitions
            assert segment.steps == (int(room.used) if padded else T)
            assert padded or segment.steps == T
            for t in range(segment.steps):
                told = (steps.action, steps.reward, steps.discount, steps.truncated)
                row = [steps.obs[t, 0], steps.next_obs[t, 0], *([leaf[t, 0]] for leaf in told)]
                seen[padded].append(np.concatenate(row))
            ended[padded] += [(one.episode_return, one.length) for one in segment.finished]
            if padded:
                assert [one.at for one in segment.finished] in ([], [segment.steps])
                over = (steps.discount[: segment.steps, 0] == 0) | steps.truncated[: segment.steps, 0]
                assert over.tolist() == [False] * (segment.steps - 1) + [bool(segment.finished)]
                assert not steps.reward[segment.steps :].any()
        mine.close()
    count = min(map(len, seen.values()))
    np.testing.assert_array_equal(seen[True][:count], seen[False][:count])
    assert ended[True][:5] == ended[False][:5]
    assert len(ended[True]) > 5


def test_compiled_segments_stand_still_from_the_end_on():
    made, parts = built("gymnax:CartPole-v1")
    programs = segments.Programs(parts, padded=True)
    stream = segments.DeviceSegments(programs, 5, "here")
    policy = parts.agent.snapshot(parts.agent.init(jax.random.key(3)))
    assert made.runtime == "hogwild"
    length, lengths, starts = 0, [], True
    for _ in range(60):
        before = np.asarray(stream._actors.obs)[0]
        segment = stream.collect(policy)
        steps, n = segment.payload.transitions, segment.steps
        assert n == int(segment.payload.used)
        np.testing.assert_array_equal(np.asarray(steps.obs)[0, 0], before)
        assert not starts or (np.abs(before) < 0.05).all(), "an episode begins where the last one ended"
        over = np.asarray((steps.discount == 0) | steps.truncated)[:n, 0]
        assert over.tolist() == [False] * (n - 1) + [bool(segment.finished)]
        assert not np.asarray(steps.reward)[n:].any()
        length += n
        starts = bool(segment.finished)
        if starts:
            lengths.append((segment.finished[0].length, length))
            length = 0
        else:
            assert n == T
    assert len(lengths) > 5
    assert all(told == counted for told, counted in lengths)


@pytest.mark.parametrize(("preset", "env"), [("a3c", "CartPole-v1"), ("async_sarsa", "gymnax:CartPole-v1")])
def test_logical_workers_count_what_happened(preset, env):
    made, parts = built(env, preset, workers=2, segment="paper")
    steps = registry.load("runtime", "hogwild").replayer(made.configs["runtime"], parts, 0)
    finished = [one for done in steps.run(asynchrony.random(2, 60, 0), judge=True) for one in done.finished]
    state = steps.state
    assert len(finished) > 3
    assert sum(one.length for one in finished) <= state["steps"].sum() < 60 * T
    assert state["updates"].sum() == 60
    steps.close()


def test_a_replayable_run_of_padded_segments_is_replayed_to_the_same_bits(tmp_path, capsys):
    out = tmp_path / "run"
    typed = ("a3c", "--env", "CartPole-v1", "--workers", 2, "--steps", 1500, "--network.hidden", 8)
    more = ("--runtime.segment", "paper", "--replayable", "--eval-episodes", 0)
    summary = faults.train(capsys, out, *typed, *more)
    assert summary["env_steps"] >= 1500
    assert summary["updates"] * 32 > summary["env_steps"], "segments that end early are fewer steps"
    ended = faults.call(capsys, "replay", out, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["params_sha256"] == summary["params_sha256"]


def test_a_rule_that_learns_from_whole_segments_refuses_padded_ones(tmp_path, capsys):
    typed = (
        "ppo",
        "--env",
        "CartPole-v1",
        "--runtime",
        "hogwild",
        "--runtime.segment",
        "paper",
        "--algorithm.epochs",
        1,
    )
    more = ("--algorithm.minibatches", 1, "--optimiser.rule", "rmsprop", "--out", tmp_path / "run")
    ended = faults.call(capsys, "train", *typed, *more)
    assert ended.code == 2
    assert "whole segments" in ended.err
    assert not (tmp_path / "run").exists()


def test_padding_is_not_behaviour():
    """What acting remembered of the padding is a copy of the first step's, so that no ratio overflows."""
    _, parts = built("CartPole-v1")
    mine, room = stream(parts, padded=True)
    while mine.collect(None).steps in (1, T):
        pass
    n = int(room.used)
    extras = room.transitions.extras
    assert isinstance(extras, actor_critic.Remembered)
    assert (extras.log_prob[n:] == extras.log_prob[0]).all()
    assert (room.transitions.obs[n:] == room.transitions.obs[0]).all()
    mine.close()
