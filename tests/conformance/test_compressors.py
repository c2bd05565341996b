"""What every file of `shoal/compress` must do, found through the registry; each with some of its settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pickle

import jax
import numpy as np
import pytest
import scipy.stats

from shoal.compress import _payload, _structure
from shoal.core import errors, options, registry, tree, types
from shoal.formulas import distributions, normalise
from shoal.networks.engines import in_jax
from tests import conftest

KINDS = {  # of an agent: (rule, environment, settings of its network, settings of its algorithm)
    "categorical": ("actor_critic", {"choices": 3}, {}, {}),
    "stretched": ("actor_critic", {"low": (-1.0, -3.0), "high": (1.0, 1.0)}, {}, {}),
    "gaussian": ("ppo", {"low": (-1.0, -1.0), "high": (1.0, 1.0)}, {"shared": False}, {}),
    "lstm": ("actor_critic", {"choices": 3}, {"lstm": 4}, {}),
    "normalised": ("ppo", {"choices": 3}, {"activation": "relu"}, {"normalise_observations": True}),
    "greedy": ("dqn", {"choices": 3}, {"dueling": True}, {"capacity": 64, "batch": 8}),
}
SETTINGS = {  # beside those that a file comes with
    "quantise": ({"mode": "static"}, {"bits": 3, "keep": "none"}),
    "low_rank": ({"share": 0.25},),
    "chain": ({"members": ["prune", "quantise"], "settings": {"quantise": {"mode": "static"}}},),
}
CASES = [
    pytest.param(
        name,
        settings,
        id="-".join([name, *(str(value) for value in settings.values() if isinstance(value, str | int))]),
    )
    for name in registry.names("compressor")
    for settings in ({}, *SETTINGS.get(name, ()))
]
EVERY = pytest.mark.parametrize(("name", "settings"), CASES)
LOSSLESS = ("identity",)
ROWS = 20
BATCH = 5


@functools.cache
def agent_of(kind):
    rule, env, network, algorithm = KINDS[kind]
    spec = conftest.env_spec((4,), **env)
    return conftest.build_agent(spec, rule=rule, network={"hidden": (8, 8), **network}, algorithm=algorithm)


def shaken(policy, seed=0):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), policy.params)
    return jax.device_get(policy._replace(params=params))


@functools.cache
def policy_of(kind, seed=0):
    agent = agent_of(kind)
    state = agent.init(jax.random.key(0))
    if state.normaliser:
        obs = 3.0 * np.asarray(observations()) + 1.0
        state = state._replace(normaliser=normalise.update(state.normaliser, obs, (4,)))
    return shaken(agent.snapshot(state), seed)


def observations(count=ROWS, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def made(name, settings, agent):
    """The compressor; the test is over where it says that this agent is not for it."""
    module = registry.load("compressor", name)
    compressor = module.build(options.build(module.Config, settings, "compressor"), agent)
    if compressor.refuses:
        assert compressor.refuses[-1] != ".", "half a sentence, which whoever refuses begins"
        pytest.skip(f"refused: {compressor.refuses}")
    return compressor


def pack(compressor, policy, obs=None):
    memory = compressor.init(policy, jax.random.key(0))
    return compressor.compress(memory, policy, observations() if obs is None else obs, jax.random.key(1))[1]


def opened(compressor, packed, batch=ROWS):
    return compressor.runner(packed, batch, "jax")


def start(agent, rows=ROWS):
    """Recurrent states ``[rows, ...]`` at the start of an episode."""
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (rows, *leaf.shape)), agent.about.carry)


def outputs(agent, policy, obs, carry):
    """What the network itself says of every observation: ({head: [N, n]}, carry [N, ...])."""
    network = agent.about.networks[agent.about.acting.network]

    def one(obs, carry):
        seen = normalise.apply(policy.normaliser, obs) if policy.normaliser else obs
        return network.apply(policy.params, seen, carry)

    return jax.jit(jax.vmap(one))(obs, carry)


@EVERY
def test_it_says_what_it_is(name, settings):
    module = registry.load("compressor", name)
    assert module.__doc__
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    compressor = made(name, settings, agent_of("categorical"))
    assert compressor.name == name
    assert (compressor.study is None) or compressor.needs_obs, "who learns needs something to learn from"


@EVERY
def test_a_packed_policy_is_bytes_and_tells_its_size_cost_and_digest(name, settings, kind):
    agent, policy = agent_of(kind), policy_of(kind)
    packed = pack(made(name, settings, agent), policy)
    assert isinstance(packed, types.Packed)
    assert type(packed.payload) is bytes
    assert packed.bytes == len(packed.payload)
    assert 0 < packed.bytes <= 2 * tree.bytes(policy) + 4000, "and a line that names the arrays"
    assert packed.sha256 == hashlib.sha256(packed.payload).hexdigest()
    assert packed.seconds > 0
    assert packed.level
    assert 0.0 <= packed.compressed < 1.0
    assert (packed.compressed == 0.0) or name not in LOSSLESS


@EVERY
def test_its_runner_gives_what_the_packed_network_computes(name, settings, kind):
    """And that is the policy's own network, where nothing is lost."""
    agent, policy = agent_of(kind), policy_of(kind)
    compressor = made(name, settings, agent)
    packed = pack(compressor, policy)
    run, small = opened(compressor, packed), _payload.Room(packed.payload).network
    carry = own_carry = expected_carry = start(agent)
    for _ in range(3):
        found, carry = run(observations(), carry)
        own, own_carry = in_jax.forward(small.spec)(small.params, observations(), own_carry)
        expected, expected_carry = outputs(agent, policy, observations(), expected_carry)
        assert tuple(found) == agent.about.acting.heads
        assert jax.tree.structure(carry) == jax.tree.structure(expected_carry)
        for head, output in found.items():
            assert isinstance(output, np.ndarray)
            assert (output.shape, output.dtype) == (expected[head].shape, np.float32)
            np.testing.assert_allclose(output, own[head], rtol=1e-5, atol=1e-5)
            if name in LOSSLESS:
                np.testing.assert_allclose(output, expected[head], rtol=1e-5, atol=1e-5)


