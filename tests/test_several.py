"""Rules with several policies and shared critics: formulas, one step against float64 arithmetic, who plays what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.algorithms import _critics, _memory, _playing, cem_rl, dvd
from shoal.core import options, types
from shoal.experiment import presets
from shoal.formulas import diversity, evolution
from shoal.runs import evaluation
from tests import reference

LOW, HIGH = (-2.0, 0.0), (1.0, 3.0)
MIDDLE, HALF = np.array([-0.5, 1.5]), np.array([1.5, 1.5])

# ------------------------------------------------------------------------------------------------ the distribution


def cem_by_hand(mean, variance, noise, vectors, fitness, elites, decay, floor):
    """Float64; the K best of those that are sound."""
    mean, vectors, fitness = (np.asarray(each, np.float64) for each in (mean, vectors, fitness))
    noise = decay * noise + (1 - decay) * floor
    sound = [k for k in range(len(fitness)) if np.isfinite(fitness[k]) and np.isfinite(vectors[k]).all()]
    best = sorted(sound, key=lambda k: -fitness[k])[:elites]
    if not best:
        return mean, np.asarray(variance, np.float64), noise
    weight = np.array([np.log((elites + 1) / i) for i in range(1, len(best) + 1)])
    weight /= weight.sum()
    new = sum(w * vectors[k] for w, k in zip(weight, best, strict=True))
    spread = sum(w * (vectors[k] - mean) ** 2 for w, k in zip(weight, best, strict=True)) / elites
    return new, spread + noise, noise


@pytest.mark.parametrize("bad", [(), (3,), (0, 1, 2, 3, 4, 5, 6), tuple(range(10))], ids=["none", "one", "7", "all"])
def test_the_distribution_moves_as_the_arithmetic_says_and_who_is_not_finite_is_no_elite(bad):
    rng = np.random.default_rng(0)
    mean, vectors = rng.normal(size=40).astype(np.float32), rng.normal(size=(10, 40)).astype(np.float32)
    variance, fitness = rng.uniform(0.1, 1, 40).astype(np.float32), rng.normal(size=10).astype(np.float32) * 100
    for turn, k in enumerate(bad):  # a NaN in the fitness, or in the parameters themselves
        if turn % 2:
            vectors[k, 3] = np.inf
        else:
            fitness[k] = (np.nan, np.inf)[turn // 2 % 2]
    search = evolution.Search(jnp.asarray(mean), jnp.asarray(variance), jnp.float32(1e-2))
    found = jax.jit(evolution.improved, static_argnums=3)(search, vectors, fitness, 5, 0.95, 1e-5)
    for ours, expected in zip(found, cem_by_hand(mean, variance, 1e-2, vectors, fitness, 5, 0.95, 1e-5), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_two_elites_by_hand():
    """w = log 3 and log 1.5 over their sum: 0.7304, 0.2696; the variance around the old mean, over 2."""
    search = evolution.Search(jnp.array([1.0]), jnp.array([9.0]), jnp.float32(1.0))
    vectors, fitness = jnp.array([[3.0], [5.0], [100.0]]), jnp.array([2.0, 1.0, 0.0])
    found = evolution.improved(search, vectors, fitness, 2, 0.5, 0.0)
    first = np.log(3) / (np.log(3) + np.log(1.5))
    assert float(found.mean[0]) == pytest.approx(3 * first + 5 * (1 - first))
    assert float(found.variance[0]) == pytest.approx((4 * first + 16 * (1 - first)) / 2 + 0.5)
    assert float(found.noise) == 0.5


def test_policies_are_mirrored_and_what_is_called_a_variance_is_one():
    """The reference's "initial std" of 1e-2 is a variance: policies then lie 0.1 around the mean."""
    search = evolution.Search(jnp.linspace(-1, 1, 5000), jnp.full(5000, 1e-2), jnp.float32(0.0))
    vectors = np.asarray(evolution.mirrored(search, 5, jax.random.key(0)))
    np.testing.assert_allclose((vectors[:5] + vectors[5:]) / 2, np.tile(search.mean, (5, 1)), atol=1e-6)
    assert (vectors[:5] - np.asarray(search.mean)).std() == pytest.approx(0.1, rel=0.02)


