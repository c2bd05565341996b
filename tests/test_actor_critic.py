from __future__ import annotations

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.algorithms import _values, actor_critic
from shoal.core import types
from shoal.networks import in_numpy
from tests import conftest

T, B = 6, 2
NONE = np.zeros((T, B), bool)


def at(*places):
    """Flags ``[T, B]`` that are set at (t, b)."""
    flags = NONE.copy()
    for place in places:
        flags[place] = True
    return flags


ENDS = {  # (terminations, time limits)
    "neither": (NONE, NONE),
    "terminal": (at((2, 0)), NONE),
    "limit": (NONE, at((2, 0), (4, 1))),
    "both": (at((1, 0), (3, 1)), at((3, 0), (0, 1))),
    "last": (at((T - 1, 0)), at((T - 1, 1))),
}


# ------------------------------------------------------------------------------------------------ float64 reference


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def forward(params, obs, carry):
    """The networks of these tests, one observation: (policy head, value, carry)."""
    x = np.tanh(obs @ params["trunk_dense_0"]["kernel"] + params["trunk_dense_0"]["bias"])
    if "trunk_lstm" in params:
        gates, (c, h) = params["trunk_lstm"], carry
        i, f, g, o = (
            x @ gates[f"i{k}"]["kernel"] + h @ gates[f"h{k}"]["kernel"] + gates[f"h{k}"]["bias"] for k in "ifgo"
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        x = sigmoid(o) * np.tanh(c)
        carry = (c, x)
    head, value = (x @ params[name]["kernel"] + params[name]["bias"] for name in ("policy", "value"))
    return head, value[0], carry


def log_prob_and_entropy(head, action):
    if np.ndim(action) == 0:
        log_p = head - head.max() - np.log(np.exp(head - head.max()).sum())
        return log_p[action], -(np.exp(log_p) * log_p).sum()
    mean, raw = np.split(head, 2)
    variance = np.log1p(np.exp(raw)) + 1e-4
    log_prob = -0.5 * ((action - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum()
    return log_prob, 0.5 * np.log(2 * np.pi * np.e * variance).sum()


def walk(params, rollout, b):
    """(head, value, value of the true successor) of each step of one stream; the state restarts after an end."""
    steps = rollout.transitions
    cells = params["trunk_lstm"]["hi"]["bias"].size if "trunk_lstm" in params else 0
    carry = tuple(leaf[b] for leaf in rollout.carry["trunk_lstm"]) if cells else ()
    for t in range(T):
        head, value, carry = forward(params, steps.obs[t, b], carry)
        yield head, value, forward(params, steps.next_obs[t, b], carry)[1]
        if cells and (steps.truncated[t, b] or steps.discount[t, b] == 0):
            carry = (np.zeros(cells), np.zeros(cells))


def targets(params, rollout, config):
    """n-step returns ``[T, B]`` and the advantages; both constants of the loss."""
    steps = rollout.transitions
    target, advantage = np.zeros((T, B)), np.zeros((T, B))
    for b in range(B):
        _, value, next_value = zip(*walk(params, rollout, b), strict=True)
        for t in reversed(range(T)):
            over = t == T - 1 or steps.truncated[t, b] or steps.discount[t, b] == 0
            future = next_value[t] if over else target[t + 1, b]
            reward = steps.reward[t, b] * config.reward_scale
            reward = np.clip(reward, -config.reward_clip, config.reward_clip) if config.reward_clip else reward
            target[t, b] = reward + config.discount * steps.discount[t, b] * future
            advantage[t, b] = target[t, b] - value[t]
    return target, advantage


def objective(params, rollout, config, target, advantage):
    total = 0.0
    for b in range(B):
        for t, (head, value, _) in enumerate(walk(params, rollout, b)):
            log_prob, entropy = log_prob_and_entropy(head, rollout.transitions.action[t, b])
            critic = config.value_cost * 0.5 * (target[t, b] - value) ** 2
            total += critic - log_prob * advantage[t, b] - config.entropy_cost * entropy
    return total if config.reduction == "sum" else total / (T * B)


def reference(params, rollout, config):
    """The gradient by central differences, in float64."""
    params, rollout = jax.tree.map(double, (params, rollout))
    constants = targets(params, rollout, config)
    gradient = copy.deepcopy(params)
    for leaf, out in zip(jax.tree.leaves(params), jax.tree.leaves(gradient), strict=True):
        for i in np.ndindex(leaf.shape):
            here, sides = leaf[i], []
            for step in (1e-5, -1e-5):
                leaf[i] = here + step
                sides.append(objective(params, rollout, config, *constants))
            leaf[i] = here
            out[i] = (sides[0] - sides[1]) / 2e-5
    return gradient


def double(leaf):
    leaf = np.array(leaf)
    return leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf


def assert_close(found, expected):
    """Relative error of the whole vector, and of every leaf by itself, at most 1e-5."""
    vectors = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (found, expected)]
    pairs = [vectors, *zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)]
    for ours, theirs in pairs:
        assert np.linalg.norm(np.asarray(ours, np.float64) - theirs) <= 1e-5 * np.linalg.norm(theirs)


# ------------------------------------------------------------------------------------------------ agents


class Case:
    """An agent, a state whose biases and outputs are not those of the start, and its compiled gradient."""

    def __init__(self, env_spec, build_agent, *, kind="categorical", lstm=0, corrector="none", **algorithm):
        gaussian = {"low": (-1.0, -1.0), "high": (1.0, 1.0)}
        self.spec = env_spec((3,), **(gaussian if kind == "gaussian" else {"choices": 3}))
        network = {"hidden": (3,), "lstm": lstm}
        self.config = actor_critic.Config(rollout_length=T, **algorithm)
        given = {"algorithm": {"rollout_length": T, **algorithm}, "network": network}
        self.agent = build_agent(self.spec, corrector=corrector, **given)
        self.traces = 0
        state = jax.jit(self.agent.init)(jax.random.key(0))
        rng = np.random.default_rng(7)
        params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.5, leaf.shape).astype(np.float32), state.params)
        self.state = state._replace(params=params)
        self.update = jax.jit(self._update, compiler_options=conftest.AS_USERS)

    def _update(self, state, rollout):
        self.traces += 1
        return self.agent.update(state, rollout, jax.random.key(0))

    def gradient(self, rollout):
        return self.update(self.state, rollout)[0].optimiser.gradient

    def carry(self, seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: rng.normal(0, 0.5, (B, *leaf.shape)).astype(np.float32), self.agent.about.carry
        )


