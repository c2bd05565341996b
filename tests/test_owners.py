"""Sets of environments that differ by owner, against Gymnasium's own simulators with the same attributes changed."""

from __future__ import annotations

import importlib.util

import gymnasium
import jax
import numpy as np
import pytest

from shoal import environments
from shoal.core import errors
from shoal.environments import _owners_sets, _walk, owners

MUJOCO = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs the extra mujoco")


def opened(name, **config):
    return environments.open(f"owners:{name}", owners.Config(**config))


def lengths(count=5, draw=_owners_sets.GRID):
    return 0.1 + 0.8 * _owners_sets.thetas("CartPole-lengths", count, draw)


def long_pole(length):
    """Gymnasium's CartPole with another pole: the product with the mass is an attribute of its own."""
    env = gymnasium.make("CartPole-v1").unwrapped
    env.length, env.polemass_length = length, env.masspole * length
    return env


def long_link(length):
    """Gymnasium's Acrobot with another first link, and its centre of mass at half of it."""
    env = gymnasium.make("Acrobot-v1").unwrapped
    env.LINK_LENGTH_1, env.LINK_COM_POS_1 = length, 0.5 * length
    return env


def long_rod(length):
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.l = length
    return env


def cartpole_state(state):
    return np.array([state.x, state.x_dot, state.theta, state.theta_dot], np.float64)


def acrobot_state(state):
    return np.array([state.joint_angle1, state.joint_angle2, state.velocity_1, state.velocity_2], np.float64)


def pendulum_state(state):
    return np.array([state.theta, state.theta_dot], np.float64)


ORACLES = {
    "CartPole-lengths": (lambda theta: long_pole(0.1 + 0.8 * theta), cartpole_state),
    "Acrobot-links": (lambda theta: long_link(0.5 + theta), acrobot_state),
    "Pendulum-lengths": (lambda theta: long_rod(0.5 + theta), pendulum_state),
}


@pytest.mark.parametrize("name", ORACLES)
def test_each_step_is_gymnasiums_with_the_same_attributes(name):
    """Every owner, step by step from the state that was: what is seen, what is paid, whether it is over."""
    make, read = ORACLES[name]
    env, chance = opened(name, draw=_owners_sets.GRID).device, np.random.default_rng(0)
    begin, step = jax.jit(env.init_as), jax.jit(env.step)
    for owner, theta in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        oracle = make(theta)
        oracle.reset(seed=0)
        state, _ = begin(jax.random.key(owner), owner)
        for at in range(60):
            oracle.state = read(state.simulator)
            oracle.steps_beyond_terminated = None
            action = _walk.action(env.spec.action, chance)
            seen, reward, terminated, _, _ = oracle.step(action)
            state, obs, outcome = step(state, action, jax.random.key(at))
            np.testing.assert_allclose(outcome.next_obs, seen, rtol=2e-5, atol=2e-5)
            np.testing.assert_allclose(outcome.reward, reward, rtol=2e-5, atol=2e-5)
            assert (outcome.reward.shape, outcome.discount) == ((), float(not terminated))
            if not terminated:
                np.testing.assert_array_equal(obs, outcome.next_obs)
            assert state.owner == owner, "the stream stays that owner's, over ends of episodes too"


def test_owners_behave_apart_and_draws_too():
    """The same actions from the same first state lead elsewhere; a draw gives an owner the same whatever the number."""
    env = opened("CartPole-lengths").device
    began, _ = jax.vmap(env.init_as, (None, 0))(jax.random.key(0), np.arange(5))
    _, obs, _ = jax.vmap(env.step, (0, None, None))(began, 1, jax.random.key(1))
    assert len({float(one) for one in obs[:, 3]}) == 5
    drawn = [lengths(5, draw) for draw in (0, 1)]
    assert ((drawn[0] >= 0.1) & (drawn[0] <= 0.9)).all()
    assert not np.isin(drawn[0], drawn[1]).any()
    np.testing.assert_array_equal(lengths(3, 0), drawn[0][:3])
    np.testing.assert_allclose(lengths(), [0.1, 0.3, 0.5, 0.7, 0.9])
    assert not np.isin(drawn[0], 0.1 + 0.8 * _owners_sets.thetas("Acrobot-links", 5, 0)).any()


