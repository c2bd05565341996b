"""Brax tasks: ends and resets are ours, the physics are the library's."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import environments
from shoal.core import errors, options
from shoal.environments import brax

PENDULUM = "brax:inverted_pendulum"  # the quickest to compile
LIMIT = 8


def opened(env_id=PENDULUM, **settings):
    return environments.open(env_id, brax.Config(**settings))


@pytest.fixture(scope="module")
def device():
    return opened(backend="spring", time_limit=LIMIT).device


@pytest.fixture(scope="module")
def step(device):
    return jax.jit(device.step)


def library():
    with brax._quiet():
        import brax.envs as found
    return found


def test_ids_are_those_of_the_library():
    assert {*brax.TASKS, *brax.LEFT_OUT} == set(library()._envs)
    assert brax.names() == [f"brax:{name}" for name in brax.TASKS]


@pytest.mark.parametrize("name", ["halfcheetah", "hopper", "inverted_double_pendulum", "pusher"])
def test_states_of_resets_and_steps_agree(name):
    """In structure, shapes and types, weak ones included: a loop over them is compiled once."""
    made = opened(f"brax:{name}", backend="spring")
    env, action = made.device, jnp.zeros(made.spec.action.shape)
    begun = jax.eval_shape(env.init, jax.random.key(0))
    moved = jax.eval_shape(env.step, begun[0], action, jax.random.key(0))[:2]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), begun) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), moved
    )
    assert begun[1].shape == made.spec.observation.shape
    assert (made.spec.time_limit, made.spec.on_device) == (1000, True)
    assert {*made.spec.action.low, *made.spec.action.high} == {-1.0, 1.0}


def test_steps_are_the_librarys_and_ends_are_told_apart(device, step):
    """Each step equals brax's own from the same state; the limit truncates, a fall terminates."""
    with brax._quiet():
        simulator = library().get_environment("inverted_pendulum", backend="spring")
        raw = jax.jit(simulator.step)
    state, obs = device.init(jax.random.key(0))
    terminated = truncated = 0
    for number in range(40):
        push = jnp.array([1.0 if number >= 2 * LIMIT else 0.0])  # two quiet episodes, then it falls
        with brax._quiet():
            expected = raw(state.simulator, push)
        time = int(state.time) + 1
        state, obs, outcome = step(state, push, jax.random.key(number))
        np.testing.assert_allclose(outcome.next_obs, expected.obs, atol=1e-5)
        np.testing.assert_allclose(outcome.reward, expected.reward, atol=1e-5)
        fell = bool(expected.done)
        assert (float(outcome.discount), bool(outcome.truncated)) == (1.0 - fell, time >= LIMIT and not fell)
        over = fell or time >= LIMIT
        assert int(state.time) == (0 if over else time)
        assert (np.abs(obs).max() <= 0.011) if over else np.allclose(obs, outcome.next_obs)
        terminated, truncated = terminated + fell, truncated + bool(outcome.truncated)
    assert terminated > 1
    assert truncated >= 2


def test_every_episode_begins_somewhere_else(device, step):
    """Brax's own wrapper brings back the same first state for ever."""
    state, obs = device.init(jax.random.key(0))
    begun = [obs]
    for number in range(3 * LIMIT):
        state, obs, outcome = step(state, jnp.zeros(1), jax.random.key(number))
        if outcome.truncated:
            begun.append(obs)
    assert len(np.unique(np.stack(begun), axis=0)) == 4


def test_a_step_leaves_the_state_it_is_given_alone():
    """Brax writes its metrics into the dictionary it is handed."""
    env = opened("brax:hopper", backend="spring").device

    def watch(state):
        metrics, before = state.simulator.metrics, dict(state.simulator.metrics)
        env.step(state, jnp.ones(3), jax.random.key(1))
        assert metrics
        assert all(metrics[name] is value for name, value in before.items())
        return ()

    jax.eval_shape(watch, jax.eval_shape(env.init, jax.random.key(0))[0])


def test_actions_are_clipped_and_features_picked(device, step):
    state, _ = device.init(jax.random.key(0))
    far, near = (step(state, jnp.array([push]), jax.random.key(1))[2] for push in (9.0, 1.0))
    np.testing.assert_array_equal(far.next_obs, near.next_obs)
    part = opened(backend="spring", observe=(3, 0))
    assert part.spec.observation.shape == (2,)
    _, obs = part.device.init(jax.random.key(0))
    np.testing.assert_allclose(obs, device.init(jax.random.key(0))[1][jnp.array([3, 0])], atol=1e-6)


def test_nothing_is_printed_and_no_file_is_left(tmp_path):
    """Its import prints to stdout, where ``--json`` puts its one object, and MuJoCo writes a log where one stands."""
    code = (
        "import sys\nfrom shoal import environments\n"
        "assert 'brax:ant' in environments.registry.load('environment', 'brax').names()\n"
        "assert not {'brax', 'jax'} & set(sys.modules)\n"  # listing imports nothing heavy
        "environments.open('brax:halfcheetah', environments.Config())\n"
        "environments.open('HalfCheetah-v5', environments.Config()).make_host()"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("brax:hoper", "did you mean 'brax:hopper'"),
        ("brax:swimmer", "cannot be run: brax 0.14 calls jnp.clip"),
        ("brax:fast", "stub of brax's own tests"),
    ],
)
def test_refused_in_one_line(env_id, says):
    with pytest.raises(errors.Refused, match=says) as caught:
        opened(env_id)
    assert "\n" not in str(caught.value)


def test_an_unknown_backend_is_refused():
    with pytest.raises(errors.Refused, match="did you mean 'spring'"):
        options.build(environments.config_class(PENDULUM), {"backend": "sprung"}, "environment")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)  # as if it were not installed
    with pytest.raises(errors.Refused, match=r"pip install 'shoal-rl\[brax\]'"):
        opened()
    assert not any(name.startswith("brax:") for name in environments.names())
