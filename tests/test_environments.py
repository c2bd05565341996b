from __future__ import annotations

import functools
import subprocess
import sys

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import environments
from shoal.core import errors
from shoal.environments import _device, probe

SHOWN = environments.Config()


def scripted(name, **config):
    return environments.open(f"tests.scripted:{name}-v0", environments.Config(**config))


def host(name, **config):
    return scripted(name, **config).make_host()


def refusal(env_id, **config):
    with pytest.raises(errors.Refused) as caught:
        environments.open(env_id, environments.Config(**config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ Gymnasium: endings


@pytest.mark.parametrize(
    ("name", "lengths", "discounts"),
    [
        ("Terminates", [3, 3], [0, 0]),
        ("Truncates", [3, 3], [1, 1]),
        ("Both", [3, 3], [0, 0]),  # the end is real
        ("AtOnce", [1, 1, 1], [0, 0, 0]),
        ("Mixed", [2, 4, 1, 2, 4], [0, 1, 0, 0, 1]),
        ("Limited", [4, 4], [1, 1]),  # cut by max_episode_steps
        ("Buffer", [3, 3], [0, 0]),
    ],
)
def test_each_ending_is_told_truthfully(name, lengths, discounts):
    env = host(name)
    acting_on, kept = env.reset(seed=7), []
    for episode, (length, last_discount) in enumerate(zip(lengths, discounts, strict=True)):
        for step in range(1, length + 1):
            np.testing.assert_array_equal(acting_on, [episode, step - 1])
            acting_on, outcome = env.step(0)
            kept.append((outcome.next_obs, [episode, step]))
            last = step == length
            assert outcome.reward == step
            assert outcome.discount == (last_discount if last else 1)
            assert outcome.truncated == (last and last_discount == 1)
            np.testing.assert_array_equal(acting_on, [episode + 1, 0] if last else [episode, step])
    for obs, expected in kept:  # nothing handed out is overwritten later
        np.testing.assert_array_equal(obs, expected)
    env.close()


def test_reset_begins_anew_in_the_middle_of_an_episode():
    env = host("Limited")
    env.reset(seed=0)
    env.step(0), env.step(0)
    np.testing.assert_array_equal(env.reset(seed=0), [0, 0])
    ends = [env.step(0)[1].truncated for _ in range(4)]
    assert ends == [False, False, False, True]


def test_time_limit_of_the_config_replaces_the_registered_one():
    opened = scripted("Limited", time_limit=2)
    env = opened.make_host()
    env.reset(seed=0)
    assert opened.spec.time_limit == 2
    assert [env.step(0)[1].truncated for _ in range(4)] == [False, True, False, True]
    assert scripted("Limited").spec.time_limit == 4
    assert scripted("Limited").spec.solved_at == 7.0
    assert scripted("Endless").spec.time_limit is None


def test_a_limit_longer_than_the_episode_leaves_termination():
    env = host("Limited", time_limit=9)  # ends by itself at 9, exactly when it would be cut
    env.reset(seed=0)
    outcomes = [env.step(0)[1] for _ in range(9)]
    assert outcomes[-1].discount == 0
    assert not outcomes[-1].truncated


def test_what_the_simulator_raises_is_not_hidden():
    env = host("Raises")
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(RuntimeError, match="the simulator broke"):
        env.step(0)
    np.testing.assert_array_equal(env.reset(seed=0), [0, 0])
    env.close()
    env.close()


def test_continues_the_simulators_random_numbers_after_an_end():
    """As a hand-stepped CartPole that is reset without a seed."""
    env = environments.open("CartPole-v1", SHOWN).make_host()
    raw = gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(env.reset(seed=3), raw.reset(seed=3)[0])
    ends = 0
    for step in range(300):
        obs, outcome = env.step(np.int32(step % 3 == 0))
        final, reward, terminated, truncated, _ = raw.step(int(step % 3 == 0))
        np.testing.assert_array_equal(outcome.next_obs, final)
        assert (outcome.reward, outcome.discount, outcome.truncated) == (reward, 1.0 - terminated, truncated)
        expected = raw.reset()[0] if terminated or truncated else final
        np.testing.assert_array_equal(obs, expected)
        ends += terminated
    assert ends > 3


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "LunarLanderContinuous-v3", "Hopper-v5"])
def test_box2d_and_mujoco_terminate(env_id):
    """As stepped by hand, observation by observation, episode after episode."""
    opened = environments.open(env_id, SHOWN)
    env, raw = opened.make_host(), gymnasium.make(env_id)
    assert env_id in environments.names()
    assert opened.spec.action.discrete == (env_id == "LunarLander-v3")
    raw.action_space.seed(0)
    np.testing.assert_allclose(env.reset(seed=3), raw.reset(seed=3)[0], rtol=1e-6)
    ends = 0
    for _ in range(400):
        action = raw.action_space.sample()
        obs, outcome = env.step(action)
        final, reward, terminated, truncated, _ = raw.step(action)
        np.testing.assert_allclose(outcome.next_obs, final, rtol=1e-6, atol=1e-30)
        assert outcome[:3] == (reward, 1.0 - terminated, truncated)
        np.testing.assert_allclose(obs, raw.reset()[0] if terminated or truncated else final, rtol=1e-6, atol=1e-30)
        ends += terminated
    assert ends >= 2
    env.close(), raw.close()


