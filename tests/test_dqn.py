"""Deep Q-learning against float64 arithmetic written out, for a linear network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import environments, networks
from shoal.algorithms import _memory, dqn
from shoal.core import errors, options
from shoal.experiment import presets
from tests import faults, reference

T, B, N = 5, 2, 16
TERMINAL = np.zeros((T, B), bool)
LIMIT = TERMINAL.copy()
TERMINAL[1, 0] = LIMIT[3, 1] = True
BASE = {
    "rollout_length": T, "batch": N, "capacity": 64, "learning_starts": 0, "discount": 0.9, "target_period": 1,
    "tau": 0.3, "huber": 0.7,
}  # fmt: skip
CASES = {
    "double": {},
    "single": {"double": False},
    "squared": {"huber": 0.0},
    "three_steps": {"n_step": 3},
    "scaled": {"reward_scale": 2.0, "reward_clip": 0.5},
    "prioritised": {"replay": "prioritised", "priority_correction": 0.7, "n_step": 2},
    "target_waits": {"target_period": 2},
}


@pytest.fixture
def learner(env_spec, build_agent, rollout, ends):
    """settings -> (spec, agent, config, state, rollout)"""

    def made(network=None, **settings):
        spec = env_spec((3,), choices=3)
        agent = build_agent(
            spec, rule="dqn", streams=B, network={"hidden": (), **(network or {})}, algorithm=BASE | settings,
            local=True, optimiser=reference.RMSPROP,
        )  # fmt: skip
        state = agent.init(jax.random.key(2))
        state = state._replace(params=reference.shaken(state.params), target=reference.shaken(state.params, 8))
        given = rollout(spec, T, B, seed=3, ends=ends(TERMINAL, LIMIT))
        steps = given.transitions._replace(reward=3.0 * given.transitions.reward)
        return (
            spec,
            agent,
            options.build(dqn.Config, BASE | settings, "algorithm"),
            state,
            given._replace(transitions=steps),
        )

    return made


def values(params, obs, *, dueling=False):
    out = reference.linear(params["q"], obs)
    return out[:, :1] + out[:, 1:] - out[:, 1:].mean(axis=1, keepdims=True) if dueling else out


def expected(state, drawn, config, *, dueling=False):
    """(parameters, target, errors) after one gradient step."""
    params, target = reference.double((state.params, state.target))
    rows = np.arange(N)
    q, goal = values(params, drawn.obs, dueling=dueling), values(target, drawn.next_obs, dueling=dueling)
    chooser = values(params, drawn.next_obs, dueling=dueling) if config.double else goal
    y = drawn.reward + drawn.discount * goal[rows, chooser.argmax(axis=1)]
    error = y - q[rows, drawn.action]
    slope = np.clip(error, -config.huber, config.huber) if config.huber else error
    d_q = np.zeros_like(q)
    d_q[rows, drawn.action] = -drawn.weight * slope / N
    if dueling:
        d_q = np.concatenate([d_q.sum(axis=1, keepdims=True), d_q - d_q.mean(axis=1, keepdims=True)], axis=1)
    after = reference.RMSProp()(params, {"q": reference.linear_gradient(drawn.obs, d_q)})
    if config.target_period == 1:
        target = jax.tree.map(lambda old, new: 0.7 * old + 0.3 * new, target, after)
    return after, target, error


def drawn_by(spec, config, state, given, key):
    reward = given.transitions.reward * config.reward_scale
    reward = jnp.clip(reward, -config.reward_clip, config.reward_clip) if config.reward_clip else reward
    given = given._replace(transitions=given.transitions._replace(reward=reward))
    plan = _memory.Plan(64, N, config.n_step, B, config.replay == "prioritised", T)
    priorities = _memory.Priorities(jnp.float32(config.priority_exponent), jnp.float32(config.priority_correction))
    return reference.draw(plan, spec, state, given, key, priorities)[0]


@pytest.mark.parametrize("name", CASES)
def test_an_update_equals_the_arithmetic_written_out(name, learner):
    spec, agent, config, state, given = learner(**CASES[name])
    after, metrics = jax.jit(agent.update)(state, given, jax.random.key(11))
    drawn = drawn_by(spec, config, state, given, jax.random.key(11))
    params, target, error = expected(state, drawn, config)
    reference.assert_close(after.params, params)
    reference.assert_close(after.target, target)
    assert int(after.updates) == 1
    assert (np.abs(error) > 0.7).any()
    assert (np.abs(error) < 0.7).any()
    if name == "prioritised":
        assert len(set(np.asarray(drawn.weight).tolist())) == 1, "all have the same priority before the first step"
        held = np.asarray(after.memory.sum_tree_state.nodes)[-128:]
        for wanted in (np.abs(error) + 1e-6) ** config.priority_exponent:
            assert np.abs(held - wanted).min() < 1e-4 * wanted
    if name == "target_waits":
        again = jax.jit(agent.update)(after, given, jax.random.key(12))[0]
        moved = jax.tree.map(lambda old, new: 0.7 * old + 0.3 * new, *reference.double((state.target, again.params)))
        reference.assert_close(again.target, moved)
    assert metrics["loss"] > 0


def test_weights_of_prioritised_transitions_scale_their_gradient(learner):
    spec, agent, config, state, given = learner(replay="prioritised", priority_correction=0.7)
    update = jax.jit(agent.update)
    state = update(state, given, jax.random.key(1))[0]  # priorities now differ
    drawn = drawn_by(spec, config, state, given, jax.random.key(2))
    assert len(set(np.asarray(drawn.weight).round(5).tolist())) > 3
    rms = reference.RMSProp()
    rms.squares = _squares(state)
    params, target = reference.double((state.params, state.target))
    rows = np.arange(N)
    y = drawn.reward + drawn.discount * values(target, drawn.next_obs)[rows, values(params, drawn.next_obs).argmax(1)]
    slope = np.clip(y - values(params, drawn.obs)[rows, drawn.action], -0.7, 0.7)
    d_q = np.zeros((N, 3))
    d_q[rows, drawn.action] = -drawn.weight * slope / N
    wanted = rms(params, {"q": reference.linear_gradient(drawn.obs, d_q)})
    reference.assert_close(update(state, given, jax.random.key(2))[0].params, wanted)


def _squares(state):
    """The optimiser's statistics as the leaves of the parameters."""
    flat, out, at = np.asarray(state.optimiser.rule.nu, np.float64), [], 0
    for leaf in jax.tree.leaves(state.params):
        out.append(flat[at : at + leaf.size].reshape(leaf.shape))
        at += leaf.size
    return out