# ------------------------------------------------------------------------------------------------ diversity


def reference_log_det(behaviour, length=1.0):
    """As the authors' code has it: squared distances through the Gram matrix, summed over components, nothing added."""
    flat = behaviour.reshape(len(behaviour), -1)
    gram = flat @ flat.T
    square = jnp.diagonal(gram)
    return jnp.linalg.slogdet(jnp.exp(-(square[:, None] + square[None, :] - 2 * gram) / (2 * length)))[1]


def ours_log_det(behaviour, length=0.1, jitter=1e-4):
    return diversity.log_det(diversity.distances(behaviour), length, jitter)


def test_the_volume_of_two_policies_by_hand():
    behaviour = jnp.array([[[0.0], [0.0]], [[1.0], [3.0]]])  # mean squared difference (1 + 9) / 2
    squares = diversity.distances(behaviour)
    np.testing.assert_allclose(squares, [[0, 5], [5, 0]])
    assert float(diversity.min_distance(squares)) == pytest.approx(np.sqrt(5))
    assert float(diversity.log_det(squares, 2.0, 0.01)) == pytest.approx(
        np.log(1.01**2 - np.exp(-5 / 4) ** 2), rel=1e-5
    )


def test_policies_that_coincide_have_a_finite_volume_where_the_reference_has_none():
    one = jax.random.uniform(jax.random.key(0), (1, 64, 3), minval=-1.0)
    same = jnp.tile(one, (5, 1, 1))
    value, gradient = jax.value_and_grad(ours_log_det)(same)
    assert float(value) == pytest.approx(np.log(5 + 1e-4) + 4 * np.log(1e-4), rel=1e-3)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(same))
    theirs, slope = jax.value_and_grad(reference_log_det)(same)
    assert not (np.isfinite(theirs) and np.isfinite(slope).all()), "NaN, or minus infinity"
    near = same + 1e-5 * jax.random.normal(jax.random.key(1), same.shape)
    assert np.isfinite(jax.grad(ours_log_det)(near)).all()
    assert (diversity.distances(near) >= 0).all(), "not through products: rounding would make some negative"


def test_per_component_there_is_a_gradient_where_the_sum_has_none():
    apart = jax.random.uniform(jax.random.key(0), (5, 1280, 17), minval=-1.0)
    assert np.abs(jax.grad(reference_log_det)(apart)).max() == 0.0
    assert np.abs(jax.grad(ours_log_det)(apart)).max() > 1e-9


@pytest.mark.parametrize(
    ("env_steps", "expected"), [(0, 0.0), (999, 0.0), (1000, 0.6), (5999, 0.6), (6000, 1.0), (14_000, 0.4)]
)
def test_the_weight_follows_its_schedule(env_steps, expected):
    config = options.build(dvd.Config, {"horizon": 60_000, "diversity": 2.0}, "algorithm")
    hyper = hyper_of(dvd, config)
    assert float(dvd.weight(config, hyper, jnp.int32(env_steps))) == pytest.approx(expected)


def hyper_of(module, config):
    return module.Hyper(*(jnp.float32(getattr(config, name)) for name in module.Hyper._fields))


def test_settings_that_make_no_sense_are_refused(env_spec):
    spec = env_spec((3,), low=LOW, high=HIGH)
    network = experiment.config_class("network", "")()
    for module, settings, message in (
        (cem_rl, {"policies": 5}, "even"),
        (cem_rl, {"trained": 6}, "at most 5"),
        (cem_rl, {"elites": 11}, "10 policies"),
        (dvd, {"scaling": "median"}, "mean, sum"),
        (dvd, {"weights": (0.1, 0.2)}, "as many"),
        (dvd, {"weights_from": (0.0, 0.5, 0.4, 0.6)}, "upwards"),
        (dvd, {"weights_from": (0.1, 0.2, 0.4, 0.6)}, "from 0"),
    ):
        assert message in module.fits(options.build(module.Config, settings, "algorithm"), network, spec)