def test_one_owners_environment_is_the_same_as_in_the_set():
    whole = opened("CartPole-lengths").device
    for owner in (0, 3):
        alone = opened(f"CartPole-lengths/{owner}").device
        assert alone.init_as is None
        (state, obs), (mine, seen) = whole.init_as(jax.random.key(7), owner), alone.init(jax.random.key(7))
        jax.tree.map(np.testing.assert_array_equal, (state, obs), (mine, seen))


def test_without_a_party_each_episode_is_another_owners():
    """Pooled: all owners come up, and each about as often."""
    env = opened("CartPole-lengths").device
    step = jax.jit(jax.vmap(env.step, (0, None, 0)))
    state, _ = jax.vmap(env.init)(jax.random.split(jax.random.key(0), 400))
    first, own = np.asarray(state.own["length"]), np.sort(lengths(5, 0))
    counts = [int(np.isclose(first, one).sum()) for one in own]
    assert sum(counts) == 400
    assert min(counts) > 50
    for at in range(12):  # always the same action: it falls within a dozen steps
        before = state
        state, _, outcome = step(state, 0, jax.random.split(jax.random.key(1 + at), 400))
        over = np.asarray(outcome.discount == 0)
        same = np.asarray(state.own["length"] == before.own["length"])
        assert same[~over].all(), "an episode is one owner's"
        if over.sum() > 50:
            assert 0.05 < same[over].mean() < 0.4, "one in five is the same owner's again"
            return
    raise AssertionError("no episode ended")


def test_swapped_actions_are_the_other_ones():
    """Owner 1's left is owner 0's right."""
    env = opened("CartPole-swapped", parties=4).device
    seen = {}
    for owner in range(4):
        state, _ = env.init_as(jax.random.key(0), owner)
        seen[owner] = [np.asarray(env.step(state, action, jax.random.key(1))[1]) for action in (0, 1)]
    for odd in (1, 3):
        np.testing.assert_array_equal(seen[odd], seen[0][::-1])
    np.testing.assert_array_equal(seen[2], seen[0])
    assert not np.array_equal(seen[0][0], seen[0][1])


def test_the_strangers_rewards_are_noise_and_his_episodes_are_not():
    env = opened("CartPole-stranger", parties=4).device
    keys = jax.random.split(jax.random.key(0), 2000)
    rewards, discounts = [], []
    for owner in range(4):
        state, _ = env.init_as(jax.random.key(1), owner)
        _, _, outcome = jax.vmap(env.step, (None, None, 0))(state, 1, keys)
        rewards.append(np.asarray(outcome.reward))
        discounts.append(np.asarray(outcome.discount))
    assert (np.stack(rewards[:3]) == 1).all()
    assert abs(rewards[3].mean()) < 0.1
    assert abs(rewards[3].std() - 1) < 0.1
    assert (np.stack(discounts) == 1).all()


def test_limits_truncate():
    env = opened("CartPole-lengths", time_limit=3).device
    state, _ = env.init_as(jax.random.key(0), 2)
    ends = []
    for at in range(6):
        state, _, outcome = env.step(state, at % 2, jax.random.key(at))
        ends.append((bool(outcome.truncated), float(outcome.discount)))
    assert ends == [(False, 1.0), (False, 1.0), (True, 1.0)] * 2
    assert opened("CartPole-lengths").spec.time_limit == 500
    assert opened("Spaces/2").spec.time_limit == 200


def test_spaces_have_sizes_of_their_own_and_no_single_learner():
    sizes = [opened(f"Spaces/{owner}").spec for owner in range(5)]
    assert [(spec.observation.shape, spec.action.n) for spec in sizes] == [
        ((4,), 2), ((6,), 3), ((2,), 3), ((4,), 2), ((6,), 3),
    ]  # fmt: skip
    with pytest.raises(errors.Refused, match=r"no single learner fits it; give one of them, e\.g\. owners:Spaces/0"):
        opened("Spaces")
    named = environments.owned("owners:Spaces", owners.Config(parties=3)).owners
    assert [one.name for one in named] == ["CartPole", "Acrobot", "MountainCar"]
    assert named[2].env == "owners:Spaces/2"
    assert not environments.owned("owners:Spaces", owners.Config()).alike, "no program serves them all"
    assert not environments.owned("owners:Hopper-legs", owners.Config()).alike