@EVERY
def test_its_runner_takes_new_weights_in_place(name, settings, kind):
    agent, policy, other = agent_of(kind), policy_of(kind), policy_of(kind, seed=1)
    compressor = made(name, settings, agent)
    memory = compressor.init(policy, jax.random.key(0))
    memory, first = compressor.compress(memory, policy, observations(), jax.random.key(1))
    if compressor.study is not None:  # what it learned is what changes
        memory, _ = compressor.study(memory, other, observations(), jax.random.key(3))
    second = compressor.compress(memory, other, observations(), jax.random.key(2))[1]._replace(version=7)
    run = opened(compressor, first)
    before, engine = run(observations(), start(agent))[0], run._engine
    before = {head: output.copy() for head, output in before.items()}
    assert run.load(second) is None
    assert run.version == 7
    assert run._engine is engine, "layers of the same shapes are copied into the engine at work"
    after = run(observations(), start(agent))[0]
    fresh = opened(compressor, second)(observations(), start(agent))[0]
    for head in before:
        assert not np.array_equal(before[head], after[head])
        np.testing.assert_array_equal(after[head], fresh[head])


@EVERY
def test_what_it_simulates_is_a_policy_of_the_same_shapes(name, settings, kind):
    agent, policy = agent_of(kind), policy_of(kind)
    compressor = made(name, settings, agent)
    if compressor.simulate is None:
        assert name in LOSSLESS or compressor.needs_obs, "without observations there is always such a form"
        return
    assert not compressor.needs_obs, "nobody gives it observations there"
    simulated = jax.device_get(jax.jit(compressor.simulate)(policy, jax.random.key(0)))
    assert jax.tree.structure(simulated) == jax.tree.structure(policy)
    for a, b in zip(jax.tree.leaves(simulated), jax.tree.leaves(policy), strict=True):
        assert (np.shape(a), a.dtype) == (np.shape(b), b.dtype)
        assert np.isfinite(a).all()
    assert tree.sha256(simulated._replace(params=())) == tree.sha256(policy._replace(params=()))
    changed = tree.sha256(simulated.params) != tree.sha256(policy.params)
    assert changed == any(step not in LOSSLESS for step in [name])