# ------------------------------------------------------------------------------------------------ who plays what


def steps(reward, over):
    reward, over = np.asarray(reward, np.float32), np.asarray(over, bool)
    nothing = np.zeros(reward.shape, np.float32)
    return types.Transition(nothing, nothing, reward, 1.0 - over, np.zeros_like(over), nothing, ())


def test_streams_play_policies_in_turn_and_only_whole_episodes_count():
    now = _playing.playing(5, 3)
    assert now.policy.tolist() == [0, 1, 2, 0, 1]
    reward = [[1, 1, 1, 1, np.nan], [2, 2, 2, 2, 2], [4, 4, 4, 4, 4]]
    over = [[0, 0, 0, 1, 0], [0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]
    after, ended = _playing.follow(now, steps(reward, over))
    assert ended.value[ended.counts].tolist() == [1.0, 3.0, 2.0, float(np.float32(_playing.NO_RETURN)), 7.0]
    assert after.so_far.tolist() == [0, 4, 7, 4, 4]
    moved = _playing.hand_over(after, jnp.array([1, 1, 0, 0, 2]), ended.over[-1])
    assert moved.whole.tolist() == [True, True, False, True, False], "a new policy begins in the middle, or does not"
    ended = _playing.follow(moved, steps([[1] * 5], [[1] * 5]))[1]
    assert ended.counts[0].tolist() == [True, True, False, True, False]
    assert _playing.anew(moved).whole.all()


@pytest.mark.parametrize(("streams", "policies"), [(4, 4), (2, 4), (1, 4), (3, 4), (6, 4)])
def test_every_policy_is_tried_once_whatever_the_number_of_streams(streams, policies):
    """Episodes of 2 steps, and of 3 in the first stream; a step pays what its policy is worth."""
    now, trial, env_steps = _playing.playing(streams, policies), _playing.trial(streams, policies), 0
    age = np.zeros(streams, int)
    for _ in range(40):
        age += 1
        over = age >= np.where(np.arange(streams) == 0, 3, 2)
        reward = 10.0 ** np.asarray(now.policy) / np.where(np.arange(streams) == 0, 3, 2)
        now, ended = _playing.follow(now, steps([reward], [over]))
        trial = _playing.tried(trial, now, ended)
        trial, now = _playing.next_in_line(trial, now, ended.over[-1], policies)
        age, env_steps = np.where(over, 0, age), env_steps + streams
        if bool(trial.done.all()) and int(trial.begun) >= policies:
            break
    np.testing.assert_allclose(_playing.fitness_of(trial), 10.0 ** np.arange(policies), rtol=1e-6)
    each = np.bincount(np.arange(max(streams, policies)) % policies)
    assert trial.episodes.tolist() == each.tolist(), "one each; what waits for the slowest counts no more"
    assert int(trial.env_steps) == env_steps, "but its steps do"


def test_running_returns_look_back_ten_episodes_and_choose_the_best():
    record = _playing.Record(jnp.zeros(3), jnp.zeros(3, jnp.int32))
    assert int(_playing.best(record)) == 0
    ended = _playing.Ended(jnp.array([[-5.0, -3.0]]), jnp.ones((1, 2), bool), jnp.ones((1, 2), bool))
    record = _playing.recorded(record, jnp.array([2, 2]), ended)
    assert (float(record.value[2]), record.episodes.tolist()) == (-4.0, [0, 0, 2])
    assert int(_playing.best(record)) == 2, "the others have played nothing yet"
    for _ in range(9):
        record = _playing.recorded(record, jnp.array([2, 1]), ended._replace(value=jnp.array([[6.0, jnp.nan]])))
    assert record.episodes.tolist() == [0, 0, 11], "a return that is not finite is none"
    expected = -4.0
    for n in range(3, 12):
        expected += (6.0 - expected) / min(n, 10)
    assert float(record.value[2]) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------ one gradient step

K, N = 3, 4
BASE = {
    "batch": N, "capacity": 60, "learning_starts": 0, "discount": 0.9, "tau": 0.3, "critic_rate": 2.0,
    "target_noise": 0.6, "target_noise_clip": 0.4, "reward_scale": 1.5, "rollout_length": 5,
}  # fmt: skip


def member(policies, k):
    return jax.tree.map(lambda leaf: leaf[k], policies)


def act(policies, k, obs):
    return np.tanh(reference.linear(member(policies, k)["policy"], obs))


def stack(policies):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *policies)