def test_half_cheetah_is_only_ever_truncated():
    opened = environments.open("HalfCheetah-v5", SHOWN)
    env, chance = opened.make_host(), np.random.default_rng(0)
    env.reset(seed=0)
    outcomes = [env.step(chance.uniform(-1, 1, 6))[1] for _ in range(2000)]
    assert opened.spec.time_limit == 1000
    assert [step for step, outcome in enumerate(outcomes, 1) if outcome.truncated] == [1000, 2000]
    assert all(outcome.discount == 1 for outcome in outcomes)


# ------------------------------------------------------------------------------------------------ Gymnasium: spaces


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "image", "first"),
    [
        ("Double", (2,), "float32", False, [0, 0]),
        ("Matrix", (6,), "float32", False, [0, 1, 2, 3, 4, 5]),
        ("OneHot", (4,), "float32", False, [1, 0, 0, 0]),
        ("Dict", (5,), "float32", False, [0, 1, 0, 0, 0]),  # door, then place
        ("Tuple", (4,), "float32", False, [1, 0, 1, 0]),
        ("Multi", (5,), "float32", False, [0, 1, 0, 0, 1]),
        ("Bytes", (5,), "float32", False, [0, 0, 0, 0, 200]),
        ("Image", (12, 10, 3), "uint8", True, None),
        ("ChannelFirst", (12, 10, 4), "uint8", True, None),
        ("Grey", (12, 10, 1), "uint8", True, None),
    ],
)
def test_what_the_agent_sees(name, shape, dtype, image, first):
    opened = scripted(name)
    assert opened.spec.observation[:4] == (shape, dtype, image, 1)
    env = opened.make_host()
    obs = env.reset(seed=0)
    later, outcome = env.step(0)
    for seen in (obs, later, outcome.next_obs):
        assert (seen.shape, seen.dtype) == (shape, np.dtype(dtype))
    if first is not None:
        np.testing.assert_array_equal(obs, first)


def test_channels_are_moved_to_the_back():
    opened = scripted("ChannelFirst")
    obs = opened.make_host().reset(seed=0)
    assert obs[0, 0, 3] == 200  # the last channel's first pixel
    assert obs.sum() == 200
    assert obs.flags.c_contiguous
    assert any("channels in front" in note for note in opened.spec.notes)


def test_flattening_is_told():
    assert any("door (3), place (2)" in note for note in scripted("Dict").spec.notes)


def test_observe_picks_features_in_order():
    opened = scripted("Dict", observe=(4, 0))
    env = opened.make_host()
    env.reset(seed=0)
    obs, outcome = env.step(0)
    assert opened.spec.observation.shape == (2,)
    np.testing.assert_array_equal(obs, [1, 0])
    np.testing.assert_array_equal(outcome.next_obs, [1, 0])


def test_choices_that_do_not_start_at_zero():
    opened = scripted("Start")
    env = opened.make_host()
    assert opened.spec.action.n == 3
    env.reset(seed=0)
    for action in (0, np.int32(1), jnp.int32(2)):
        env.step(action)
    assert env._outer.unwrapped.actions == [5, 6, 7]


def test_continuous_actions_are_clipped_and_shaped():
    opened = scripted("Reach")
    assert opened.spec.action == (False, 0, (2,), (-1.0, 0.0), (1.0, 5.0), (), 0, (), (2, 1), "float32")
    env = opened.make_host()
    env.reset(seed=0)
    env.step(np.array([-7.0, 2.5]))
    (taken,) = env._outer.unwrapped.actions
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, [[-1.0], [2.5]])


def test_whole_numbered_actions_are_rounded():
    env = host("Keys")
    env.reset(seed=0)
    env.step(np.array([0.6, 9.0], np.float32))
    (taken,) = env._outer.unwrapped.actions
    assert taken.dtype == np.int64
    np.testing.assert_array_equal(taken, [[1], [5]])