@EVERY
def test_the_probability_it_tells_is_that_of_the_policy_that_acts(name, settings, kind):
    """Specification 11.5: log μ equals one recomputed from the same packed policy, and actions are drawn by it."""
    agent, policy = agent_of(kind), policy_of(kind)
    compressor, draws = made(name, settings, agent), 100_000
    packed = pack(compressor, policy)
    run, small = opened(compressor, packed, 1), _payload.Room(packed.payload).network
    one = observations(1, seed=5)
    found, _ = run(one, start(agent, 1))
    own, _ = in_jax.forward(small.spec)(small.params, one, start(agent, 1))
    many = {head: np.repeat(output, draws, axis=0) for head, output in found.items()}
    acting = acts_alone(run.policy, draws)
    actions, extras = agent.about.acting.decide_many(acting, many, np.random.default_rng(11))
    given, deciding = {head: output[0] for head, output in own.items()}, agent.about.acting.heads[0]
    log_prob = functools.partial(agent.about.acting.log_prob, acts_alone(run.policy, ()), given)
    recomputed = np.asarray(jax.vmap(log_prob)(actions))
    np.testing.assert_allclose(extras.log_prob, recomputed, rtol=1e-5, atol=1e-5)
    if agent.about.head in ("categorical", "greedy"):
        counts = np.bincount(actions, minlength=3)
        chances = np.exp(np.float64(jax.vmap(log_prob)(np.arange(3))))
        assert scipy.stats.chisquare(counts, draws * chances / chances.sum()).pvalue > 1e-3
    else:
        mean, variance = (np.asarray(part) for part in distributions.moments(given[deciding]))
        box = distributions.reach(conftest.env_spec((4,), **KINDS[kind][1]).action)
        inner = actions if agent.about.head == "gaussian" else (actions - box.middle) / box.half
        z = (inner - mean) / np.sqrt(variance)
        counts = np.histogram(scipy.stats.norm.cdf(z[:, 0]), bins=20, range=(0.0, 1.0))[0]
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def acts_alone(policy, rows):
    """A policy for `rows` decisions of one stream: those that act ε-greedily do so with 0.3."""
    if isinstance(policy.exploration, tuple) and not policy.exploration:
        return policy
    chances = np.full(rows, 0.3, np.float32), policy.exploration[1]
    return policy._replace(exploration=jax.tree.unflatten(jax.tree.structure(policy.exploration), chances))


@EVERY
def test_it_leaves_the_policy_and_what_it_keeps_alone(name, settings, kind):
    agent, policy = agent_of(kind), policy_of(kind)
    compressor = made(name, settings, agent)
    memory, before = compressor.init(policy, jax.random.key(0)), tree.sha256(policy)
    kept = pickle.dumps(memory)
    pickle.loads(kept)  # it crosses to a process, and back
    for _ in range(2):
        packed = compressor.compress(memory, policy, observations(), jax.random.key(1))[1]
        assert pickle.dumps(memory) == kept
    again = compressor.compress(memory, policy, observations(), jax.random.key(1))[1]
    assert packed.sha256 == again.sha256, "a function of what it is given"
    opened(compressor, packed)(observations(), start(agent))
    assert tree.sha256(policy) == before


@EVERY
def test_a_frozen_greedy_policy_stays_greedy(name, settings, kind):
    agent, policy = agent_of(kind), policy_of(kind)
    compressor = made(name, settings, agent)
    run = opened(compressor, pack(compressor, policy._replace(explore=np.float32(0.0))), 1)
    assert float(run.policy.explore) == 0.0
    found, _ = run(observations(1), start(agent, 1))
    actions = [agent.about.acting.decide_many(run.policy, found, np.random.default_rng(i))[0] for i in range(10)]
    if agent.about.head != "greedy":  # whose ε when evaluated is not 0
        for action in actions:
            np.testing.assert_array_equal(action, actions[0])


def damaged(packed):
    """A record whose payload came through badly, in each of the ways it can."""
    payload = packed.payload
    middle = len(payload) - 5
    flipped = payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]
    for bad in (b"", b"\n", b"nothing\n", payload[:-1], payload + b"x", payload[1:], flipped):
        yield packed._replace(payload=bad)  # as it was announced
        if bad is not flipped:  # nothing but its digest could tell
            yield packed._replace(payload=bad, sha256=hashlib.sha256(bad).hexdigest())