def lerp(old, new, weight=0.3):
    return jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, old, new)


def critics_step(now, slow, drawn, key, count, other=None):
    """The critics after one step; `other`: another draw of noise for the second one, as the reference has it."""
    rows = [slice(k * N, (k + 1) * N) for k in range(count)]
    clean = np.concatenate([act(slow["policy"], k, drawn.next_obs[row]) for k, row in enumerate(rows)])

    def noisy(key):
        noise = np.clip(0.6 * np.asarray(jax.random.normal(key, clean.shape), np.float64), -0.4, 0.4)
        return np.clip(clean + noise, -1.0, 1.0)

    first = reference.critic(slow["critics"][0], drawn.next_obs, noisy(key))
    second = reference.critic(slow["critics"][1], drawn.next_obs, noisy(key if other is None else other))
    y = drawn.reward + drawn.discount * np.minimum(first, second)
    action = (drawn.action - MIDDLE) / HALF
    gradient, loss = reference.critics_gradient(now["critics"], drawn.obs, action, y, drawn.weight)
    return reference.RMSProp(2.0)(now["critics"], gradient), loss


def climbing(policies, critics, obs, count):
    """The gradient of Σ -mean Q_1(x, π_k(x)), each policy at its own rows."""
    found = []
    for k in range(count):
        mine = obs[k * N : (k + 1) * N]
        chosen = act(policies, k, mine)
        by_action = -critics[0]["q"]["kernel"][3:, 0] / N
        found.append({"policy": reference.linear_gradient(mine, by_action * (1 - chosen**2))})
    return stack(found)


def parting(policies, obs, w, length, jitter):
    """The gradient of -w log det(K + εI), every policy at all rows."""
    e = np.stack([act(policies, k, obs) for k in range(K)])
    components = e[0].size
    squares = ((e[:, None] - e[None]) ** 2).mean(axis=(2, 3))
    kernel = np.exp(-squares / (2 * length))
    by_square = w * np.linalg.inv(kernel + jitter * np.eye(K)) * kernel / (2 * length)
    found = []
    for k in range(K):
        by_e = sum(2 * by_square[k, j] * 2 * (e[k] - e[j]) / components for j in range(K))
        found.append({"policy": reference.linear_gradient(obs, by_e * (1 - e[k] ** 2))})
    return stack(found), squares


def norm(gradient):
    return np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))


def dvd_by_hand(state, drawn, key, w, *, due=True, reference_way=""):
    """(parameters, targets) after one gradient step; `reference_way`: what is done as the authors' code does it."""
    now, slow = reference.double((state.params, state.target))
    other = jax.random.key(99) if reference_way == "noise" else None
    critics, loss = critics_step(now, slow, drawn, key, K, other)
    params = {"policy": now["policy"], "critics": critics}
    if not due:
        moved = {"policy": slow["policy"], "critics": lerp(slow["critics"], critics)}
        return params, moved if reference_way == "targets" else slow, loss, None
    obs = drawn.next_obs if reference_way == "next_obs" else drawn.obs
    first = climbing(now["policy"], critics, obs, K)
    second, squares = parting(now["policy"], drawn.obs, w, 0.1, 1e-4)
    scale = min(1.0, w * norm(first) / norm(second)) if w else 0.0
    gradient = jax.tree.map(lambda a, b: a + scale * b, first, second)
    each = [reference.RMSProp()(member(now["policy"], k), member(gradient, k)) for k in range(K)]
    params["policy"] = stack(each)
    return params, lerp(slow, params), loss, squares


