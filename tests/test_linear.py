"""Features, Sarsa(λ) and the statistics of samples, against hand numbers, scalar loops and direct solves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import environments, experiment
from shoal.algorithms import batch_linear
from shoal.algorithms._linear import features, least_squares, sarsa
from shoal.core import errors, types
from shoal.experiment import budget, presets
from shoal.runs import training
from shoal.runtimes.map_reduce import mapper

# ---------------------------------------------------------------------------------------------- features


def test_one_tile_of_each_grid_is_active_and_no_two_places_share_an_index():
    made = features.tiles((0.0, -1.0), (1.0, 1.0), 8, 8)
    assert made.size == 8 * 9**2
    obs = np.random.default_rng(0).uniform((0.0, -1.0), (1.0, 1.0), (2000, 2))
    active = made.active(obs, np)
    assert active.shape == (2000, 8)
    assert (active // 81 == np.arange(8)).all(), "one of each grid, in its own range"
    seen = {}
    for place, index in zip(obs, active[:, 0], strict=True):  # the first grid is not shifted: 8 x 8 cells
        cell = tuple(np.floor((place - (0.0, -1.0)) / (1.0, 2.0) * 8).astype(int))
        assert seen.setdefault(index, cell) == cell
    assert len(seen) == 64


def test_tiles_are_shifted_by_odd_fractions():
    made = features.tiles((0.0, 0.0), (1.0, 1.0), 4, 2)
    # At (0.3, 0.3) of 2 x 2 tiles the place is (0.6, 0.6); grids are shifted by (t, 3 t mod 4) / 4.
    expected = [(0, 0), (0, 1), (1, 1), (1, 0)]
    assert made.active(np.array([0.3, 0.3]), np).tolist() == [9 * t + x + 3 * y for t, (x, y) in enumerate(expected)]


def test_beyond_the_range_is_its_edge_and_both_libraries_agree():
    made = features.tiles((-1.2, -0.07), (0.6, 0.07), 8, 8)
    edge, beyond = made.active(np.array([0.6, -0.07]), np), made.active(np.array([5.0, -3.0]), np)
    np.testing.assert_array_equal(edge, beyond)
    assert edge.max() < made.size
    obs = np.random.default_rng(1).uniform((-1.2, -0.07), (0.6, 0.07), (500, 2)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(lambda x: made.active(x, jnp))(obs), made.active(obs, np))
    vector = made.vector(obs, np)
    assert vector.shape == (500, made.size)
    np.testing.assert_array_equal(np.sort(made.active(obs, np)), np.nonzero(vector)[1].reshape(500, 8))


def test_polynomials_are_all_products_of_scaled_numbers():
    made = features.polynomial((0.0, 0.0), (2.0, 4.0), 2)
    np.testing.assert_allclose(made.vector(np.array([1.5, 1.0]), np), [1.0, 0.5, -0.5, 0.25, -0.25, 0.25])
    assert made.size == 6


# ---------------------------------------------------------------------------------------------- Sarsa(λ)


class Scripted:
    """A simulator that shows and pays what it was told, whatever is done."""

    def __init__(self, steps):
        self.steps, self.at, self.resets = steps, 0, []

    def reset(self, seed):
        self.resets.append(seed)
        self.at = 0
        return np.array([0.0])

    def step(self, action):
        del action
        reward, discount, truncated, shown = self.steps[self.at]
        self.at += 1
        return np.array([9.0]), types.Outcome(reward, discount, truncated, np.array([shown]))


def one_each(obs, xp):
    """Two features: a constant, and one of four places."""
    return xp.asarray([0, 1 + int(obs[0])])


def by_hand(steps, alpha, lambda_, gamma, replacing):
    """The textbook loop for one action, scalars only."""
    w, z, here = [0.0] * 5, [0.0] * 5, (0, 1)
    for reward, discount, _, shown in steps:
        there = (0, 1 + int(shown))
        value = sum(w[i] for i in there) if discount else 0.0
        delta = reward + gamma * value - sum(w[i] for i in here)
        z = [gamma * lambda_ * each for each in z]
        for i in here:
            z[i] = 1.0 if replacing else z[i] + 1.0
        w = [each + alpha * delta * trace for each, trace in zip(w, z, strict=True)]
        here = there
    return w


STEPS = [(1.0, 1.0, False, 1.0), (-2.0, 1.0, False, 2.0), (0.5, 1.0, False, 1.0), (3.0, 1.0, False, 3.0)]
TERMINATED, LIMITED = [*STEPS, (2.0, 0.0, False, 0.0)], [*STEPS, (2.0, 1.0, True, 0.0)]


@pytest.mark.parametrize("replacing", [True, False])
@pytest.mark.parametrize("steps", [TERMINATED, LIMITED], ids=["terminated", "limited"])
def test_sarsa_is_the_scalar_loop(steps, replacing):
    weights, visits, env = np.zeros(5), np.zeros(5, np.int64), Scripted(steps)
    learner = sarsa.Learner(sarsa.Numbers(0.1, 0.8, 0.9, 0.0, replacing), one_each, env, weights, visits, 1)
    learner.begin(3)
    assert learner.advance(2) is None, "a stretch may end within an episode"
    episode = learner.advance(100)
    assert (episode.episode_return, episode.length) == (4.5, 5)
    np.testing.assert_allclose(weights, by_hand(steps, 0.1, 0.8, 0.9, replacing), rtol=1e-12)
    np.testing.assert_array_equal(visits, [5, 1, 2, 1, 1])


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert not np.allclose(by_hand(TERMINATED, 0.1, 0.8, 0.9, True), by_hand(LIMITED, 0.1, 0.8, 0.9, True))


def test_a_reward_that_is_not_finite_is_dropped_and_counted():
    steps = [STEPS[0], (np.nan, 1.0, False, 2.0), *TERMINATED[2:]]
    weights, env = np.zeros(5), Scripted(steps)
    learner = sarsa.Learner(sarsa.Numbers(0.1, 0.8, 0.9, 0.0, True), one_each, env, weights, np.zeros(5, np.int64), 1)
    learner.begin(0)
    learner.advance(100)
    assert learner.non_finite == 1
    assert np.isfinite(weights).all()
    assert weights.any()


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_is_counted_and_not_learned_from(lost):
    made = features.tiles((0.0,), (4.0,), 2, 4)
    seen = [*STEPS[:2], (5.0, 1.0, False, lost), (7.0, 1.0, False, 2.0)]

    def played(steps):
        weights, visits = np.zeros(made.size), np.zeros(made.size, np.int64)
        learner = sarsa.Learner(
            sarsa.Numbers(0.1, 0.0, 0.9, 0.0, True), made.active, Scripted(steps), weights, visits, 1
        )
        learner.begin(0)
        learner.advance(len(steps))
        return weights, learner.non_finite

    weights, non_finite = played(seen)
    assert non_finite == 2, "the step to it, and the step from it"
    np.testing.assert_array_equal(weights, played(seen[:2])[0])
    assert weights.any()
    terminal = [*STEPS, (2.0, 0.0, False, lost)]
    assert played(terminal)[1] == 0, "nothing is read after a termination"


def test_an_episode_is_decided_by_its_seed_and_ties_are_broken_at_random():
    made = features.tiles((-1.2, -0.07), (0.6, 0.07), 8, 8)
    opened = environments.open("MountainCar-v0", environments.Config(time_limit=50))

    def played(seed):
        weights = np.zeros(3 * made.size)
        learner = sarsa.Learner(
            sarsa.Numbers(0.0, 0.9, 1.0, 0.0, True), made.active, opened.make_host(), weights,
            visits := np.zeros(3 * made.size, np.int64), 3,
        )  # fmt: skip
        learner.begin(seed)
        learner.advance(1000)
        return visits

    np.testing.assert_array_equal(played(1), played(1))
    assert (played(1) != played(2)).any()
    assert (played(1).reshape(3, -1).sum(1) > 0).all(), "all weights are equal, so all actions are tried"


# ---------------------------------------------------------------------------------------------- sums over samples

GAMMA, PLACES = 0.9, 4
ONE_HOT = features.raw(PLACES)


def chain(count, seed=0):
    """Samples of a chain walked at random: action 1 goes right and 0 left, one in ten slips; places 1 and 2 pay.

    Source: the four-place chain of Koller & Parr, in Lagoudakis & Parr 2003, section 9.1.
    """
    chance = np.random.default_rng(seed)
    place, action = chance.integers(PLACES, size=count), chance.integers(2, size=count)
    slips = chance.random(count) < 0.1
    after = np.clip(place + np.where((action == 1) ^ slips, 1, -1), 0, PLACES - 1)
    seen = np.eye(PLACES, dtype=np.float32)
    reward = np.isin(after, (1, 2)).astype(float)
    discount = (chance.random(count) > 0.02).astype(float)  # now and then it ends
    return types.Transition(seen[place], action.astype(np.int32), reward, discount, discount == 2.0, seen[after], ())


def numbers(method, **changes):
    given = {"step_size": 1.0, "correction_step_size": 1.0, "ridge": 1e-6, "tolerance": 1e-12} | changes
    return least_squares.Numbers(method=method, discount=GAMMA, **given)


def learn(method, samples, mappers=1, rounds=1, start=None, **changes):
    """As the runtime does: shards, sums in the order of the mappers, solve."""
    given, memory = numbers(method, **changes), start or least_squares.begin(method, 2, PLACES)
    edges = mapper.shards(len(samples.reward), mappers)
    shards = [
        least_squares.prepare(ONE_HOT, GAMMA, types.Transition(*(leaf[a:b] for leaf in samples[:-1]), extras=()))
        for a, b in edges
    ]
    for _ in range(rounds):
        total = mapper.added([least_squares.map_chunk(given, 2, memory, shard) for shard in shards])
        memory, metrics, done = least_squares.solve(given, memory, total)
        if done:
            break
    return memory["w"], metrics


def solved_directly(samples):
    """LSTD(Q) of random actions from the definition, a sample at a time."""
    matrix, vector = np.zeros((8, 8)), np.zeros(8)
    for obs, action, reward, discount, _, after, _ in zip(*samples[:-1], samples.reward, strict=True):
        here = np.kron(np.eye(2)[action], obs)
        there = np.kron([0.5, 0.5], after)
        matrix += np.outer(here, here - GAMMA * discount * there)
        vector += reward * here
    return np.linalg.solve(matrix + 1e-6 * np.eye(8), vector)


@pytest.fixture(scope="module")
def samples():
    return chain(5003)


def test_lstd_is_the_direct_solution_with_any_number_of_mappers(samples):
    direct = solved_directly(samples)
    found = {mappers: learn("lstd", samples, mappers)[0] for mappers in (1, 2, 8)}
    for weights in found.values():
        np.testing.assert_allclose(weights, direct, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found[8], found[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["td", "tdc"])
def test_steps_lead_where_lstd_solves(method):
    samples = chain(600)
    direct = learn("lstd", samples)[0]
    weights, metrics = learn(method, samples, 2, rounds=6000, step_size=4.0, correction_step_size=4.0, tolerance=1e-7)
    assert metrics["change"] < 1e-7, "it stays"
    np.testing.assert_allclose(weights, direct, rtol=0, atol=1e-3)
    assert metrics["bellman_error"] > 0.1, "the reward is not certain"


def test_lspi_finds_the_best_policy_of_the_chain(samples):
    weights, metrics = learn("lspi", samples, 3, rounds=20)
    assert metrics["change"] < 1e-12, "it stays"
    assert weights.reshape(2, PLACES).argmax(0).tolist() == [1, 1, 0, 0]
    assert learn("lstd", samples)[0].reshape(2, PLACES).max() < weights.max(), "better than random"


def test_samples_that_are_not_finite_are_left_out(samples):
    reward, obs = samples.reward.copy(), samples.obs.copy()
    reward[7], obs[11] = np.nan, np.inf
    kept = np.delete(np.arange(len(reward)), [7, 11])
    without = types.Transition(*(leaf[kept] for leaf in samples[:-1]), extras=())
    found = learn("lstd", samples._replace(reward=reward, obs=obs))[0]
    np.testing.assert_allclose(found, learn("lstd", without)[0], rtol=0, atol=1e-10)
    shard = least_squares.prepare(ONE_HOT, GAMMA, samples._replace(reward=reward, obs=obs))
    sums = least_squares.map_chunk(numbers("lstd"), 2, least_squares.begin("lstd", 2, PLACES), shard)
    assert sums["n"] == len(reward) - 2, "and not counted"


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_no_features_hide_that_an_observation_is_not_finite(samples, lost):
    obs = samples.obs.copy()
    obs[11, 0] = lost
    for made in (features.tiles((0.0,) * 4, (1.0,) * 4, 2, 2), features.polynomial((0.0,) * 4, (1.0,) * 4, 2)):
        shard = least_squares.prepare(made, GAMMA, samples._replace(obs=obs))
        assert np.flatnonzero(~shard.finite).tolist() == [11]


def test_without_a_sample_to_learn_from_it_gives_up(samples):
    with pytest.raises(errors.GaveUp, match="none of the samples"):
        learn("lstd", samples._replace(reward=np.full_like(samples.reward, np.nan)))


def baird(method, rounds):
    """Baird's star: seven places visited equally often, from each the policy goes to the last; rewards are 0.

    Source: Baird 1995; Sutton & Barto 2018, figure 11.1.
    """
    seen = np.zeros((7, 8))
    seen[range(6), range(6)], seen[:6, 7] = 2.0, 1.0
    seen[6, 6], seen[6, 7] = 1.0, 2.0
    samples = types.Transition(
        seen, np.zeros(7, np.int32), np.zeros(7), np.ones(7), np.zeros(7, bool), np.tile(seen[6], (7, 1)), ()
    )
    given = least_squares.Numbers(method, 0.99, 0.0, 0.05, 0.5, 0.0)
    shard = least_squares.prepare(features.raw(8), 0.99, samples)
    memory = least_squares.begin(method, 1, 8) | {"w": np.array([1.0, 1, 1, 1, 1, 1, 10, 1])}
    largest = 0.0
    for _ in range(rounds):
        memory, _, _ = least_squares.solve(given, memory, least_squares.map_chunk(given, 1, memory, shard))
        largest = max(largest, np.abs(memory["w"]).max())
    return largest


def test_off_policy_td_grows_without_bound_and_tdc_does_not():
    assert baird("td", 5000) > 1e6
    assert baird("tdc", 5000) < 20


def test_weights_that_grow_without_bound_are_given_up(samples):
    with pytest.raises(errors.GaveUp, match="step-size"):
        learn("td", samples, rounds=10_000, step_size=100.0)
    nothing_there = samples._replace(obs=np.zeros_like(samples.obs))
    with pytest.raises(errors.GaveUp, match="ridge"):
        learn("lstd", nothing_there, ridge=0.0)


# ---------------------------------------------------------------------------------------------- refusals


def refusal(preset, env="MountainCar-v0", **settings):
    with pytest.raises(errors.Refused) as told:
        presets.resolve(presets.Request(preset, env=env, **settings))
    return str(told.value)


def test_what_does_not_fit_is_refused_in_a_line():
    for preset in ("parallel_sarsa", "batch_linear"):
        assert "--network" in refusal(preset, settings={"network": {"lstm": 8}})
        assert "--optimiser" in refusal(preset, settings={"optimiser": {"learning_rate": 0.5}})
        assert "discrete" in refusal(preset, "Pendulum-v1")
        assert "--runtime" in refusal(preset, runtime="host")
        assert "--runtime" in refusal(preset, "gymnax:MountainCar-v0", runtime="on_device")
    assert "2 values" in refusal("parallel_sarsa", settings={"algorithm": {"low": ()}})
    assert "below" in refusal("parallel_sarsa", settings={"algorithm": {"low": (1.0, 1.0)}})
    for low, high in [(-np.inf, 1.0), (0.0, np.inf), (-1e308, 1e308)]:
        ranges = {"low": (0.0, low), "high": (1.0, high)}
        assert "finite" in refusal("parallel_sarsa", settings={"algorithm": ranges})
        assert "finite" in refusal("batch_linear", settings={"algorithm": {"features": "tiles"} | ranges})
    assert "algorithm.tiles" in refusal("parallel_sarsa", settings={"algorithm": {"tiles": 1000}})
    assert "algorithm.tiles" in refusal("batch_linear", settings={"algorithm": {"tiles": 300}})
    assert "--until" in refusal("batch_linear", until=-110.0)
    assert "on_device" in refusal("a2c", "CartPole-v1", runtime="peers")
    assert experiment.ways("hogwild").learns == "rollouts"


def test_weights_are_counted_before_they_are_made():
    made, opened = presets.resolve(presets.Request("batch_linear", "CartPole-v1"))

    def refused(method, numbers, **changes):
        seen = opened.spec.observation._replace(shape=(numbers,))
        ranges = {"low": (0.0,) * numbers, "high": (1.0,) * numbers}
        config = dataclasses.replace(made.configs["algorithm"], method=method, **ranges, **changes)
        return batch_linear.fits(config, made.configs["network"], opened.spec._replace(observation=seen))

    polynomial, tiles = {"features": "polynomial"}, {"features": "tiles", "tilings": 4}
    assert "lower algorithm.degree" in refused("lspi", 100, degree=16, **polynomial)
    assert "lower algorithm.degree" in refused("td", 100, degree=16, **polynomial)
    assert "10,000" in refused("lstd", 5001, features="raw")
    assert "1,000,000" in refused("tdc", 500_001, features="raw")
    assert "lower algorithm.tiles" in refused("lspi", 2, tiles=50, **tiles)
    assert not refused("td", 2, tiles=50, **tiles)
    assert not refused("lstd", 5000, features="raw")
    for numbers, degree in [(1, 0), (2, 3), (4, 2)]:
        config = dataclasses.replace(made.configs["algorithm"], features="polynomial", degree=degree)
        size = features.polynomial((0.0,) * numbers, (1.0,) * numbers, degree).size
        assert batch_linear._size(config, numbers) == size


def test_a_batch_whose_features_cannot_be_held_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(budget, "on_host", lambda: 2 * budget.MB)
    monkeypatch.setattr(budget, "check_processes", lambda *_: None)  # which alone take more than that
    with pytest.raises(errors.Refused, match=r"features of 20,000 samples would take 5 MB.*lower --steps"):
        training.train(presets.Request("batch_linear", "CartPole-v1"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