@EVERY
def test_a_damaged_payload_is_refused(name, settings):
    agent, policy = agent_of("categorical"), policy_of("categorical")
    compressor = made(name, settings, agent)
    packed = pack(compressor, policy)
    run = opened(compressor, packed)
    before = {head: output.copy() for head, output in run(observations(), start(agent))[0].items()}
    for bad in damaged(packed):
        for take in (run.load, lambda each: opened(compressor, each)):
            with pytest.raises(ValueError, match="payload"):
                take(bad)
    after = run(observations(), start(agent))[0]
    for head, output in before.items():
        np.testing.assert_array_equal(output, after[head], "it goes on with what it had")


@EVERY
def test_what_nobody_should_act_with_is_told(name, settings):
    """Specification 8, `faults`: weights, or what comes out for recent observations, are not finite."""
    agent, policy = agent_of("categorical"), policy_of("categorical")
    compressor = made(name, settings, agent)
    memory = compressor.init(policy, jax.random.key(0))
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), policy.params)
    huge = jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), policy.params)
    for params in (broken, huge):
        step = compressor.compress if compressor.study is None else compressor.study
        with pytest.raises(errors.Unfit, match="finite"):
            step(memory, policy._replace(params=params), observations(), jax.random.key(1))
    assert compressor.compress(memory, policy, observations(), jax.random.key(1))[1].bytes, "it goes on with a good one"


@EVERY
def test_without_observations_it_works_or_says_what_it_lacks(name, settings):
    agent, policy = agent_of("categorical"), policy_of("categorical")
    compressor = made(name, settings, agent)
    if compressor.needs_obs and compressor.study is None:
        with pytest.raises(errors.Refused, match="observations"):
            pack(compressor, policy, observations(0))
        return
    packed = pack(compressor, policy, observations(0))
    assert opened(compressor, packed)(observations(), start(agent))[0]


@EVERY
def test_an_agent_whose_network_and_decision_are_one_is_refused(name, settings, env_spec, build_agent):
    agent = build_agent(env_spec((4,), choices=3), rule="map_propagation", network={"hidden": (8, 8)})
    assert agent.about.acting is None
    module = registry.load("compressor", name)
    compressor = module.build(options.build(module.Config, settings, "compressor"), agent)
    assert "network" in compressor.refuses
    policy = jax.device_get(agent.snapshot(agent.init(jax.random.key(0))))
    with pytest.raises(errors.Refused, match="network"):
        compressor.compress((), policy, observations(), jax.random.key(0))


@pytest.mark.parametrize("name", LOSSLESS)
def test_where_nothing_is_lost_ten_thousand_observations_tell_no_difference(name, kind):
    """Specification 11.4: actions' probabilities to 1e-5, KL below 1e-6."""
    agent, policy = agent_of(kind), policy_of(kind)
    compressor, obs = made(name, {}, agent), observations(10_000, seed=3)
    packed = pack(compressor, policy)
    found, _ = opened(compressor, packed, len(obs))(obs, start(agent, len(obs)))
    expected, _ = outputs(agent, policy, obs, start(agent, len(obs)))
    head = agent.about.acting.heads[0]
    np.testing.assert_allclose(found[head], expected[head], rtol=1e-5, atol=1e-5)
    p, q = np.asarray(found[head], np.float64), np.asarray(expected[head], np.float64)
    if agent.about.head in ("categorical", "greedy"):
        log_p, log_q = (scipy.special.log_softmax(each, axis=-1) for each in (p, q))
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        np.testing.assert_array_equal(p.argmax(axis=-1), q.argmax(axis=-1))
    else:
        (m, v), (n, w) = (
            (np.split(each, 2, axis=-1)[0], np.logaddexp(np.split(each, 2, axis=-1)[1], 0) + 1e-4) for each in (p, q)
        )
        kl = 0.5 * (v / w + (n - m) ** 2 / w - 1 + np.log(w / v)).sum(axis=-1)
    assert kl.max() < 1e-6
    assert _structure.rows(obs, 16).shape == (16, 4)