@pytest.fixture(scope="module")
def case():
    """Cases by their settings, each compiled once."""
    return functools.cache(lambda **settings: Case(conftest.env_spec, conftest.build_agent, **settings))


ODD = {"value_cost": 0.9, "entropy_cost": 0.3, "discount": 0.8}
CASES = {
    "feed_forward": {"kind": "categorical"},
    "lstm": {"kind": "categorical", "lstm": 4, "reward_scale": 2.5, "reward_clip": 0.7},
    "gaussian": {"kind": "gaussian", "reduction": "mean", **ODD},
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_equals_a_float64_reference_whatever_ends(name, case, rollout, ends):
    chosen = case(**CASES[name])
    for seed, (terminal, limit) in enumerate(ENDS.values()):
        given = rollout(chosen.spec, T, B, seed=seed, ends=ends(terminal, limit), carry=chosen.carry(seed))
        assert_close(chosen.gradient(given), reference(chosen.state.params, given, chosen.config))
    assert chosen.traces == 1


@pytest.mark.parametrize("name", ["feed_forward", "lstm"])
def test_vtrace_with_the_policy_that_acted_is_no_correction(name, case, rollout, ends):
    plain, corrected = case(**CASES[name]), case(**CASES[name], corrector="vtrace")
    given = rollout(plain.spec, T, B, seed=3, ends=ends(*ENDS["both"]), carry=plain.carry(3))
    on_policy = with_log_prob(plain, given)
    expected = plain.gradient(on_policy)
    assert_close(corrected.gradient(on_policy), jax.tree.map(double, expected))
    other = corrected.gradient(given)  # and somebody else's actions are corrected for
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(*map(jax.tree.leaves, (expected, other)), strict=True))