def test_an_old_version_is_noted_not_warned():
    notes = {
        name: environments.open(f"tests.scripted:{name}", SHOWN).spec.notes for name in ("Old-v2", "Old-v1", "Old")
    }
    assert notes["Old-v2"] == ()
    assert "out of date" in notes["Old-v1"][0]
    assert "latest versioned" in notes["Old"][0]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("env_id", "config", "says"),
    [
        ("Cartpole-v1", {}, "did you mean 'CartPole-v1'"),
        ("CartPole-v7", {}, "did you mean 'CartPole-v1'"),
        ("LunarLander-v2", {}, "did you mean 'LunarLander-v3'"),
        ("Nowhere/Thing-v0", {}, "unknown environment"),
        ("not an id", {}, "unknown environment"),
        ("", {}, "unknown environment"),
        ("Ant-v2", {}, "moved to the gymnasium-robotics"),
        ("no_such_module:Env-v0", {}, "module 'no_such_module' cannot be imported"),
        ("tests.scripted:Terminate-v0", {}, "did you mean 'tests.scripted:Terminates-v0'"),
        ("tests.scripted:NeedsPackage-v0", {}, "no_such_module"),
        ("a:b:c", {}, "more than one colon"),
        ("tests.scripted:Text-v0", {}, "observation space Text"),
        ("tests.scripted:DictText-v0", {}, "observation space Dict"),
        ("tests.scripted:TupleAction-v0", {}, "supported: Discrete, MultiDiscrete, MultiBinary and Box"),
        ("CartPole-v1", {"observe": (0, 4)}, "no feature 4"),
        ("CartPole-v1", {"observe": (-1,)}, "no feature -1"),
        ("tests.scripted:Image-v0", {"observe": (0,)}, "shows an image"),
        ("CartPole-v1", {"time_limit": -5}, "time_limit=-5"),
        ("gymnax:CartPole-v2", {}, "did you mean 'gymnax:CartPole-v1'"),
        ("gymnax:CartPole-v1", {"time_limit": -5}, "time_limit=-5"),
        ("gymnax:Breakout-MinAtar", {"observe": (0,)}, "shows an image"),
        ("probe:mach", {}, "did you mean 'probe:match'"),
    ],
)
def test_refused_in_one_line(env_id, config, says):
    assert says in refusal(env_id, **config)


@pytest.mark.parametrize(
    ("env_id", "package", "extra"),
    [
        ("LunarLander-v3", "Box2D", "box2d"),
        ("Ant-v5", "mujoco", "mujoco"),
        ("ALE/Pong-v5", "ale_py", "atari"),
    ],
)
def test_a_missing_package_names_the_extra(env_id, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for module in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)  # nor used by a test before
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    assert f"pip install 'shoal-rl[{extra}]'" in refusal(env_id)


def test_gymnasium_ids_do_not_import_jax():
    code = (
        "import sys\nfrom shoal import environments\n"
        "env = environments.open('CartPole-v1', environments.Config()).make_host()\n"
        "env.reset(seed=0); env.step(0)\nassert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_can_all_be_opened_or_say_why():
    names = environments.names()
    assert {"CartPole-v1", "gymnax:CartPole-v1", "probe:memory"} <= set(names)
    assert {"ALE/Pong-v5", "brax:ant", "envpool:Pong-v5", "LunarLanderContinuous-v3"} <= set(names)
    assert not {"Ant-v2", "GymV21Environment-v0"} & set(names)
    assert len(names) == len(set(names))


# ------------------------------------------------------------------------------------------------ gymnax


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCarContinuous-v0", "Breakout-MinAtar", "FrozenLake-misc"])
def test_gymnax_against_hand_stepping(name):
    """Each step equals `step_env` from the same state with the same key; an end begins a new episode."""
    simulator, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=30)
    env = environments.open(f"gymnax:{name}", environments.Config(time_limit=30)).device
    step, raw = jax.jit(env.step), jax.jit(simulator.step_env)
    state, obs = env.init(jax.random.key(1))
    ends = {"terminated": 0, "truncated": 0}
    for number in range(150):
        key = jax.random.key(number)
        action = simulator.action_space(params).sample(key)
        final, after, reward, terminated, _ = raw(key, state, action, params)
        terminated, truncated = bool(terminated), bool(after.time >= 30) and not bool(terminated)
        state, obs, outcome = step(state, action, key)
        expected = jax.nn.one_hot(final, 16) if name.startswith("FrozenLake") else final
        np.testing.assert_allclose(outcome.next_obs, expected, rtol=1e-5)
        assert (float(outcome.discount), bool(outcome.truncated)) == (1.0 - terminated, truncated)
        np.testing.assert_allclose(outcome.reward, reward, rtol=1e-5)
        assert int(state.time) == (0 if terminated or truncated else int(after.time))
        if not (terminated or truncated):
            np.testing.assert_allclose(obs, outcome.next_obs, rtol=1e-6, atol=1e-6)  # XLA may compute the two apart
        ends["terminated"] += terminated
        ends["truncated"] += truncated
    assert sum(ends.values()) > 3


