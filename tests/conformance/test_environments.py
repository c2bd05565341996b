"""The contract of every adapter, on a sample of its names."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytest

from shoal import environments
from shoal.core import registry, types
from shoal.environments import _device, _walk

STEPS = 120
GYMNASIUM = ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1", "tests.scripted:ChannelFirst-v0"]
GYMNASIUM += ["tests.scripted:Orders-v0"]
SAMPLE = {
    "atari": ["ALE/Breakout-v5"],
    "brax": ["brax:inverted_pendulum"],  # the quickest to compile; the others differ in numbers
    "envpool": ["envpool:CartPole-v1", "envpool:FrozenLake-v1", "envpool:Hopper-v4", "envpool:Breakout-v5"],
    "gymnasium": [*GYMNASIUM, "Hopper-v5", "LunarLander-v3", "LunarLanderContinuous-v3"],
    "gymnax": ["gymnax:CartPole-v1", "gymnax:Pendulum-v1", "gymnax:Breakout-MinAtar", "gymnax:FrozenLake-misc"],
    "owners": ["owners:CartPole-lengths", "owners:Acrobot-links/1", "owners:CartPole-stranger/3", "owners:Hopper-legs"],
    "task": ["task:Multiplexer-3", "task:Regression-8"],
    "probe": [f"probe:{name}" for name in ("constant", "match", "truncated", "target", "memory", "pair")],
}
IDS = [env_id for ids in SAMPLE.values() for env_id in ids]
DEVICE_IDS = SAMPLE["brax"] + SAMPLE["gymnax"] + SAMPLE["probe"] + SAMPLE["task"] + SAMPLE["owners"][:-1]
SHORT = environments.Config(time_limit=25)
QUICK = {"brax:inverted_pendulum": {"backend": "spring"}}  # compiles in half the time


def short(env_id, limit=25):
    """The environment with episodes of so many steps."""
    return environments.open(env_id, environments.config_class(env_id)(time_limit=limit, **QUICK.get(env_id, {})))


@pytest.fixture(scope="module", params=IDS)
def opened(request):
    return short(request.param)


@pytest.fixture(scope="module")
def compiled(opened):
    """Its device view's two functions; step by step an environment is a hundred small programs."""
    return jax.jit(opened.device.init), jax.jit(opened.device.step)


@pytest.fixture(scope="module")
def walk(opened):
    return _walk.walk(opened, STEPS, seed=1)


def test_every_adapter_is_sampled():
    assert set(SAMPLE) == set(registry.names("environment"))


@pytest.mark.parametrize("adapter", registry.names("environment"))
def test_adapters_list_ids_that_lead_back_to_them(adapter):
    module = registry.load("environment", adapter)
    prefix = module.ADAPTER.prefix
    assert isinstance(module.ADAPTER.extra, str)
    for env_id in module.names():
        assert environments.split(env_id)[0] == adapter
        assert environments.adapter(env_id) is module.ADAPTER
        assert env_id.startswith(prefix)
        assert not prefix or env_id[len(prefix)] in ":/"


@pytest.mark.parametrize("adapter", registry.names("environment"))
def test_what_an_adapter_declares_is_all_there_is(adapter):
    """Nothing is looked for by name in its file: what has a place in the record is nowhere else."""
    module = registry.load("environment", adapter)
    declared = module.ADAPTER
    assert isinstance(declared, environments.Adapter)
    assert declared.config is vars(module).get("Config", environments.Config)
    assert issubclass(declared.config, environments.Config)
    assert not {"PURE_JAX", "SOURCES", "audit"} & vars(module).keys()
    assert vars(module).get("EXTRA", "") == declared.extra
    assert vars(module).get("PREFIX", "") == declared.prefix


def test_an_opener_can_be_sent(opened):
    """What arrives opens the same environment; what is open already stays behind."""
    env_id = opened.spec.id
    config = environments.config_class(env_id)(time_limit=25, **QUICK.get(env_id, {}))
    opener = environments.Opener(env_id, config, here=opened)
    assert opener.open() is opened
    sent = pickle.loads(pickle.dumps(opener))
    assert sent == opener
    assert sent.here is None
    assert sent.steps_many == (opened.make_vector is not None)
    assert sent.open().spec == opened.spec
    assert sent.open() is sent.open(), "opened once"


def test_spec_is_data(opened):
    spec = opened.spec
    assert spec.id in IDS
    assert spec.on_device == (opened.device is not None)
    assert spec.observation.image == (len(spec.observation.shape) == 3)
    assert spec.observation.dtype in {"float32", "uint8"}
    assert spec.time_limit == 25
    size = 0 if spec.action.discrete else spec.action.shape[0]
    assert len(spec.action.low) == len(spec.action.high) == size
    assert (spec.action.n > 0) == (spec.action.kind == "discrete")
    assert (len(spec.action.sizes) > 0) == (spec.action.kind == "multi_discrete")
    assert len(spec.action.sizes) == len(spec.action.starts)


def test_adapters_own_settings_have_defaults_and_help():
    for env_id in IDS:
        cls = environments.config_class(env_id)
        assert issubclass(cls, environments.Config)
        assert environments.own(SHORT, cls) == cls(time_limit=25)