@pytest.fixture
def diverse(env_spec, build_agent, rollout):
    """settings -> (agent, state, rollout, what is drawn, key of the step)"""

    def made(**settings):
        spec = env_spec((3,), low=LOW, high=HIGH)
        given = BASE | {"policies": K, "horizon": 1000} | settings
        agent = build_agent(
            spec, rule="dvd", streams=K, network={"hidden": ()}, algorithm=given, local=True,
            optimiser=reference.RMSPROP,
        )  # fmt: skip
        state = agent.init(jax.random.key(0))
        state = state._replace(params=reference.shaken(state.params), target=reference.shaken(state.target, 8))
        state = state._replace(env_steps=jnp.int32(100), updates=jnp.int32(1))  # w = 0.5; the policies' turn
        experience = rollout(spec, 5, K, seed=3)
        scaled = experience.transitions._replace(reward=1.5 * experience.transitions.reward)
        plan = _memory.Plan(60, K * N, 1, K, False, 5)
        drawn = reference.draw(plan, spec, state, experience._replace(transitions=scaled), jax.random.key(11))
        return agent, state, experience, *drawn

    return made


def close(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.allclose(a, b, rtol=2e-4, atol=2e-6) for a, b in pairs)


def test_a_step_of_dvd_equals_the_arithmetic_written_out_and_none_of_the_reference_s_oddities(diverse):
    agent, state, experience, drawn, key = diverse()
    update = jax.jit(agent.update)
    after, metrics = update(state, experience, jax.random.key(11))
    params, target, loss, squares = dvd_by_hand(state, drawn, key, 0.5)
    reference.assert_close(after.params, params)
    reference.assert_close(after.target, target)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    off = squares[~np.eye(K, dtype=bool)]
    assert metrics["min_distance"] == pytest.approx(np.sqrt(off.min()), rel=1e-4)
    assert metrics["diversity_weight"] == 0.5
    for way in ("noise", "next_obs"):
        assert not close(after.params, dvd_by_hand(state, drawn, key, 0.5, reference_way=way)[0]), way
    early = state._replace(updates=jnp.int32(0))  # the critics' turn only
    after = update(early, experience, jax.random.key(11))[0]
    params, target, *_ = dvd_by_hand(early, drawn, key, 0.5, due=False)
    reference.assert_close(after.params, params)
    reference.assert_close(after.target, target)
    assert not close(after.target, dvd_by_hand(early, drawn, key, 0.5, due=False, reference_way="targets")[1])


def test_without_diversity_it_is_td3_side_by_side_and_w_bounds_the_term(diverse):
    agent, state, experience, drawn, key = diverse(diversity=0.0)
    update = jax.jit(agent.update)
    after = update(state, experience, jax.random.key(11))[0]
    reference.assert_close(after.params, dvd_by_hand(state, drawn, key, 0.0)[0])
    strong = state._replace(hyper=state.hyper._replace(diversity=jnp.float32(1e6)))
    told = update(strong, experience, jax.random.key(11))[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(told.params))


def test_identical_policies_learn_on_and_part(diverse):
    """Their rows of the batch differ, so they do after one step; the diversity term itself has no slope there."""
    agent, state, experience, *_ = diverse()
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * K), state.params["policy"])
    state = state._replace(params=state.params | {"policy": same}, target=state.target | {"policy": same})
    update = jax.jit(agent.update)
    after, metrics = update(state, experience, jax.random.key(0))
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["min_distance"] == 0.0
    assert int(after.optimiser.skipped) == 0
    state = update(after._replace(updates=jnp.int32(1)), experience, jax.random.key(1))
    assert state[1]["min_distance"] > 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state[0].params))


