"""PPO against float64 arithmetic written out: gradients by hand for a linear network, every step of an update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.algorithms import _values, ppo
from shoal.core import errors, options, prng, registry
from shoal.formulas import normalise
from tests import reference

T, B = 6, 2
NONE = np.zeros((T, B), bool)
TERMINAL, LIMIT = NONE.copy(), NONE.copy()
TERMINAL[2, 0] = LIMIT[3, 1] = LIMIT[4, 0] = True
BASE = {
    "rollout_length": T, "epochs": 1, "minibatches": 1, "discount": 0.9, "clip": 0.2, "entropy_cost": 0.3,
    "value_cost": 0.7,
}  # fmt: skip
CASES = {  # (kind of action, settings, ends inside)
    "one_step": ("categorical", {"normalise_advantages": False}, False),
    "two_by_two": ("categorical", {"epochs": 2, "minibatches": 2}, True),
    "three_rewards": ("categorical", {"reward_scale": 2.0, "reward_clip": 0.6, "epochs": 2}, True),
    "value_clip": ("categorical", {"value_clip": 0.05, "epochs": 3, "minibatches": 2}, True),
    "returns": ("categorical", {"normalise_returns": True, "minibatches": 2}, True),
    "observations": ("categorical", {"normalise_observations": True, "epochs": 2}, True),
    "gaussian": ("gaussian", {"epochs": 2, "minibatches": 3}, True),
    "separate": ("gaussian", {"epochs": 2, "minibatches": 2, "normalise_advantages": False}, False),
}
LAMBDA = 0.8


# ------------------------------------------------------------------------------------------------ float64 reference


def policy_terms(params, obs, action):
    """(log probabilities, entropies, their gradients by the head's outputs)."""
    head = reference.linear(params["policy"], obs)
    if action.ndim == 1:
        log_p = reference.log_softmax(head)
        p, one_hot = np.exp(log_p), np.eye(head.shape[1])[action]
        entropy = -(p * log_p).sum(axis=1)
        return (log_p * one_hot).sum(axis=1), entropy, one_hot - p, -p * (log_p + entropy[:, None])
    raw = np.tile(params["policy_free"]["bias"], (len(obs), 1))
    variance, slope = np.log1p(np.exp(raw)) + 1e-4, reference.sigmoid(raw)
    log_prob = -0.5 * ((action - head) ** 2 / variance + np.log(2 * np.pi * variance)).sum(axis=1)
    entropy = 0.5 * np.log(2 * np.pi * np.e * variance).sum(axis=1)
    by_raw = 0.5 * ((action - head) ** 2 / variance**2 - 1 / variance) * slope
    by_log_prob = np.concatenate([(action - head) / variance, by_raw], axis=1)
    return log_prob, entropy, by_log_prob, np.concatenate([0 * head, 0.5 / variance * slope], axis=1)


def gradient(params, rows, config, weight=1.0):
    """Of one minibatch, by hand; what each row weighs."""
    obs, action, old_log_prob, old_value, advantage, target = rows
    n = len(obs)
    if config.normalise_advantages:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_prob, _, by_log_prob, by_entropy = policy_terms(params, obs, action)
    rho = np.exp(log_prob - old_log_prob)
    # The minimum is the clipped term exactly where moving further no longer pays; its gradient is 0.
    held = rho * advantage > np.clip(rho, 1 - config.clip, 1 + config.clip) * advantage
    d_log_prob = weight * np.where(held, 0.0, -rho * advantage) / n
    d_head = d_log_prob[:, None] * by_log_prob - (config.entropy_cost / n * np.ones(n) * weight)[:, None] * by_entropy
    value = reference.linear(params["value"], obs)[:, 0]
    d_value = value - target
    if config.value_clip:
        near = old_value + np.clip(value - old_value, -config.value_clip, config.value_clip)
        inside = np.abs(value - old_value) <= config.value_clip
        d_value = np.where((near - target) ** 2 > (value - target) ** 2, (near - target) * inside, d_value)
    d_value = weight * d_value
    out = {"value": reference.linear_gradient(obs, config.value_cost * d_value[:, None] / n)}
    size = params["policy"]["bias"].size
    out["policy"] = reference.linear_gradient(obs, d_head[:, :size])
    if "policy_free" in params:
        out["policy_free"] = {"bias": d_head[:, size:].sum(axis=0)}
    return out, held


def rewards(steps, config):
    """As they are learned from."""
    reward = steps.reward.copy()
    if config.normalise_returns:
        running, seen = np.zeros(B), []
        for t in range(T):
            running = config.discount * running + steps.reward[t]
            seen.append(running)
            running = np.where(steps.truncated[t] | (steps.discount[t] == 0), 0.0, running)
        reward = reward / np.sqrt(np.var(seen) + 1e-8)
    reward = reward * config.reward_scale
    return np.clip(reward, -config.reward_clip, config.reward_clip) if config.reward_clip else reward


def advantages(params, steps, reward, config):
    """Generalised advantage estimation, a loop; (advantage, target)."""
    advantage = np.zeros((T, B))
    for b in range(B):
        future = 0.0
        for t in reversed(range(T)):
            following = reference.linear(params["value"], steps.next_obs[t, b])[0]
            delta = reward[t, b] + config.discount * steps.discount[t, b] * following - steps.extras.value[t, b]
            over = steps.truncated[t, b] or steps.discount[t, b] == 0
            future = delta + (0.0 if over else config.discount * LAMBDA * future)
            advantage[t, b] = future
    return advantage, advantage + steps.extras.value


def expected(params, steps, config, key):
    """(parameters after an update, whether anything was held back by the clip, the optimiser)."""
    advantage, target = advantages(params, steps, rewards(steps, config), config)
    flat = [steps.obs, steps.action, steps.extras.log_prob, steps.extras.value, advantage, target]
    flat = [leaf.reshape(T * B, *leaf.shape[2:]) for leaf in flat]
    descent, held = reference.RMSProp(), 0
    for epoch in jax.random.split(key, config.epochs):
        order = np.asarray(prng.permutation(epoch, T * B))
        for chosen in order.reshape(config.minibatches, -1):
            step, stopped = gradient(params, [leaf[chosen] for leaf in flat], config)
            held += stopped.sum()
            params = descent(params, step)
    return params, held, descent


# ------------------------------------------------------------------------------------------------ cases


@pytest.fixture
def learner(env_spec, build_agent, rollout, ends):
    """(kind, settings, whether there are ends) -> (agent, config, state, a rollout of a policy near the state's)"""

    def made(kind, settings, inside=True, **build):
        spec = env_spec((3,), **({"choices": 3} if kind == "categorical" else {"low": (-1.0,) * 2, "high": (1.0,) * 2}))
        build = {"local": True, "optimiser": reference.RMSPROP, "correction": {"lambda_": LAMBDA}} | build
        agent = build_agent(
            spec, rule="ppo", streams=B, network={"hidden": ()}, algorithm=BASE | settings, **build
        )  # fmt: skip
        config = options.build(ppo.Config, BASE | settings, "algorithm")
        state = agent.init(jax.random.key(0))
        state = state._replace(params=reference.shaken(state.params))
        given = rollout(spec, T, B, seed=3, ends=ends(TERMINAL, LIMIT) if inside else None)
        return agent, config, state, acted(state, given, np.random.default_rng(5))

    return made


def acted(state, given, rng):
    """Values of the state's network; probabilities of a policy nearby, so that some ratios are beyond the clip."""
    steps, params = reference.double(given.transitions), reference.double(state.params)
    flat = steps._replace(obs=steps.obs.reshape(T * B, -1), action=steps.action.reshape(T * B, *steps.action.shape[2:]))
    seen = flat.obs
    log_prob = policy_terms(params, seen, flat.action)[0] + rng.normal(0, 0.3, T * B)
    value = reference.linear(params["value"], seen)[:, 0]
    extras = ppo.Remembered(*(jnp.asarray(leaf.reshape(T, B), jnp.float32) for leaf in (log_prob, value)))
    return given._replace(transitions=given.transitions._replace(extras=extras))


@pytest.mark.parametrize("name", CASES)
def test_an_update_equals_the_arithmetic_written_out(name, learner):
    kind, settings, inside = CASES[name]
    agent, config, state, given = learner(kind, settings, inside)
    steps = reference.double(given.transitions)
    if config.normalise_observations:
        moments = normalise.Statistics(jnp.float32(20.0), jnp.array([0.1, -0.2, 0.3]), jnp.array([30.0, 10.0, 20.0]))
        state = state._replace(normaliser=moments)
        mean, spread = np.array([0.1, -0.2, 0.3]), np.sqrt(np.array([1.5, 0.5, 1.0]) + 1e-8)
        obs, following = ((leaf - mean) / spread for leaf in (steps.obs, steps.next_obs))
        value = reference.linear(reference.double(state.params)["value"], obs)[..., 0]
        steps = steps._replace(obs=obs, next_obs=following, extras=steps.extras._replace(value=value))
        extras = given.transitions.extras._replace(value=jnp.asarray(value, jnp.float32))
        given = given._replace(transitions=given.transitions._replace(extras=extras))
    key = jax.random.key(11)
    after, metrics = jax.jit(agent.update)(state, given, key)
    wanted, held, descent = expected(reference.double(state.params), steps, config, key)
    reference.assert_close(after.params, wanted)
    assert held, "some ratio was beyond the clip"
    assert metrics["gradient_norm"] == pytest.approx(np.mean(descent.norms), rel=1e-4)
    assert max(descent.norms) > reference.RMSPROP["max_norm"], "the clip by the global norm was felt"
    if config.normalise_observations:
        grown = normalise.update(state.normaliser, given.transitions.obs, (3,))
        reference.assert_close(after.normaliser, grown, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ stale experience


def stale(given, rng):
    """Remembered by another policy: other probabilities, and other values."""
    extras = given.transitions.extras
    noise = rng.normal(0, 0.5, (2, T, B)).astype(np.float32)
    other = ppo.Remembered(extras.log_prob + noise[0], extras.value + noise[1])
    return given._replace(transitions=given.transitions._replace(extras=other))


def before_the_update(state, steps):
    """What the learner's own parameters say of the experience: (log π_old, V), ``[T, B]`` float64."""
    params = reference.double(state.params)
    flat = steps.obs.reshape(T * B, -1)
    log_prob = policy_terms(params, flat, steps.action.reshape(-1))[0].reshape(T, B)
    return log_prob, reference.linear(params["value"], flat)[:, 0].reshape(T, B)


def vtrace_by_hand(steps, rho, value, following, gamma):
    """Targets and advantages of V-trace with all its bounds 1 and λ as above; a loop from the end."""
    target, advantage = np.zeros((T, B)), np.zeros((T, B))
    for b in range(B):
        future = 0.0
        for t in reversed(range(T)):
            over, w = steps.truncated[t, b] or steps.discount[t, b] == 0, min(1.0, rho[t, b])
            d = gamma * steps.discount[t, b]
            delta = w * (steps.reward[t, b] + d * following[t, b] - value[t, b])
            future = delta + (0.0 if over else d * LAMBDA * w * future)
            target[t, b] = value[t, b] + future
        for t in range(T):
            alone = steps.truncated[t, b] or steps.discount[t, b] == 0 or t + 1 == T
            mixed = following[t, b] if alone else (1 - LAMBDA) * following[t, b] + LAMBDA * target[t + 1, b]
            d = gamma * steps.discount[t, b]
            advantage[t, b] = min(1.0, rho[t, b]) * (steps.reward[t, b] + d * mixed - value[t, b])
    return target, advantage


@pytest.mark.parametrize("corrector", ["tis", "icepop", "vtrace"])
def test_a_corrected_update_equals_the_arithmetic_written_out(corrector, learner):
    """min(C, π_old/μ) min(r A, clip(r) A) with r = π_θ/π_old; rejected steps are in no mean and in no deviation."""
    correction = {"lambda_": LAMBDA, **({"low": 0.8, "high": 1.4} if corrector == "icepop" else {})}
    settings = {"epochs": 3, "value_clip": 0.05}
    agent, config, state, given = learner("categorical", settings, corrector=corrector, correction=correction)
    given = stale(given, np.random.default_rng(9))
    steps, params = reference.double(given.transitions), reference.double(state.params)
    log_old, value = before_the_update(state, steps)
    rho = np.exp(log_old - steps.extras.log_prob)
    own = steps._replace(extras=ppo.Remembered(log_old, value))
    if corrector == "vtrace":
        following = reference.linear(params["value"], steps.next_obs.reshape(T * B, -1))[:, 0].reshape(T, B)
        target, advantage = vtrace_by_hand(steps, rho, value, following, config.discount)
    else:
        advantage, target = advantages(params, own, steps.reward, config)
    weight = {"tis": np.minimum(2.0, rho), "icepop": np.where((rho < 0.8) | (rho > 1.4), 0.0, rho)}
    weight = weight.get(corrector, np.ones((T, B))).reshape(-1)
    assert corrector != "icepop" or 0 < (weight > 0).sum() < T * B
    flat = [steps.obs, steps.action, log_old, value, advantage, target]
    flat = [leaf.reshape(T * B, *leaf.shape[2:])[weight > 0] for leaf in flat]
    key, descent = jax.random.key(11), reference.RMSProp()
    for _ in range(config.epochs):
        step, _ = gradient(params, flat, config, weight[weight > 0])
        params = descent(params, step)
    after, metrics = jax.jit(agent.update)(state, given, key)
    reference.assert_close(after.params, params)
    assert metrics["ess"] == pytest.approx(rho.sum() ** 2 / (rho.size * (rho**2).sum()), rel=1e-4)
    assert metrics["log_rho_std"] == pytest.approx(np.log(rho).std(), rel=1e-3)
    if corrector == "tis":
        assert metrics["clip_fraction"] == pytest.approx((rho > 2).mean())


def test_what_a_stale_actor_thought_matters_only_through_the_correction(learner):
    """An update with a corrector depends on μ, never on the actor's values; without one on both, as before."""
    found = {}
    for corrector in ("none", "vtrace", "tis"):
        agent, _, state, given = learner("categorical", {}, corrector=corrector)
        extras, update = given.transitions.extras, jax.jit(agent.update)
        for what, other in {
            "as_it_is": extras, "value": extras._replace(value=extras.value + jnp.linspace(3.0, 0.0, T)[:, None]),
            "log_prob": extras._replace(log_prob=extras.log_prob - jnp.linspace(0.0, 2.0, T)[:, None]),
        }.items():  # fmt: skip
            rollout = given._replace(transitions=given.transitions._replace(extras=other))
            found[corrector, what] = update(state, rollout, jax.random.key(0))[0].params["policy"]["kernel"]
    for corrector in ("none", "vtrace", "tis"):
        assert np.abs(found[corrector, "log_prob"] - found[corrector, "as_it_is"]).max() > 1e-4
    for corrector in ("vtrace", "tis"):
        np.testing.assert_array_equal(found[corrector, "value"], found[corrector, "as_it_is"])
        assert np.abs(found[corrector, "as_it_is"] - found["none", "as_it_is"]).max() > 1e-4
    assert np.abs(found["none", "value"] - found["none", "as_it_is"]).max() > 1e-4


def test_of_its_own_experience_a_corrector_makes_what_none_makes(learner):
    results = []
    for corrector in ("none", "vtrace", "tis"):
        agent, _, state, given = learner("categorical", {"epochs": 2, "minibatches": 2}, corrector=corrector)
        log_prob, value = before_the_update(state, reference.double(given.transitions))
        extras = ppo.Remembered(jnp.asarray(log_prob, jnp.float32), jnp.asarray(value, jnp.float32))
        own = given._replace(transitions=given.transitions._replace(extras=extras))
        results.append(jax.jit(agent.update)(state, own, jax.random.key(0))[0].params)
    for other in results[1:]:
        reference.assert_close(other, reference.double(results[0]), rtol=1e-4)


@pytest.mark.parametrize("lstm", [0, 4])
def test_a_recurrent_policy_is_corrected_along_its_streams(lstm, env_spec, build_agent, rollout, ends):
    """Ratios of the policy with its memory: 1 of experience that was its own, whatever the network."""
    spec = env_spec((3,), choices=3)
    algorithm = {"rollout_length": T, "discount": 0.9, "epochs": 1, "minibatches": 1}
    agent = build_agent(spec, rule="ppo", streams=B, network={"hidden": (3,), "lstm": lstm}, corrector="vtrace",
                        algorithm=algorithm)  # fmt: skip
    state = agent.init(jax.random.key(0))
    state = state._replace(params=reference.shaken(state.params))
    carry = jax.tree.map(lambda leaf: jnp.full((B, *leaf.shape), 0.3), agent.about.carry)
    given = rollout(spec, T, B, seed=4, ends=ends(TERMINAL, LIMIT), carry=carry)
    rule = _values.Rule(ppo.Config(), agent.about.networks["policy"], None, None, None)
    output, value, _ = _values.along_all(rule, state.params, (), given.transitions, carry)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(output), given.transitions.action[..., None], axis=-1)[..., 0]
    update = jax.jit(agent.update)
    for shift, wanted in ((0.0, 1.0), (0.7, np.exp(0.7))):
        steps = given.transitions._replace(extras=ppo.Remembered(log_prob - shift, value))
        metrics = update(state, given._replace(transitions=steps), jax.random.key(0))[1]
        assert metrics["weight_mean"] == pytest.approx(wanted, rel=1e-4)
        assert metrics["ess"] == pytest.approx(1.0, rel=1e-4)


def test_the_value_clip_and_the_returns_matter(learner):
    """That the cases above would notice."""
    found = [
        jax.jit(agent.update)(state, given, jax.random.key(11))[0].params["value"]["kernel"]
        for settings in ({}, {"value_clip": 0.05}, {"normalise_returns": True}, {"reward_clip": 0.6})
        for agent, _, state, given in [learner("categorical", {"epochs": 3, "minibatches": 2} | settings)]
    ]
    for other in found[1:]:
        assert np.abs(other - found[0]).max() > 1e-4


def test_only_a_termination_ends_the_bootstrap(learner):
    """The same step, going on, cut by a time limit, terminated: the first two have one target."""
    agent, config, state, given = learner("categorical", {"rollout_length": T})
    rule = _values.Rule(config, agent.about.networks["policy"], None, _corrector(), None)
    targets = []
    for discount, truncated in ((1.0, False), (1.0, True), (0.0, False)):
        steps = given.transitions
        flags = steps._replace(
            discount=steps.discount.at[T - 1].set(discount), truncated=steps.truncated.at[T - 1].set(truncated)
        )
        lesson, _ = ppo.prepare(rule, state, given._replace(transitions=flags), steps.reward)
        targets.append(np.asarray(lesson.target[T - 1]))
    np.testing.assert_allclose(targets[0], targets[1], rtol=1e-6)  # other roundings, the same target
    steps = reference.double(given.transitions)
    following = reference.linear(reference.double(state.params)["value"], steps.next_obs[T - 1])[:, 0]
    np.testing.assert_allclose(targets[1], steps.reward[T - 1] + 0.9 * following, rtol=1e-5)
    np.testing.assert_allclose(targets[2], steps.reward[T - 1], rtol=1e-6)


def _corrector():
    module = registry.load("corrector", "none")
    return module.build(options.build(module.Config, {"lambda_": LAMBDA}, "corrector"))


def test_one_step_by_the_policy_that_acted_is_the_gradient_of_a2c(learner, env_spec, build_agent):
    """Ratios are 1: Schulman et al. 2017, equation 6; and the gradient can be left to somebody else."""
    settings = {"normalise_advantages": False, "entropy_cost": 0.3, "value_cost": 0.7}
    agent, _, state, given = learner("categorical", settings, local=False, optimiser={})
    assert ppo.traits(options.build(ppo.Config, {"epochs": 1, "minibatches": 1}, "algorithm")).unshareable == ""
    params = reference.double(state.params)
    steps = reference.double(given.transitions)
    log_prob = policy_terms(params, steps.obs.reshape(T * B, -1), steps.action.reshape(-1))[0].reshape(T, B)
    extras = given.transitions.extras._replace(log_prob=jnp.asarray(log_prob, jnp.float32))
    given = given._replace(transitions=given.transitions._replace(extras=extras))
    ours = jax.jit(agent.update)(state, given, jax.random.key(0))[0].optimiser.gradient
    a2c = build_agent(
        env_spec((3,), choices=3), network={"hidden": ()}, correction={"lambda_": LAMBDA},
        algorithm={"rollout_length": T, "discount": 0.9, "entropy_cost": 0.3, "value_cost": 0.7, "reduction": "mean"},
    )  # fmt: skip
    begun = a2c.init(jax.random.key(0))._replace(params=state.params)
    theirs = jax.jit(a2c.update)(begun, given, jax.random.key(0))[0].optimiser.gradient
    reference.assert_close(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("lstm", [0, 4])
def test_minibatches_that_do_not_divide_are_refused(lstm, env_spec, build_agent):
    algorithm = {"rollout_length": 4, "minibatches": 5}
    what = "2 environments" if lstm else "8 decisions"
    with pytest.raises(errors.Refused, match=f"minibatches=5 does not divide the {what}"):
        build_agent(env_spec((3,), choices=2), rule="ppo", streams=2, network={"lstm": lstm}, algorithm=algorithm)


def test_what_cannot_be_shared_is_said():
    def reason(**settings):
        return ppo.traits(options.build(ppo.Config, settings, "algorithm")).unshareable

    one = {"epochs": 1, "minibatches": 1}
    assert "epochs" in reason()
    assert "epochs" in reason(**one | {"epochs": 2})
    assert "minibatches" in reason(**one | {"minibatches": 2})
    assert "normalise_returns" in reason(**one, normalise_returns=True)
    assert reason(**one) == ""


def test_a_recurrent_update_of_one_pass_is_the_gradient_of_a2c(env_spec, build_agent, rollout, ends):
    """Whole streams, the state restarted at ends and read, not advanced, by the bootstrap: as actor_critic has it."""
    spec = env_spec((3,), choices=3)
    shared = {"network": {"hidden": (3,), "lstm": 4}, "correction": {"lambda_": LAMBDA}}
    algorithm = {"rollout_length": T, "discount": 0.9, "entropy_cost": 0.3, "value_cost": 0.7}
    mine = build_agent(
        spec, rule="ppo", streams=B, algorithm={**algorithm, "epochs": 1, "minibatches": 1,
        "normalise_advantages": False}, **shared,
    )  # fmt: skip
    theirs = build_agent(spec, algorithm={**algorithm, "reduction": "mean"}, **shared)
    state = mine.init(jax.random.key(0))
    state = state._replace(params=reference.shaken(state.params))
    rng = np.random.default_rng(1)
    carry = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, (B, *leaf.shape)), jnp.float32), mine.about.carry)
    given = rollout(spec, T, B, seed=4, ends=ends(TERMINAL, LIMIT), carry=carry)
    rule = _values.Rule(ppo.Config(), mine.about.networks["policy"], None, None, None)
    output, value, _ = _values.along_all(rule, state.params, (), given.transitions, carry)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(output), given.transitions.action[..., None], axis=-1)[..., 0]
    steps = given.transitions._replace(extras=ppo.Remembered(log_prob, value))
    given = given._replace(transitions=steps)
    found = jax.jit(mine.update)(state, given, jax.random.key(0))[0].optimiser.gradient
    begun = theirs.init(jax.random.key(0))._replace(params=state.params)
    expected = jax.jit(theirs.update)(begun, given, jax.random.key(0))[0].optimiser.gradient
    reference.assert_close(found, expected, rtol=1e-4)


def test_statistics_of_returns_go_into_the_policy(learner):
    agent, _, state, given = learner("categorical", {"normalise_returns": True})
    assert agent.snapshot(state).returns is state.returns.moments
    after = jax.jit(agent.update)(state, given, jax.random.key(0))[0]
    assert float(after.returns.moments.count) == T * B
    assert learner("categorical", {})[0].snapshot(learner("categorical", {})[2]).returns == ()