def with_log_prob(case, rollout):
    """The rollout as if the state's policy had acted."""
    params, whole = jax.tree.map(double, (case.state.params, rollout))
    log_prob = np.zeros((T, B), np.float32)
    for b in range(B):
        for t, (head, _, _) in enumerate(walk(params, whole, b)):
            log_prob[t, b], _ = log_prob_and_entropy(head, whole.transitions.action[t, b])
    steps = rollout.transitions._replace(extras=actor_critic.Remembered(jnp.asarray(log_prob)))
    return rollout._replace(transitions=steps)


@pytest.mark.parametrize("limit_inside", [False, True])
def test_a_time_limit_bootstraps_from_the_true_successor_only(limit_inside, case, rollout, ends):
    chosen = case(**CASES["feed_forward"])
    limit = at((2, 0)) if limit_inside else at((T - 1, 0))
    given = rollout(chosen.spec, T, B, seed=1, ends=ends(NONE, limit))
    before = chosen.gradient(given)
    t = 2 if limit_inside else T - 1
    moved = given.transitions.next_obs.at[t, 0].add(1.0)
    after = chosen.gradient(given._replace(transitions=given.transitions._replace(next_obs=moved)))
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)) > 1e-3


def test_nothing_is_bootstrapped_after_a_termination(case, rollout, ends):
    chosen = case(**CASES["feed_forward"])
    given = rollout(chosen.spec, T, B, seed=1, ends=ends(at((2, 0), (T - 1, 0), (T - 1, 1)), at((0, 1))))
    terminal = given.transitions.discount == 0
    wild = jnp.where(terminal[..., None], 1e3, given.transitions.next_obs)
    after = chosen.gradient(given._replace(transitions=given.transitions._replace(next_obs=wild)))
    jax.tree.map(np.testing.assert_array_equal, chosen.gradient(given), after)


# ------------------------------------------------------------------------------------------------ memory


def acted(case, steps, obs, over):
    """One stream by `agent.act`, restarted after ends: (log_probs, actions, carries before each step)."""
    policy, act = case.agent.snapshot(case.state), jax.jit(case.agent.act)
    carry, log_probs, actions, carries = case.agent.about.carry, [], [], []
    for t in range(steps):
        carries.append(carry)
        action, extras, carry = act(policy, carry, obs[t], jax.random.key(t))
        carry = case.agent.about.carry if over[t] else carry
        log_probs.append(extras.log_prob)
        actions.append(action)
    return np.array(log_probs), np.array(actions), carries


def test_learning_remembers_what_acting_remembered_over_two_segments(case):
    chosen = case(**CASES["lstm"])
    obs = jax.random.normal(jax.random.key(1), (2 * T, 3))
    over = np.zeros(2 * T, bool)
    over[[3, T + 2]] = True
    log_probs, actions, carries = acted(chosen, 2 * T, obs, over)
    network, head = (
        chosen.agent.about.networks["policy"],
        jax.jit(jax.vmap(lambda output, action: jax.nn.log_softmax(output)[action])),
    )
    rule = _values.Rule(chosen.config, network, None, None, None)
    along = jax.jit(functools.partial(_values.along_all, rule))
    for first in (0, T):
        part = slice(first, first + T)
        zeros, flags = jnp.zeros(T), jnp.asarray(over[part])
        steps = types.Transition(obs[part], actions[part], zeros, 1.0 - zeros, flags, obs[part], ())
        one = jax.tree.map(lambda leaf: leaf[None], carries[first])
        found = along(chosen.state.params, (), jax.tree.map(lambda leaf: leaf[:, None], steps), one)
        output, after = jax.tree.map(lambda leaf: leaf[:, 0], (found[0], found[2]))
        np.testing.assert_allclose(head(output, actions[part]), log_probs[part], rtol=1e-5, atol=1e-6)
        # The state after each step is the one the actor went on with; the bootstrap did not advance it.
        for t in range(T - 1):
            if not over[first + t]:
                here = jax.tree.map(lambda leaf, t=t: leaf[t], after)
                jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), here, carries[first + t + 1])