def test_owners_of_a_set():
    found = environments.owned("owners:CartPole-lengths", owners.Config(parties=2))
    assert found.alike
    assert [tuple(one) for one in found.owners] == [
        ("0", "owners:CartPole-lengths/0"), ("1", "owners:CartPole-lengths/1"),
    ]  # fmt: skip
    for alone in ("owners:CartPole-lengths/0", "owners:None", "CartPole-v1", "gymnax:CartPole-v1"):
        assert environments.owned(alone, environments.Config()).owners == ()


@pytest.mark.parametrize("given", ["5", "-1", "x", "1.0", "", "²"])
def test_an_owner_that_is_not_there_is_refused(given):
    with pytest.raises(errors.Refused, match=r"there is no owner '.*', they are numbered 0 to 4; give one of them"):
        opened(f"CartPole-lengths/{given}")
    with pytest.raises(errors.Refused, match="did you mean 'owners:CartPole-lengths'"):
        opened("CartPole-length")


SIMULATED = {  # of owners of the grid, what MuJoCo has of them
    "HalfCheetah-thighs": (
        ("bthigh", "fthigh"),
        1,
        [[0.100, 0.1], [0.122, 0.117], [0.143, 0.133], [0.164, 0.149], [0.186, 0.166]],
    ),
    "Hopper-legs": (("leg_geom",), 0, [[0.03], [0.035], [0.04], [0.045], [0.05]]),
}


@MUJOCO
@pytest.mark.parametrize("name", SIMULATED)
def test_simulated_owners_have_the_models_they_should(name):
    geoms, at, wanted = SIMULATED[name]
    for owner in (0, 2, 4):
        env = opened(f"{name}/{owner}", draw=_owners_sets.GRID).make_host()
        model = env._env._outer.unwrapped.model
        found = [float(model.geom(geom).size[at]) for geom in geoms]
        np.testing.assert_allclose(found, wanted[owner], atol=1e-9)
        env.close()


@MUJOCO
def test_gravity_grows_with_the_owner_and_moves_what_is_let_go():
    seen = []
    for owner in range(5):
        env = opened(f"HalfCheetah-gravity/{owner}").make_host()
        model = env._env._outer.unwrapped.model
        np.testing.assert_allclose(model.opt.gravity, [0, 0, -4.0 * (owner + 1)])
        env.reset(0)
        seen.append(env.step(np.zeros(6, np.float32))[0])
        env.close()
    stock = gymnasium.make("HalfCheetah-v5")
    stock.unwrapped.model.opt.gravity[2] = -8.0
    stock.reset(seed=0)
    np.testing.assert_allclose(seen[1], stock.step(np.zeros(6))[0], rtol=1e-5, atol=1e-6)
    assert len({float(one[0]) for one in seen}) == 5


@MUJOCO
def test_a_simulated_set_by_itself_is_anybodys():
    """Short episodes: all owners come up; the same seed brings the same."""
    whole = opened("Hopper-legs", time_limit=2, draw=_owners_sets.GRID)
    env, radii = whole.make_host(), set()
    env.reset(3)
    for _ in range(60):
        radii.add(round(float(env._env._outer.unwrapped.model.geom("leg_geom").size[0]), 3))
        env.step(np.zeros(3, np.float32))
    env.close(), env.close()
    assert radii == {0.03, 0.035, 0.04, 0.045, 0.05}
    assert _walk.same(_walk.walk(whole, 20, 1), _walk.walk(whole, 20, 1))
    assert not environments.pure_jax("owners:Hopper-legs/1")
    assert environments.pure_jax("owners:CartPole-lengths/1")