def test_a_policy_that_is_not_finite_costs_the_others_nothing(env_spec, build_agent):
    """It is skipped alone, and its rows teach the critics nothing."""
    state, pupils, rule, drawn = pupils_of(env_spec, build_agent)
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), pupils)
    after, policies = jax.jit(lambda *given: cem_rl.learn(rule, *given))(state, broken, drawn, jax.random.key(5))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    assert int(after.optimiser.skipped) == 1
    moved = zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True)
    assert all(not np.array_equal(one, other) for one, other in moved), "the critics learn from the other rows"
    for k in (0, 2):
        before, now = jax.tree.leaves(member(pupils.policies, k)), jax.tree.leaves(member(policies.policies, k))
        assert all(not np.array_equal(a, b) for a, b in zip(before, now, strict=True))


def pupils_of(env_spec, build_agent):
    """A CEM-RL learner whose three trained policies are about to make a step: (state, pupils, rule, sample)."""
    spec = env_spec((3,), low=LOW, high=HIGH)
    settings = {name: value for name, value in BASE.items() if name not in ("policy_delay",)}
    settings |= {"policies": 2 * K, "trained": K}
    agent = build_agent(
        spec, rule="cem_rl", streams=2 * K, network={"hidden": ()}, algorithm=settings, local=True,
        optimiser=reference.RMSPROP,
    )  # fmt: skip
    state = agent.init(jax.random.key(0))
    state = state._replace(params=reference.shaken(state.params), target=reference.shaken(state.target, 8))
    first = jax.tree.map(lambda leaf: leaf[:K], state.policies)
    pupils = cem_rl.Pupils(*(jax.tree.map(jnp.asarray, reference.shaken(first, seed)) for seed in (5, 6)))
    rng = np.random.default_rng(0)
    rows = K * N
    drawn = _memory.Sample(
        obs=rng.normal(size=(rows, 3)), action=rng.uniform(LOW, HIGH, (rows, 2)), reward=rng.normal(size=rows),
        discount=0.9 * (rng.random(rows) < 0.8), next_obs=rng.normal(size=(rows, 3)), weight=np.ones(rows), index=(),
    )  # fmt: skip
    drawn = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)
    config = options.build(cem_rl.Config, settings, "algorithm")
    rule = cem_rule(config, spec)
    return state, pupils, rule, drawn


def cem_rule(config, spec):
    from shoal import algorithms, networks
    from shoal.formulas import optimise

    made = optimise.local(options.build(optimise.Config, reference.RMSPROP, "optimiser"), 1000)
    given = algorithms.Ingredients(spec, networks.Config(hidden=()), made, None, streams=2 * K)
    return _critics.build(config, given, spec.action.shape[0])


def test_a_step_of_trained_policies_equals_the_arithmetic_written_out(env_spec, build_agent):
    state, pupils, rule, drawn = pupils_of(env_spec, build_agent)
    key = jax.random.key(5)
    after, policies = jax.jit(lambda *given: cem_rl.learn(rule, *given))(state, pupils, drawn, key)
    now, slow, drawn = reference.double((state.params, state.target, drawn))
    both = reference.double(pupils)
    slow = {"policy": both.target, "critics": slow["critics"]}
    critics, loss = critics_step(now, slow, drawn, key, K)
    gradient = climbing(both.policies, critics, drawn.obs, K)
    each = [reference.RMSProp()(member(both.policies, k), member(gradient, k)) for k in range(K)]
    reference.assert_close(after.params["critics"], critics)
    reference.assert_close(policies.policies, stack(each))
    reference.assert_close(policies.target, lerp(both.target, stack(each)))
    reference.assert_close(after.target["critics"], lerp(slow["critics"], critics))
    assert float(after.told.loss) == pytest.approx(loss, rel=1e-4)
    for way in ({"other": jax.random.key(99)}, {}):  # two draws of noise; policies judged at the successors
        critics, _ = critics_step(now, slow, drawn, key, K, **way)
        slopes = climbing(both.policies, critics, drawn.obs if way else drawn.next_obs, K)
        odd = [reference.RMSProp()(member(both.policies, k), member(slopes, k)) for k in range(K)]
        assert not close((policies.policies, after.params["critics"]), (stack(odd), critics))


# ------------------------------------------------------------------------------------------------ an iteration