def test_vectors_tell_the_same_kind_of_truth(opened):
    """Where the library steps many at once, every one of them keeps the promises of a single one."""
    if opened.make_vector is None:
        return
    spec, count, chance = opened.spec, 5, np.random.default_rng(0)
    vector, lengths, ends = opened.make_vector(7, count), np.zeros(count, int), 0
    before = vector.reset()
    for _ in range(60):
        batch = vector.step(np.stack([_walk.action(spec.action, chance) for _ in range(count)]))
        obs, (reward, discount, truncated, successor) = batch
        for seen in (before, obs, successor):
            assert (seen.shape, seen.dtype) == ((count, *spec.observation.shape), np.dtype(spec.observation.dtype))
        assert [np.asarray(x).dtype.name for x in (reward, discount, truncated)] == ["float32", "float32", "bool"]
        over, before = truncated | (discount == 0), obs
        assert not (truncated & (discount == 0)).any()
        lengths += 1
        assert (lengths[truncated] == 25).all()
        assert (lengths <= 25).all()
        np.testing.assert_array_equal(obs[~over], successor[~over])
        lengths[over], ends = 0, ends + over.sum()
    assert ends >= 2 * count
    vector.close(), vector.close()


def test_arrays_are_as_declared(opened, walk):
    assert not walk.raised
    shape, dtype = opened.spec.observation.shape, opened.spec.observation.dtype
    for obs in [walk.first, *walk.obs, *(outcome.next_obs for outcome in walk.outcomes)]:
        assert isinstance(obs, np.ndarray)
        assert (obs.shape, obs.dtype) == (shape, np.dtype(dtype))


def test_outcomes_are_plain_and_truthful(walk):
    lengths, length = [], 0
    for obs, outcome in zip(walk.obs, walk.outcomes, strict=True):
        length += 1
        assert type(outcome) is types.Outcome
        assert type(outcome.reward) is float
        assert type(outcome.truncated) is bool
        assert outcome.discount in {0.0, 1.0}
        assert not (outcome.truncated and outcome.discount == 0)
        if _walk.over(outcome):
            lengths.append(length)
            assert outcome.discount == 0 or length == 25
            length = 0
        else:  # within an episode what is seen next is what the step led to
            np.testing.assert_allclose(obs, outcome.next_obs, rtol=1e-6, atol=1e-6)  # XLA may compute the two apart
    assert lengths
    assert max(lengths) <= 25


@pytest.mark.parametrize("opened", DEVICE_IDS, indirect=True)  # Gymnasium's: tests/test_environments.py, by hand
def test_the_last_observation_is_never_that_of_a_reset(opened, compiled, walk):
    """Play up to each end again, and step by hand from there: the successor cannot depend on the coming reset."""
    ends = [index for index, outcome in enumerate(walk.outcomes) if _walk.over(outcome)]
    init, step = compiled
    state, _ = init(_device.key_of_step(1, 0))
    chance = np.random.default_rng(1)
    endless = jax.jit(short(opened.spec.id, 10**6).device.step)
    compared = 0
    for index in range(ends[-1] + 1):
        action, key = _walk.action(opened.spec.action, chance), _device.key_of_step(1, index + 1)
        if walk.outcomes[index].truncated:  # without a limit the episode would simply have gone on
            _, carried_on, outcome = endless(state, action, key)
            np.testing.assert_allclose(walk.outcomes[index].next_obs, carried_on, rtol=1e-6, atol=1e-6)
            assert float(outcome.discount) == 1
            compared += 1
        state, _, _ = step(state, action, key)
    assert compared == sum(outcome.truncated for outcome in walk.outcomes)


def test_same_seed_same_walk(opened, walk):
    assert _walk.same(walk, _walk.walk(opened, STEPS, seed=1))


@pytest.mark.parametrize("opened", DEVICE_IDS, indirect=True)
def test_host_view_equals_device_view(opened, compiled, walk):
    chance, (init, step) = np.random.default_rng(1), compiled
    state, obs = init(_device.key_of_step(1, 0))
    np.testing.assert_array_equal(walk.first, obs)
    for index, (seen, outcome) in enumerate(zip(walk.obs, walk.outcomes, strict=True)):
        action = _walk.action(opened.spec.action, chance)
        state, obs, told = step(state, action, _device.key_of_step(1, index + 1))
        np.testing.assert_allclose(seen, obs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(outcome.next_obs, told.next_obs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(outcome.reward, told.reward, rtol=1e-6, atol=1e-6)
        assert outcome[1:3] == (float(told.discount), bool(told.truncated))


@pytest.mark.parametrize("opened", DEVICE_IDS, indirect=True)
def test_device_view_maps_and_scans(opened):
    """Declared types hold under vmap and scan, where runtimes use it."""
    env, spec = opened.device, opened.spec
    action = np.zeros((4, *spec.action.shape), np.int32 if spec.action.discrete else np.float32)

    def body(carry, key):
        state, obs, outcome = jax.vmap(env.step)(carry[0], action, jax.random.split(key, 4))
        return (state, obs), outcome

    def run(key):
        begun = jax.vmap(env.init)(jax.random.split(key, 4))
        return jax.lax.scan(body, begun, jax.random.split(key, 30))

    (_, obs), outcomes = jax.eval_shape(run, jax.random.key(0))
    assert (obs.shape, obs.dtype) == ((4, *spec.observation.shape), spec.observation.dtype)
    assert outcomes.next_obs.shape == (30, 4, *spec.observation.shape)
    kinds = [(leaf.shape, leaf.dtype.name) for leaf in outcomes[:3]]
    assert kinds == [((30, 4), "float32"), ((30, 4), "float32"), ((30, 4), "bool")]