def test_gymnax_end_and_limit_at_once_terminates():
    env = environments.open("gymnax:CartPole-v1", environments.Config(time_limit=1)).device
    state, _ = env.init(jax.random.key(0))
    _, _, cut = env.step(state, 1, jax.random.key(1))
    assert (float(cut.discount), bool(cut.truncated)) == (1.0, True)
    falling = state.replace(theta=jnp.float32(0.5))
    _, first, fell = env.step(falling, 1, jax.random.key(1))
    assert (float(fell.discount), bool(fell.truncated)) == (0.0, False)
    assert abs(float(first[2])) <= 0.05 < abs(float(fell.next_obs[2]))


def test_gymnax_resets_differ_between_episodes_and_streams():
    env = environments.open("gymnax:CartPole-v1", environments.Config(time_limit=1)).device
    states, _ = jax.vmap(env.init)(jax.random.split(jax.random.key(0), 64))
    step = jax.vmap(env.step)
    _, first, _ = step(states, jnp.zeros(64, int), jax.random.split(jax.random.key(1), 64))
    _, second, _ = step(states, jnp.zeros(64, int), jax.random.split(jax.random.key(2), 64))
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 128
    assert abs(float(jnp.mean(first))) < 0.01  # uniform in +-0.05: the standard error of 256 draws is 0.002


def test_gymnax_and_gymnasium_cartpole_move_alike():
    """The same physics: from the same states, the same successors, rewards and ends."""
    env = environments.open("gymnax:CartPole-v1", SHOWN).device
    raw = gymnasium.make("CartPole-v1").unwrapped
    step, (state, _) = jax.jit(env.step), env.init(jax.random.key(0))
    chance = np.random.default_rng(0)
    for _ in range(100):
        place = chance.uniform([-2.5, -3, -0.23, -3], [2.5, 3, 0.23, 3])
        action = int(chance.integers(2))
        raw.reset(seed=0)
        raw.state = tuple(place)
        expected, reward, terminated, _, _ = raw.step(action)
        x, x_dot, theta, theta_dot = place.astype(np.float32)
        at = state.replace(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)
        _, _, outcome = step(at, action, jax.random.key(0))
        np.testing.assert_allclose(outcome.next_obs, expected, atol=1e-5)
        inside = abs(place[0]) < 2.4 and abs(place[2]) < 12 * np.pi / 180  # gymnax pays nothing once it has fallen
        if inside:
            assert (float(outcome.reward), float(outcome.discount)) == (reward, 1.0 - terminated)


@pytest.mark.parametrize(
    ("game", "planes", "choices"),
    [("Asterix", 4, 5), ("Breakout", 4, 3), ("Freeway", 7, 3), ("Seaquest", 10, 6), ("SpaceInvaders", 6, 4)],
)
def test_minatar_games_are_images_of_planes(game, planes, choices):
    opened = environments.open(f"gymnax:{game}-MinAtar", SHOWN)
    spec, env = opened.spec, opened.device
    assert spec.observation[:4] == ((10, 10, planes), "float32", True, 1)
    assert (spec.action.n, spec.time_limit) == (choices, 2500 if game == "Freeway" else 1000)
    _, obs, _ = jax.eval_shape(env.step, jax.eval_shape(env.init, jax.random.key(0))[0], 0, jax.random.key(0))
    assert (obs.shape, obs.dtype) == ((10, 10, planes), "float32")


def test_minatar_planes_are_zeros_and_ones_and_a_limit_truncates():
    env = environments.open("gymnax:SpaceInvaders-MinAtar", environments.Config(time_limit=1)).device
    state, first = env.init(jax.random.key(0))
    _, _, outcome = jax.jit(env.step)(state, 0, jax.random.key(1))
    assert set(np.unique(first)) == set(np.unique(outcome.next_obs)) == {0.0, 1.0}
    assert (float(outcome.discount), bool(outcome.truncated)) == (1.0, True)