def test_a_dueling_network_is_differentiated_as_one(learner):
    spec, agent, config, state, given = learner(network={"dueling": True})
    assert state.params["q"]["bias"].shape == (4,)
    after = jax.jit(agent.update)(state, given, jax.random.key(11))[0]
    drawn = drawn_by(spec, config, state, given, jax.random.key(11))
    reference.assert_close(after.params, expected(state, drawn, config, dueling=True)[0])


@pytest.mark.parametrize(("terminated", "truncated"), [(False, False), (False, True), (True, False)])
def test_only_a_termination_ends_the_bootstrap(terminated, truncated, env_spec, build_agent, rollout):
    """One transition in memory, a target network of constants: Q goes to r + 0.9 · 5, or to r after a termination."""
    spec = env_spec((3,), choices=2)
    agent = build_agent(
        spec, rule="dqn", network={"hidden": ()}, local=True, optimiser={"learning_rate": 0.0},
        algorithm={"rollout_length": 1, "capacity": 4, "batch": 2, "learning_starts": 0, "discount": 0.9, "huber": 0.0},
    )  # fmt: skip
    state = agent.init(jax.random.key(0))
    zeros, five = (jax.tree.map(lambda leaf, b=b: jnp.full_like(leaf, b), state.params) for b in (0.0, 0.0))
    five["q"]["bias"] = jnp.full(2, 5.0)
    given = rollout(spec, 1, 1, seed=2)
    steps = given.transitions._replace(
        discount=jnp.full((1, 1), 0.0 if terminated else 1.0), truncated=jnp.full((1, 1), truncated)
    )
    state = state._replace(params=zeros, target=five)
    metrics = jax.jit(agent.update)(state, given._replace(transitions=steps), jax.random.key(0))[1]
    target = float(steps.reward[0, 0]) + (0.0 if terminated else 0.9 * 5.0)
    assert metrics["loss"] == pytest.approx(0.5 * target**2, rel=1e-5)