@pytest.fixture
def evolving(env_spec, build_agent, rollout, ends):
    """An agent of four policies, two of them trained; a rollout in which every stream ends an episode."""
    spec = env_spec((3,), low=LOW, high=HIGH)
    settings = {
        "policies": 4, "trained": 2, "elites": 2, "batch": N, "capacity": 64, "learning_starts": 0, "rollout_length": 3,
    }  # fmt: skip
    agent = build_agent(spec, rule="cem_rl", streams=4, local=True, algorithm=settings)
    over = np.zeros((3, 4), bool)
    over[0, 1] = over[2] = True  # the second stream ends one early, and waits for the others in a second one
    return agent, rollout(spec, 3, 4, seed=1, ends=ends(over))


def test_an_iteration_moves_the_distribution_by_the_first_whole_episodes(evolving):
    agent, given = evolving
    state = agent.init(jax.random.key(0))
    after, metrics = jax.jit(agent.update)(state, given, jax.random.key(1))
    reward = np.asarray(given.transitions.reward, np.float64)
    fitness = reward.sum(axis=0)
    fitness[1] = reward[0, 1]
    flat = jax.vmap(lambda tree: jax.flatten_util.ravel_pytree(tree)[0])(state.policies)
    expected = cem_by_hand(*state.search, flat, fitness, 2, 0.95, 1e-5)
    for ours, wanted in zip(after.search, expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    assert metrics["fitness_best"] == pytest.approx(fitness.max(), rel=1e-5)
    assert metrics["fitness_mean"] == pytest.approx(fitness.mean(), rel=1e-4)
    assert metrics["iterations"] == 1
    assert int(after.updates) == 12, "as many gradient steps as environment steps, those of the wait included"
    rest = jax.tree.map(lambda leaf: leaf[2:], after.policies)
    first = jax.tree.map(lambda leaf: leaf[:2], after.policies)
    mean = agent.snapshot(after).params
    both = zip(jax.tree.leaves(first), jax.tree.leaves(rest), jax.tree.leaves(mean), strict=True)
    assert any(not np.allclose((one + other) / 2, np.stack([m] * 2), atol=1e-5) for one, other, m in both), "trained"


def test_an_iteration_waits_for_the_slowest_and_training_for_its_time(evolving):
    agent, given = evolving
    update = jax.jit(agent.update)
    state = agent.init(jax.random.key(0))
    one = given.transitions._replace(discount=given.transitions.discount.at[2, 3].set(1.0))
    waiting, metrics = update(state, given._replace(transitions=one), jax.random.key(1))
    assert waiting.trial.done.tolist() == [True, True, True, False]
    assert metrics["iterations"] == int(waiting.updates) == 0
    jax.tree.map(np.testing.assert_array_equal, waiting.policies, state.policies)
    after = update(waiting, given, jax.random.key(2))[0]
    assert int(after.updates) == 24
    late = state._replace(hyper=state.hyper._replace(learning_starts=jnp.float32(13)))
    after, metrics = update(late, given, jax.random.key(1))
    assert (metrics["iterations"], int(after.updates)) == (1, 0)
    half = state._replace(hyper=state.hyper._replace(gradient_steps=jnp.float32(0.5)))
    assert int(update(half, given, jax.random.key(1))[0].updates) == 6
    under_way = given.transitions._replace(discount=given.transitions.discount.at[2, 1].set(1.0))
    after, metrics = update(state, given._replace(transitions=under_way), jax.random.key(1))
    assert metrics["iterations"] == 1
    assert after.playing.whole.tolist() == [True, False, True, True], "what the old policy began is not the new one's"
    back = agent.about.restart(waiting)
    assert back.playing.whole.all()
    assert back.trial.done.tolist() == waiting.trial.done.tolist(), "what was played was played"


def test_in_training_streams_have_policies_of_their_own_and_elsewhere_the_mean_or_the_best_acts(evolving, diverse):
    obs, key = jnp.array([0.3, -0.2, 0.1]), jax.random.key(0)

    def actions(agent, state, **changed):
        policy = agent.snapshot(state)._replace(**changed)
        return [np.asarray(agent.act(policy._replace(stream=jnp.int32(b)), (), obs, key)[0]) for b in range(3)]

    def alone(agent, params):
        output = agent.about.networks["policy"].apply(params, obs, ())[0]["policy"]
        return MIDDLE + HALF * np.tanh(np.asarray(output, np.float64))

    agent = evolving[0]
    state = agent.init(jax.random.key(3))
    for b, action in enumerate(actions(agent, state)):
        np.testing.assert_allclose(action, alone(agent, member(state.policies, b)), rtol=1e-5)
    for action in actions(agent, state, explore=jnp.float32(0.0)):
        mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), state.policies)  # mirrored: it is the distribution's
        np.testing.assert_allclose(action, alone(agent, mean), rtol=1e-4)
    agent, state, *_ = diverse(noise=0.0)
    state = state._replace(record=_playing.Record(jnp.array([1.0, 5.0, 9.0]), jnp.array([1, 1, 0])))
    for b, action in enumerate(actions(agent, state)):
        np.testing.assert_allclose(action, alone(agent, member(state.params["policy"], b)), rtol=1e-5)
    for action in actions(agent, state, explore=jnp.float32(0.0)):
        np.testing.assert_allclose(action, alone(agent, member(state.params["policy"], 1)), rtol=1e-5)