def test_the_bootstrap_reads_the_recurrent_state_and_leaves_it(case, rollout, ends):
    chosen = case(**CASES["lstm"])
    rule = _values.Rule(chosen.config, chosen.agent.about.networks["policy"], None, None, None)
    given = rollout(chosen.spec, T, B, seed=2, ends=ends(*ENDS["limit"]), carry=chosen.carry(2))
    along = jax.jit(functools.partial(_values.along_all, rule, chosen.state.params, ()))
    _, value, after = along(given.transitions, given.carry)
    kept = jax.tree.map(np.array, after)
    found = jax.jit(functools.partial(_values.bootstrap, rule))(
        chosen.state.params, (), given.transitions, value, after
    )
    jax.tree.map(np.testing.assert_array_equal, after, kept)
    params, whole = jax.tree.map(double, (chosen.state.params, given))
    expected = np.array([[each[2] for each in walk(params, whole, b)] for b in range(B)]).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the rest


def test_hyperparameters_are_leaves_and_need_no_recompilation(case, rollout):
    chosen = case(**CASES["feed_forward"])
    given = rollout(chosen.spec, T, B, seed=0)
    seen = {np.asarray(chosen.gradient(given)["value"]["bias"]).tobytes()}
    for name in chosen.state.hyper._fields:
        hyper = chosen.state.hyper._replace(**{name: jnp.float32(0.25)})
        found = chosen.update(chosen.state._replace(hyper=hyper), given)[0].optimiser.gradient
        seen.add(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)]).tobytes())
    assert len(seen) == 1 + len(chosen.state.hyper._fields)
    assert chosen.traces == 1


def test_an_update_counts_environment_steps_and_tells_its_numbers(case, rollout):
    chosen = case(**CASES["feed_forward"])
    given = rollout(chosen.spec, T, B, seed=0)
    state, metrics = chosen.update(chosen.state, given)
    assert state.env_steps == T * B
    assert state.env_steps.dtype == jnp.int32
    assert all(np.isfinite(value) for value in metrics.values())
    squares = [np.sum(np.square(double(leaf))) for leaf in jax.tree.leaves(state.optimiser.gradient)]
    assert metrics["gradient_norm"] == pytest.approx(np.sqrt(np.sum(squares)), rel=1e-5)
    whole, params = jax.tree.map(double, given), jax.tree.map(double, chosen.state.params)
    entropies = [log_prob_and_entropy(head, 0)[1] for b in range(B) for head, _, _ in walk(params, whole, b)]
    assert metrics["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)


def test_greedy_is_the_mode_and_exploring_samples_its_probabilities(case):
    chosen = case(**CASES["feed_forward"])
    policy, obs = chosen.agent.snapshot(chosen.state), jnp.array([0.3, -1.0, 0.5])
    act = jax.jit(jax.vmap(chosen.agent.act, in_axes=(None, None, None, 0)))
    keys = jax.random.split(jax.random.key(0), 4000)
    head = forward(jax.tree.map(double, chosen.state.params), double(obs), ())[0]
    probabilities = np.exp(head) / np.exp(head).sum()
    actions, extras, _ = act(policy, (), obs, keys)
    np.testing.assert_allclose(np.bincount(actions, minlength=3) / 4000, probabilities, atol=0.03)
    np.testing.assert_allclose(np.exp(extras.log_prob), probabilities[np.asarray(actions)], rtol=1e-4)
    greedy, _, _ = act(policy._replace(explore=jnp.float32(0.0)), (), obs, keys)
    assert set(np.asarray(greedy).tolist()) == {int(np.argmax(head))}


def test_small_networks_act_in_numpy_and_others_say_no(env_spec, build_agent):
    spec = env_spec((3,), choices=2)
    assert in_numpy.decides(build_agent(spec).about)
    assert not in_numpy.decides(build_agent(spec, network={"lstm": 3}).about)
    assert not in_numpy.decides(build_agent(spec, network={"hidden": (64, 512)}).about)
    assert not in_numpy.decides(build_agent(spec, algorithm={"normalise_observations": True}).about)
    assert in_numpy.decides(build_agent(env_spec((5, 5, 1), choices=2)).about)
    assert not in_numpy.decides(build_agent(env_spec((5, 5, 1), choices=2), network={"hidden": (1024,)}).about)