def test_nothing_is_learned_before_its_time_and_everything_is_remembered(learner):
    _, agent, _, state, given = learner(learning_starts=2 * T * B, updates=3)
    update = jax.jit(agent.update)
    once, metrics = update(state, given, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, once.params, state.params)
    assert int(once.updates) == 0
    assert metrics["loss"] == 0.0
    twice, metrics = update(once, given, jax.random.key(1))
    assert int(twice.updates) == 3, "the second update is the first to learn: at exactly the count asked for"
    assert metrics["loss"] > 0.0
    assert int(twice.memory.current_index) == 2 * T


def test_epsilon_falls_in_a_line_and_is_the_share_of_random_actions(learner):
    _, agent, _, state, _ = learner(epsilon_start=0.8, epsilon_end=0.2, epsilon_steps=1000, epsilon_evaluation=0.0)
    shares = []
    act = jax.jit(jax.vmap(agent.act, in_axes=(None, None, None, 0)))
    obs, keys = jnp.ones(3), jax.random.split(jax.random.key(0), 6000)
    for steps, epsilon in ((0, 0.8), (500, 0.5), (1000, 0.2), (9999, 0.2)):
        policy = agent.snapshot(state._replace(env_steps=jnp.int32(steps)))
        assert float(policy.exploration[0]) == pytest.approx(epsilon)
        actions = np.asarray(act(policy, (), obs, keys)[0])
        best = int(values(reference.double(state.params), np.ones((1, 3))).argmax())
        shares.append((actions != best).mean())
        assert shares[-1] == pytest.approx(epsilon * 2 / 3, abs=0.025)  # a random action is the best in one of three
        others = np.bincount(actions, minlength=3)[[a for a in range(3) if a != best]]
        assert abs(others[0] - others[1]) < 5 * np.sqrt(others.sum())
    greedy = agent.snapshot(state)._replace(explore=jnp.float32(0.0))
    assert set(np.asarray(act(greedy, (), obs, keys)[0]).tolist()) == {best}
    state = state._replace(hyper=state.hyper._replace(epsilon_evaluation=jnp.float32(0.3)))
    greedy = agent.snapshot(state)._replace(explore=jnp.float32(0.0))
    assert (np.asarray(act(greedy, (), obs, keys)[0]) != best).mean() == pytest.approx(0.2, abs=0.025)


VECTORS, CHOICES = (
    "presets that fit: a2c.*ppo, sac, td3, .*map_propagation",
    "presets that fit: a2c.*async_q.*dqn, .*linear",
)
REFUSED = [
    (
        "dqn",
        "gymnax:Pendulum-v1",
        {},
        f"dqn learns discrete actions.*continuous.*{VECTORS}",
    ),
    (
        "td3",
        "gymnax:CartPole-v1",
        {},
        f"td3 learns continuous actions.*discrete.*{CHOICES}",
    ),
    (
        "sac",
        "gymnax:CartPole-v1",
        {},
        f"sac learns continuous actions.*discrete.*{CHOICES}",
    ),
    ("dqn", "gymnax:CartPole-v1", {"network": {"lstm": 8}}, "lstm is not for replayed.*use ppo"),
    ("td3", "gymnax:Pendulum-v1", {"network": {"lstm": 8}}, "lstm is not for replayed.*use ppo"),
    ("sac", "gymnax:Pendulum-v1", {"network": {"lstm": 8}}, "lstm is not for replayed.*use ppo"),
    ("dqn", "gymnax:CartPole-v1", {"runtime": "hogwild"}, "hogwild.*dqn keeps a replay memory"),
    ("td3", "gymnax:Pendulum-v1", {"runtime": "hogwild"}, "hogwild.*td3 keeps a replay memory"),
    ("sac", "gymnax:Pendulum-v1", {"runtime": "hogwild"}, "hogwild.*sac keeps a replay memory"),
    ("ppo", "gymnax:CartPole-v1", {"runtime": "hogwild"}, "hogwild.*several gradient steps.*epochs.*minibatches to 1"),
]