def test_fewer_streams_than_policies_move_on_after_each_episode(env_spec, build_agent, rollout, ends):
    spec = env_spec((3,), low=LOW, high=HIGH)
    settings = {"policies": 5, "batch": 4, "capacity": 64, "rollout_length": 2, "learning_starts": 1000}
    agent = build_agent(spec, rule="dvd", streams=2, local=True, algorithm=settings)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    seen = [state.playing.policy.tolist()]
    for i in range(3):
        over = np.array([[False, True], [True, False]])
        state = update(state, rollout(spec, 2, 2, seed=i, ends=ends(over)), jax.random.key(i))[0]
        seen.append(state.playing.policy.tolist())
    assert seen == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert state.playing.whole.tolist() == [True, False]


# ------------------------------------------------------------------------------------------------ whole runs


class Keep:
    """An observer that keeps the first tree it is given after so many steps."""

    def __init__(self, at):
        self.at, self.tree = at, None

    def __call__(self, progress):
        if self.tree is None and progress.env_steps >= self.at:
            self.tree = jax.device_get(progress.save())
        return True

    def fault(self, kind, message):
        raise AssertionError(f"{kind}\n{message}")


SMALL = {
    "network": {"hidden": (8,)},
    "algorithm": {"batch": 8, "capacity": 256, "learning_starts": 16},
}
RUNS = {
    "cem_rl": {"policies": 4, "trained": 2, "elites": 2},  # an iteration takes two updates of two streams
    "dvd": {"policies": 3, "updates": 1},
}


@pytest.mark.parametrize("preset", RUNS)
def test_a_run_that_goes_on_reaches_the_same_bits_and_its_one_policy_is_evaluated(preset):
    settings = SMALL | {"algorithm": SMALL["algorithm"] | RUNS[preset]}
    settings["runtime"] = {"environments": 2, "chunk_steps": 6}
    made, opened = presets.resolve(presets.Request(preset, "probe:target", 60, settings=settings))
    built = experiment.build(made, opened)
    watch = Keep(30)
    whole = built.runtime.run(built.parts, 0, 60, None, watch, None)
    assert int(watch.tree.update) % 2, "in the middle of an iteration"
    again = built.runtime.run(built.parts, 0, 60, None, Keep(1000), watch.tree)
    jax.tree.map(np.testing.assert_array_equal, whole.final.save(), again.final.save())
    assert int(whole.final.save().state.updates) > 0
    found = evaluation.evaluate(built.parts, whole.policy, 3, 0)
    assert len(found.returns) == 3
    assert jax.tree.map(np.shape, whole.policy.params) == jax.tree.map(
        np.shape, jax.eval_shape(built.parts.agent.about.networks["policy"].init, jax.random.key(0))
    )
