"""Q-learning without a memory against float64 arithmetic written out, for a linear network, and against rlax."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from shoal.algorithms import q_learning
from shoal.core import errors, options, types
from shoal.networks import in_numpy
from shoal.runtimes.experience import rollouts
from tests import reference

T, B, N = 5, 2, 3
GAMMA = 0.9
MADE: dict[Any, Any] = {}  # agents, compiled once for all tests
RULES = ("one_step", "sarsa", "n_step")
NEITHER = np.zeros((T, B), bool)
TERMINAL, LIMIT = NEITHER.copy(), NEITHER.copy()
TERMINAL[1, 0] = LIMIT[3, 1] = True
LATE = NEITHER.copy()
LATE[T - 1, 0] = True
ENDS = {
    "neither": (NEITHER, NEITHER),
    "termination": (TERMINAL, NEITHER),
    "limit": (NEITHER, LIMIT),
    "both": (TERMINAL, LIMIT),
    "termination_last": (LATE, NEITHER),
    "limit_last": (NEITHER, LATE),
}


def spec_of(env_spec: Any) -> types.EnvSpec:
    return env_spec((3,), choices=N)


@pytest.fixture
def learner(env_spec, build_agent, rollout, ends):
    """(settings) -> (agent, state, two rollouts in a row)"""

    def made(*, terminal=TERMINAL, limit=LIMIT, local=False, optimiser=None, **settings):
        spec = spec_of(env_spec)
        given = {"rollout_length": T, "discount": GAMMA, **settings}
        named = (repr(sorted(given.items())), local, repr(optimiser))
        if named not in MADE:
            agent = build_agent(
                spec, rule="q_learning", streams=B, network={"hidden": ()}, algorithm=given, local=local,
                optimiser=optimiser or {"max_norm": 0.0},
            )  # fmt: skip
            MADE[named] = agent._replace(update=jax.jit(agent.update)), agent.init(jax.random.key(2))
        agent, state = MADE[named]
        slow = state.target._replace(params=reference.shaken(state.params, 8))
        state = state._replace(params=reference.shaken(state.params), target=slow)
        rollouts = []
        for seed in (3, 4):
            one = rollout(spec, T, B, seed=seed, ends=ends(terminal, limit))
            steps = one.transitions._replace(reward=3.0 * one.transitions.reward, extras=())
            rollouts.append(one._replace(transitions=steps))
        return agent, state, rollouts

    return made


def values(params: Any, obs: Any) -> Any:
    return reference.linear(params["q"], obs)


def expected_targets(
    rule: str, slow: Any, params: Any, chance: Any, steps: Any, following: Any, *, double: bool = False
) -> np.ndarray:
    """y ``[T, B]``, step by step from the end."""
    out = np.zeros(steps.reward.shape)
    for b in range(out.shape[1]):
        for t in reversed(range(len(out))):
            after = values(slow, steps.next_obs[t, b])
            best = after[values(params, steps.next_obs[t, b]).argmax()] if double else after.max()
            goes_on = steps.discount[t, b] == 1 and not steps.truncated[t, b] and t + 1 < len(out)
            if rule == "n_step":
                following_value = out[t + 1, b] if goes_on else best
            elif rule == "one_step":
                following_value = best
            elif steps.truncated[t, b]:
                greedy = after[values(params, steps.next_obs[t, b]).argmax()]
                following_value = (1 - chance[b]) * greedy + chance[b] * after.mean()
            else:
                following_value = after[following[t, b]]
            out[t, b] = steps.reward[t, b] + GAMMA * steps.discount[t, b] * following_value
    return out


def expected_gradient(rule, state, steps, following, there, huber=0.0, *, double=False):
    params, slow, steps = reference.double((state.params, state.target.params, steps))
    chance = np.full(B, 1.0)  # no step was taken yet: epsilon_start
    y = expected_targets(rule, slow, params, chance, steps, following, double=double)
    q = values(params, steps.obs)
    error = y - np.take_along_axis(q, steps.action[..., None], -1)[..., 0]
    slope = np.clip(error, -huber, huber) if huber else error
    d_q = np.zeros_like(q)
    np.put_along_axis(d_q, steps.action[..., None], -(slope * there)[..., None], -1)
    return {"q": reference.linear_gradient(steps.obs.reshape(-1, 3), d_q.reshape(-1, N))}


def shifted(first: Any, second: Any) -> tuple[Any, np.ndarray]:
    """Sarsa's second segment: it begins with the last step of the first; and the actions taken after each step."""
    held = jax.tree.map(lambda a, b: np.concatenate([a[-1:], b[:-1]]), first.transitions, second.transitions)
    return held, np.asarray(second.transitions.action)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_equals_the_arithmetic_written_out(rule, end, learner):
    terminal, limit = ENDS[end]
    agent, state, (first, second) = learner(target=rule, terminal=terminal, limit=limit)
    moved, _ = agent.update(state, first, jax.random.key(0))
    again, _ = agent.update(moved._replace(env_steps=state.env_steps), second, jax.random.key(0))
    found = [moved.optimiser.gradient, again.optimiser.gradient]
    steps, following = [first.transitions, second.transitions], [None, None]
    there = [np.ones((T, B)), np.ones((T, B))]
    if rule == "sarsa":
        steps[1], following[1] = shifted(first, second)
        nothing = jax.tree.map(np.zeros_like, first)
        steps[0], following[0] = shifted(nothing, first)
        there[0][0] = 0.0
    for i in range(2):
        wanted = expected_gradient(rule, state, steps[i], following[i], there[i])
        reference.assert_close(found[i], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_errors_beyond_the_threshold_count_linearly_if_asked_for(rule, learner):
    agent, state, (first, second) = learner(target=rule, huber=0.7)
    moved = agent.update(state, first, jax.random.key(0))[0]._replace(env_steps=state.env_steps)
    steps, following = shifted(first, second) if rule == "sarsa" else (second.transitions, None)
    wanted = expected_gradient(rule, state, steps, following, np.ones((T, B)), huber=0.7)
    found = agent.update(moved, second, jax.random.key(0))[0].optimiser.gradient
    reference.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("end", ["both", "limit_last"])
@pytest.mark.parametrize("rule", ["one_step", "n_step"])
def test_the_double_estimate_takes_the_target_value_of_the_action_that_is_best_now(rule, end, learner):
    terminal, limit = ENDS[end]
    agent, state, (first, _) = learner(target=rule, double=True, terminal=terminal, limit=limit)
    found = agent.update(state, first, jax.random.key(0))[0].optimiser.gradient
    given = (rule, state, first.transitions, None, np.ones((T, B)))
    reference.assert_close(found, expected_gradient(*given, double=True), rtol=1e-5, atol=1e-5)
    single = expected_gradient(*given)["q"]
    assert any(
        np.abs(a - b).max() > 0.01 for a, b in zip(jax.tree.leaves(found["q"]), jax.tree.leaves(single), strict=True)
    )


def test_the_mean_is_the_sum_divided(learner):
    gradients = []
    for reduction in ("sum", "mean"):
        agent, state, (first, _) = learner(reduction=reduction)
        gradients.append(agent.update(state, first, jax.random.key(0))[0].optimiser.gradient)
    reference.assert_close(gradients[0], jax.tree.map(lambda leaf: leaf * T * B, gradients[1]), rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_targets_equal_rlax(rule, learner, rlax, lenient):
    agent, state, (first, _) = learner(target=rule, limit=NEITHER)
    config = options.build(q_learning.Config, {"target": rule, "rollout_length": T}, "algorithm")
    steps, following = first.transitions, jnp.roll(first.transitions.action, 1, axis=0)
    asked = q_learning.Rule(config, agent.about.networks["policy"], B)
    found = q_learning.targets(asked, state, steps, following if rule == "sarsa" else ())
    after = q_learning._over(asked, state.target.params, state, steps.next_obs)
    discount, zeros = GAMMA * steps.discount, jnp.zeros((T, N))
    with lenient():
        for b in range(B):
            if rule == "n_step":
                wanted = rlax.lambda_returns(steps.reward[:, b], discount[:, b], after[:, b].max(-1), 1.0)
            else:  # with Q = 0 the error is the target
                name, more = ("sarsa", (following[:, b],)) if rule == "sarsa" else ("q_learning", ())
                one = jax.vmap(functools.partial(getattr(rlax, name)))
                wanted = one(zeros, steps.action[:, b], steps.reward[:, b], discount[:, b], after[:, b], *more)
            np.testing.assert_allclose(found[:, b], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_constant_target_is_not_differentiated(rule, learner):
    """Were θ⁻ or the target's θ part of the derivative, the gradient at y = Q would not be 0."""
    agent, state, (first, _) = learner(target=rule, terminal=NEITHER, limit=NEITHER)
    q = values(state.params, np.asarray(first.transitions.obs))
    taken = np.take_along_axis(q, np.asarray(first.transitions.action)[..., None], -1)[..., 0]
    state = state._replace(hyper=state.hyper._replace(discount=jnp.float32(0.0)))
    exact = first._replace(transitions=first.transitions._replace(reward=jnp.asarray(taken)))
    gradient = agent.update(state, exact, jax.random.key(0))[0].optimiser.gradient
    assert all(np.abs(leaf).max() < 1e-4 for leaf in jax.tree.leaves(gradient))


def test_sarsa_forgets_what_was_pending_when_streams_break_off(learner):
    agent, state, (first, second) = learner(target="sarsa")
    moved = agent.update(state, first, jax.random.key(0))[0]
    assert moved.pending.there.all()
    np.testing.assert_array_equal(moved.pending.step.obs, first.transitions.obs[-1])
    broken = agent.about.restart(moved)
    assert not broken.pending.there.any()
    fresh = agent.update(state, second, jax.random.key(0))[0]
    after = agent.update(broken._replace(env_steps=state.env_steps), second, jax.random.key(0))[0]
    reference.assert_close(after.optimiser.gradient, fresh.optimiser.gradient, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ corrected targets

LEARNED, LAMBDA = 0.3, 0.8
TRACES = {  # corrector -> (ratio, probability under the learner's policy) -> trace, λ apart
    "retrace": lambda rho, _: np.minimum(1.0, rho),
    "tree_backup": lambda _, pi: pi,
    "q_lambda": lambda rho, _: np.ones_like(rho),
}


@pytest.fixture
def corrected(env_spec, build_agent, rollout, ends):
    """(corrector, ends, settings) -> (agent, update, state, rollout of another policy)"""

    def made(corrector, terminal=TERMINAL, limit=LIMIT, correction=None, **settings):
        given = {"target": "n_step", "rollout_length": T, "discount": GAMMA, "epsilon_learned": LEARNED, **settings}
        correction = {"lambda_": LAMBDA, **(correction or {})}
        named = (corrector, repr(sorted(given.items())), repr(sorted(correction.items())))
        if named not in MADE:
            agent = build_agent(
                spec_of(env_spec), rule="q_learning", streams=B, network={"hidden": ()}, algorithm=given,
                corrector=corrector, correction=correction,
            )  # fmt: skip
            MADE[named] = agent, jax.jit(agent.update)
        agent, update = MADE[named]
        state = agent.init(jax.random.key(2))
        slow = state.target._replace(params=reference.shaken(state.params, 8))
        state = state._replace(params=reference.shaken(state.params), target=slow)
        return agent, update, state, rollout(spec_of(env_spec), T, B, seed=3, ends=ends(terminal, limit))

    return made


def seen_by_hand(state, steps):
    """Float64 [T, B]: (π(a|x) of the learner's policy, π/μ, Q(x, a; θ⁻), E_π Q(x', ·; θ⁻))."""
    params, slow, steps = reference.double((state.params, state.target.params, steps))
    pi, taken, following = (np.zeros((T, B)) for _ in range(3))
    for t in range(T):
        for b in range(B):
            action = steps.action[t, b]
            best = values(params, steps.obs[t, b]).argmax() == action
            pi[t, b] = LEARNED / N + (1 - LEARNED) * best
            taken[t, b] = values(slow, steps.obs[t, b])[action]
            after, greedy = values(slow, steps.next_obs[t, b]), values(params, steps.next_obs[t, b]).argmax()
            following[t, b] = (1 - LEARNED) * after[greedy] + LEARNED * after.mean()
    return pi, pi / np.exp(steps.extras.log_prob), taken, following


def corrected_by_hand(steps, trace, taken, following):
    """G, from the end."""
    out = np.zeros((T, B))
    for b in range(B):
        for t in reversed(range(T)):
            goes_on = steps.discount[t, b] == 1 and not steps.truncated[t, b] and t + 1 < T
            later = trace[t + 1, b] * (out[t + 1, b] - taken[t + 1, b]) if goes_on else 0.0
            out[t, b] = steps.reward[t, b] + GAMMA * steps.discount[t, b] * (following[t, b] + later)
    return out


def gradient_towards(goal, weight, state, steps):
    params, steps = reference.double((state.params, steps))
    q = values(params, steps.obs)
    error = goal - np.take_along_axis(q, steps.action[..., None], -1)[..., 0]
    d_q = np.zeros_like(q)
    np.put_along_axis(d_q, steps.action[..., None], -(weight * error)[..., None], -1)
    return {"q": reference.linear_gradient(steps.obs.reshape(-1, 3), d_q.reshape(-1, N))}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", TRACES)
def test_the_corrected_gradient_equals_the_arithmetic_written_out(name, end, corrected):
    _, update, state, given = corrected(name, *ENDS[end])
    after, metrics = update(state, given, jax.random.key(0))
    pi, rho, taken, following = seen_by_hand(state, given.transitions)
    goal = corrected_by_hand(given.transitions, LAMBDA * TRACES[name](rho, pi), taken, following)
    reference.assert_close(
        after.optimiser.gradient, gradient_towards(goal, 1.0, state, given.transitions), rtol=1e-5, atol=1e-5
    )
    if name == "retrace":
        assert metrics["ess"] == pytest.approx(rho.sum() ** 2 / (rho.size * (rho**2).sum()), rel=1e-4)
        assert metrics["clip_fraction"] == pytest.approx((rho > 1).mean())
    else:
        assert "ess" not in metrics


def test_steps_are_weighed_and_rejected_ones_leave_the_mean(corrected):
    choice = {"weight": "icepop", "low": 0.25, "high": 2.2}
    _, update, state, given = corrected("retrace", correction=choice, reduction="mean")
    after, metrics = update(state, given, jax.random.key(0))
    _, rho, taken, following = seen_by_hand(state, given.transitions)
    goal = corrected_by_hand(given.transitions, LAMBDA * np.minimum(1.0, rho), taken, following)
    kept = (rho >= 0.25) & (rho <= 2.2)
    assert 0 < kept.sum() < T * B
    weight = np.where(kept, rho, 0.0) / kept.sum()
    reference.assert_close(
        after.optimiser.gradient, gradient_towards(goal, weight, state, given.transitions), rtol=1e-5, atol=1e-5
    )
    assert metrics["rejected_low"] + metrics["rejected_high"] == pytest.approx(1 - kept.mean())


def test_who_acted_is_remembered_where_it_is_looked_at(corrected):
    """Of the ε-greedy policy that really acted; the stream's own ε is the learner's here, so nothing is corrected."""
    for name in ("tree_backup", "q_lambda"):
        agent, _, state, _ = corrected(name)
        assert agent.act(agent.snapshot(state), (), jnp.ones(3), jax.random.key(0))[1] == ()
    agent, update, state, given = corrected("retrace", epsilon_start=LEARNED, epsilon_ends=(LEARNED,),
                                            epsilon_weights=(1.0,))  # fmt: skip
    policy, obs = agent.snapshot(state), given.transitions.obs.reshape(-1, 3)
    keys = jax.random.split(jax.random.key(1), T * B)
    action, extras, _ = jax.vmap(agent.act, in_axes=(None, None, 0, 0))(policy, (), obs, keys)
    best = values(reference.double(state.params), np.asarray(obs)).argmax(axis=-1) == np.asarray(action)
    np.testing.assert_allclose(extras.log_prob, np.log(LEARNED / N + (1 - LEARNED) * best), rtol=1e-5)
    assert 0 < best.sum() < T * B
    shaped = [leaf.reshape(T, B) for leaf in (action, extras.log_prob)]
    own = given.transitions._replace(action=shaped[0], extras=types.Chosen(shaped[1]))
    metrics = update(state, given._replace(transitions=own), jax.random.key(0))[1]
    assert metrics["ess"] == pytest.approx(1.0, rel=1e-5)
    assert metrics["dlogp"] == pytest.approx(0.0, abs=1e-5)


def test_the_numpy_decision_remembers_it_too(env_spec, build_agent):
    agent = build_agent(
        spec_of(env_spec), rule="q_learning", corrector="retrace", network={"hidden": (4,)},
        algorithm={"epsilon_steps": 10, "target": "n_step"},
    )  # fmt: skip
    state = jax.tree.map(np.array, agent.init(jax.random.key(0)))
    state.epsilon_end[...], state.env_steps[...] = 0.25, 99
    act, obs = in_numpy.deciding(agent.about, state, np.random.default_rng(0)), np.array([0.3, -0.2, 0.5], np.float32)
    best = int(np.argmax(agent.about.networks["policy"].apply(state.params, obs, ())[0]["q"]))
    told = {action: extras.log_prob for action, extras in (act(obs) for _ in range(200))}
    assert told == {a: pytest.approx(np.log(0.25 / N + 0.75 * (a == best))) for a in range(N)}


def test_a_policy_to_learn_that_nothing_corrects_for_is_refused(env_spec, build_agent):
    with pytest.raises(errors.Refused, match="changes nothing without a corrector"):
        build_agent(spec_of(env_spec), rule="q_learning", algorithm={"target": "n_step", "epsilon_learned": 0.3})


def test_the_double_estimate_of_corrected_targets_is_refused(env_spec, build_agent):
    with pytest.raises(errors.Refused, match="double changes nothing with a corrector"):
        build_agent(
            spec_of(env_spec), rule="q_learning", corrector="retrace", algorithm={"target": "n_step", "double": True}
        )


# ------------------------------------------------------------------------------------------------ the target network


@pytest.mark.parametrize(("before", "period", "due"), [(0, 10, True), (0, 11, False), (5, 15, True), (15, 20, True),
                                                       (20, 20, False), (35, 20, True)])  # fmt: skip
def test_the_target_is_copied_where_the_steps_pass_a_multiple(before, period, due, learner):
    agent, state, (first, _) = learner(local=True, optimiser=reference.RMSPROP, target_period=10**6)
    slow = state.target._replace(period=jnp.float32(period))  # a leaf: nothing is compiled again
    state = state._replace(env_steps=jnp.int32(before), target=slow)
    after = agent.update(state, first, jax.random.key(0))[0]  # 10 steps
    wanted = after.params if due else state.target.params
    jax.tree.map(np.testing.assert_array_equal, after.target.params, wanted)
    assert float(np.abs(after.params["q"]["kernel"] - state.params["q"]["kernel"]).max()) > 0


# ------------------------------------------------------------------------------------------------ exploration


def test_final_epsilons_are_drawn_as_in_the_paper():
    drawn = np.asarray(q_learning.draw(q_learning.Config(), 20_000, jax.random.key(0)))
    counts = [int((drawn == np.float32(end)).sum()) for end in (0.1, 0.01, 0.5)]
    assert sum(counts) == 20_000
    assert scipy.stats.chisquare(counts, [8000, 6000, 6000]).pvalue > 1e-3
    alone = q_learning.draw(q_learning.Config(epsilon_ends=(0.3,), epsilon_weights=(2.0,)), 4, jax.random.key(0))
    np.testing.assert_array_equal(alone, np.full(4, 0.3, np.float32))


def test_epsilon_falls_in_a_line_with_the_steps_of_all(learner):
    _, state, _ = learner(epsilon_steps=100)
    state = state._replace(epsilon_end=jnp.asarray([0.1, 0.5]))
    for env_steps, wanted in ((0, [1.0, 1.0]), (50, [0.55, 0.75]), (100, [0.1, 0.5]), (10**6, [0.1, 0.5])):
        np.testing.assert_allclose(q_learning.epsilon(state, jnp.int32(env_steps)), wanted, rtol=1e-6)


def test_every_stream_explores_by_its_own_epsilon(learner):
    agent, state, _ = learner(epsilon_start=0.0, epsilon_steps=1)
    state = state._replace(epsilon_end=jnp.asarray([0.0, 1.0]), env_steps=jnp.int32(1))
    policy, obs = agent.snapshot(state), jnp.ones((B, 3))
    act = jax.jit(lambda policy, keys: rollouts.act_all(agent, policy, (), obs, keys)[0])
    found = np.stack([act(policy, jax.random.split(jax.random.key(i), B)) for i in range(60)])
    best = int(values(state.params, np.ones(3)).argmax())
    assert (found[:, 0] == best).all()
    assert set(found[:, 1].tolist()) == {0, 1, 2}
    greedy = act(policy._replace(explore=jnp.float32(0.0)), jax.random.split(jax.random.key(0), B))
    assert greedy.tolist() == [best, best]


def test_the_numpy_decision_follows_the_learner(env_spec, build_agent):
    agent = build_agent(spec_of(env_spec), rule="q_learning", algorithm={"epsilon_steps": 10}, network={"hidden": (4,)})
    state = jax.tree.map(np.array, agent.init(jax.random.key(0)))
    state.epsilon_end[...] = 0.25
    act, obs = in_numpy.deciding(agent.about, state, np.random.default_rng(0)), np.array([0.3, -0.2, 0.5], np.float32)
    outputs = agent.about.networks["policy"].apply(state.params, obs, ())[0]["q"]
    best, count = int(np.argmax(outputs)), 4000
    for env_steps, wanted in ((0, 1.0), (4, 0.7), (10, 0.25), (99, 0.25)):  # written over, as a worker does
        state.env_steps[...] = env_steps
        actions = np.array([act(obs)[0] for _ in range(count)])
        chances = np.full(N, wanted / N)
        chances[best] += 1 - wanted
        assert scipy.stats.chisquare(np.bincount(actions, minlength=N), count * chances).pvalue > 1e-3
    assert act(obs)[1] == ()
    state.epsilon_end[...] = 0.0
    for leaf in jax.tree.leaves(state.params):
        leaf[...] = -leaf
    flipped = agent.about.networks["policy"].apply(state.params, obs, ())[0]["q"]
    assert act(obs)[0] == int(np.argmax(flipped))


def test_small_networks_and_those_of_pictures_decide_in_numpy(env_spec, build_agent):
    build = functools.partial(build_agent, rule="q_learning")
    assert in_numpy.decides(build(spec_of(env_spec)).about)
    assert not in_numpy.decides(build(spec_of(env_spec), network={"dueling": True}).about)
    assert not in_numpy.decides(build(spec_of(env_spec), algorithm={"normalise_observations": True}).about)
    assert in_numpy.decides(build(env_spec((5, 5, 1), choices=2)).about)
    assert not in_numpy.decides(build(env_spec((5, 5, 1), choices=2), network={"hidden": (1024,)}).about)


@pytest.mark.parametrize(
    ("algorithm", "lstm", "story"),
    [
        ({"epsilon_ends": (0.1,)}, 0, "as many algorithm.epsilon_weights"),
        ({"epsilon_ends": (), "epsilon_weights": ()}, 0, "as many"),
        ({"epsilon_weights": (0.0, 0.0, 0.0)}, 0, "above 0"),
        ({}, 8, "network.lstm"),
        ({"target": "sarsa", "double": True}, 0, "double changes nothing about Sarsa"),
    ],
)
def test_what_cannot_be_learned_so_is_told(algorithm, lstm, story, env_spec):
    from shoal import networks

    config = options.build(q_learning.Config, algorithm, "algorithm")
    assert story in q_learning.fits(config, networks.Config(lstm=lstm), spec_of(env_spec))
    assert q_learning.fits(q_learning.Config(), networks.Config(), spec_of(env_spec)) == ""