@pytest.mark.parametrize(("preset", "env", "settings", "message"), REFUSED)
def test_what_does_not_fit_is_refused_with_what_does(preset, env, settings, message):
    request = presets.Request(
        preset, env, 1000, runtime=settings.get("runtime"),
        settings={kind: value for kind, value in settings.items() if kind != "runtime"},
    )  # fmt: skip
    with pytest.raises(errors.Refused, match=message):
        presets.resolve(request)


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_critics_of_actions_see_vectors_and_need_bounds(name, env_spec):
    from shoal.core import registry

    module = registry.load("algorithm", name)
    image = env_spec((8, 8, 1), low=(-1.0,), high=(1.0,))
    endless = env_spec((3,), low=(-1.0, -np.inf), high=(1.0, np.inf))
    assert "images" in module.fits(module.Config(), networks.Config(), image)
    assert "no bounds" in module.fits(module.Config(), networks.Config(), endless)
    assert module.fits(module.Config(), networks.Config(), env_spec((3,), low=(-1.0,), high=(1.0,))) == ""


@pytest.mark.parametrize(("preset", "env"), [("ppo", "gymnax:CartPole-v1"), ("td3", "gymnax:Pendulum-v1")])
def test_dueling_is_for_action_values_only(preset, env):
    from shoal import experiment

    request = presets.Request(preset, env, 1000, settings={"network": {"dueling": True}})
    with pytest.raises(errors.Refused, match=r"dueling.*drop it, or use dqn"):
        experiment.build(*presets.resolve(request))


@pytest.mark.parametrize("name", ["dqn", "td3", "sac"])
def test_a_memory_too_small_for_its_environments_is_refused(name, env_spec, build_agent):
    spec = env_spec((3,), **({"choices": 2} if name == "dqn" else {"low": (-1.0,), "high": (1.0,)}))
    for algorithm, needed in (({"capacity": 8, "n_step": 3, "rollout_length": 1}, 16), ({"capacity": 16}, 32)):
        given = {"rollout_length": 8} | algorithm
        with pytest.raises(errors.Refused, match=f"capacity={algorithm['capacity']} leaves.*give at least {needed}"):
            build_agent(spec, rule=name, streams=4, algorithm=given)
        build_agent(spec, rule=name, streams=4, algorithm=given | {"capacity": needed})


@pytest.mark.parametrize("preset", ["ppo", "dqn", "td3", "sac"])
def test_its_preset_resolves_where_it_is_meant_to_run(preset):
    made, opened = presets.resolve(presets.Request(preset))
    assert made.algorithm == preset
    assert made.runtime == "on_device"
    assert isinstance(opened, environments.Opened)


def test_ppo_of_one_gradient_step_runs_in_memory_that_processes_share(tmp_path, capsys):
    summary = faults.train(
        capsys, tmp_path / "run", "ppo", "--env", "probe:match", "--runtime", "hogwild", "--workers", 2,
        "--steps", 20_000, "--algorithm.epochs", 1, "--algorithm.minibatches", 1, "--algorithm.rollout-length", 16,
        "--optimiser.rule", "rmsprop", "--optimiser.learning-rate", 3e-3, evaluate=20,
    )  # fmt: skip
    assert summary["status"] == "completed"
    assert summary["eval_return_mean"] == 1.0