def test_gymnax_clips_actions():
    env = environments.open("gymnax:PointRobot-misc", SHOWN).device
    state, _ = env.init(jax.random.key(0))
    _, _, far = env.step(state, jnp.array([9.0, -9.0]), jax.random.key(1))
    _, _, near = env.step(state, jnp.array([0.1, -0.1]), jax.random.key(1))
    np.testing.assert_array_equal(far.next_obs, near.next_obs)


def test_a_loop_over_gymnax_is_compiled_once():
    """State types of reset and step agree, weak types included."""
    for name in ("CartPole-v1", "Breakout-MinAtar", "BernoulliBandit-misc"):
        env = environments.open(f"gymnax:{name}", SHOWN).device
        begun = jax.eval_shape(env.init, jax.random.key(0))
        moved = jax.eval_shape(env.step, begun[0], 0, jax.random.key(0))[:2]
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), begun) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), moved
        )


# ------------------------------------------------------------------------------------------------ probes


@functools.cache
def probe_host(name, **config):
    return environments.open(f"probe:{name}", environments.Config(**config)).make_host()


def episode(name, policy, seed, **config):
    """One episode: observations before each step, rewards, and the last outcome."""
    env = probe_host(name, **config)
    obs, seen, rewards = env.reset(seed), [], []
    while True:
        seen.append(obs)
        obs, outcome = env.step(policy(seen))
        rewards.append(outcome.reward)
        if outcome.discount == 0 or outcome.truncated:
            return np.array(seen), np.array(rewards), outcome


BEST = {
    "constant": lambda _: 0,
    "observation": lambda _: 1,
    "discount": lambda _: 0,
    "action": lambda _: 1,
    "match": lambda seen: int(seen[-1][0] > 0),
    "pair": lambda seen: np.where(seen[-1][0] > 0, [1, 2], 0),
    "truncated": lambda _: 0,
    "target": lambda seen: 0.5 * seen[-1],
    "memory": lambda seen: int(seen[0][0] > 0),
}


@pytest.mark.parametrize("name", probe.PROBES)
def test_the_truth_about_each_probe(name):
    """The best policy's discounted returns are the values told, and its mean return is the optimum."""
    truth, gamma, totals = probe.TRUTHS[name], 0.9, []
    for seed in range(8):
        seen, rewards, last = episode(name, BEST[name], seed)
        ahead = float(truth.value(last.next_obs, gamma)) if last.truncated else 0.0
        for obs, reward in reversed(list(zip(seen, rewards, strict=True))):
            ahead = reward + gamma * ahead
            np.testing.assert_allclose(truth.value(obs, gamma), ahead, rtol=1e-5, atol=1e-6)
        totals.append(rewards.sum())
    if name == "observation":  # its return is the cue, -1 or 1
        assert set(totals) == {-1.0, 1.0}
    else:
        assert set(np.round(totals, 5)) == {truth.optimal_return}


def test_a_pair_pays_only_where_both_choices_are_right():
    for first, second in np.ndindex(2, 3):
        for seed in range(4):
            (seen,), (reward,), _ = episode("pair", lambda _: np.array([first, second]), seed)  # noqa: B023
            right = (1, 2) if seen[0] > 0 else (0, 0)
            assert reward == (1.0 if (first, second) == right else -1.0)


def test_truncated_probe_never_terminates():
    _, rewards, last = episode("truncated", lambda _: 0, 0)
    assert (len(rewards), last.discount, last.truncated) == (10, 1.0, True)
    assert len(episode("truncated", lambda _: 0, 0, time_limit=3)[1]) == 3


def test_memory_shows_nothing_of_the_cue_later():
    answers = {}
    for seed in range(8):
        seen, _, _ = episode("memory", BEST["memory"], seed)
        answers[float(seen[0][0])] = seen[1:]
    assert set(answers) == {-1.0, 1.0}
    np.testing.assert_array_equal(answers[-1.0], answers[1.0])


# ------------------------------------------------------------------------------------------------ host views


def test_host_view_follows_the_seed():
    make = environments.open("gymnax:CartPole-v1", SHOWN).make_host
    one, two, other = make(), make(), make()
    np.testing.assert_array_equal(one.reset(5), two.reset(5))
    assert not np.array_equal(one.reset(5), other.reset(6))
    for _ in range(40):
        (a, _), (b, _) = one.step(1), two.step(1)
        np.testing.assert_array_equal(a, b)


def test_keys_of_steps_differ():
    keys = [jax.random.key_data(_device.key_of_step(seed, step)).tolist() for seed in (0, 1) for step in range(3)]
    assert len({tuple(key) for key in keys}) == 6
