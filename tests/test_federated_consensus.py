"""Form G: what crosses are distributions, what is agreed on is taken a step towards, and no network is another's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from shoal import experiment
from shoal.core import errors, tree
from shoal.experiment import parties, presets
from shoal.runtimes.federated import consensus, message, party

RUN = b"a run of sixteen"


@pytest.fixture(scope="module", autouse=True)
def cache():
    experiment.cache()


@functools.cache
def made(preset="a2c", env="probe:match", **runtime):
    given = {"parties": 2, "exchange": "outputs", "environments": 1, "distil_every": 3, "public": 8, **runtime}
    settings = {"runtime": given, "network": {"shared": False}, "optimiser": {"rule": "adam", "anneal": False}}
    return experiment.build(
        presets.resolve(presets.Request(preset, env, 100, runtime="federated", settings=settings))[0]
    )


def agreement(states, steps=4, episodes=3):
    return consensus.Agreement(np.asarray(states, np.float32), 2, steps, episodes)


STATES = [[-1.0], [1.0], [0.5]]


def test_chances_and_divergence_are_those_of_scipy():
    agent = made().parts.agent
    policy = agent.snapshot(agent.init(jax.random.key(3)))
    logits = jax.vmap(lambda obs: agent.about.networks["policy"].apply(policy.params, obs, ())[0]["policy"])(
        jnp.asarray(STATES)
    )
    own = scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)
    found = consensus.log_chances(agent, policy, policy.params, np.asarray(STATES))
    np.testing.assert_allclose(np.exp(found), own, atol=1e-6)
    mean = np.array([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0]], np.float32)
    found = consensus.divergence(agent, policy, policy.params, np.asarray(STATES), jnp.asarray(mean))
    np.testing.assert_allclose(found, scipy.special.rel_entr(mean, own).sum(axis=1).mean(), rtol=1e-5)


def test_a_download_takes_steps_towards_the_mean_and_leaves_the_critic():
    agent, given = made().parts.agent, agreement(STATES, steps=20)
    channel, state = consensus.channel(agent, given), agent.init(jax.random.key(0))
    mean = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], np.float32)

    def far(state):
        return float(consensus.divergence(agent, agent.snapshot(state), state.params, given.states, jnp.asarray(mean)))

    begin = jax.jit(channel.begin)
    first = begin(state, mean.reshape(-1), jnp.int32(0), jnp.float32(0.0))
    assert tree.sha256(first.params) == tree.sha256(state.params), "nobody has said anything before version 1"
    after = begin(state, mean.reshape(-1), jnp.int32(1), jnp.float32(0.0))
    assert far(after) < 0.8 * far(state)
    moved = {path for path, leaf in tree.host(after.params).items() if (leaf != tree.host(state.params)[path]).any()}
    assert moved
    assert not any("value" in path for path in moved)
    sent = np.asarray(channel.end(after, mean.reshape(-1), (), 1.0)).reshape(3, 2)
    np.testing.assert_allclose(sent.sum(axis=1), 1.0, atol=1e-6)
    assert tree.sha256(channel.install(after, mean)) == tree.sha256(after)


def test_what_crosses_does_not_tell_how_long_episodes_were():
    """Steps of an episode are what is earned on many tasks: counts are alike whatever is met."""
    bodies = {}
    for seed in (0, 1):
        terms = party.Terms(RUN, 0, seed, exchange="outputs", most=40, agreement=agreement(STATES))
        mine = party.Party(made().parts, terms)
        constant = jnp.full(6, 0.5)
        mine = party.Party(made().parts, terms, channel=mine.channel._replace(end=lambda *_, out=constant: out))
        header = message.Header(RUN, 0, 1, 0, message.OUTPUTS)
        down = message.Down(header, np.full(6, 0.5, np.float32), message.Settings(local_updates=40))
        bodies[seed] = mine.handle(message.encode_down(mine.spec, down))
        up = message.decode_up(mine.spec, bodies[seed])
        assert (up.outcome, up.env_steps, up.updates) == (message.OK, 0, 40)
        assert len(mine.told.episodes) >= 3, "a round ends once so many episodes have"
        assert mine.counts["updates"] < 40
    assert bodies[0] == bodies[1]


def test_a_run_agrees_and_networks_stay_unlike():
    built = made()
    seen = []

    class Observer:
        def __call__(self, progress):
            seen.append(progress)
            return True

        def fault(self, kind, story):
            raise AssertionError(f"{kind}\\n{story}")

    result = built.runtime.run(built.parts, 0, 100, None, Observer(), None)
    told = seen[-1].subsystems["federation"]
    assert (told["mode"], told["rejected"], told["failed_rounds"]) == ("outputs", {}, 0)
    assert told["version"] > 1
    hidden = [max(leaf.shape[-1] for leaf in jax.tree.leaves(policy.params)) for policy in result.policies]
    assert hidden == [128, 32]
    assert told["global_params"] == 8 * 2, "what crosses: chances, not weights"


def networks_and_rates(**runtime):
    """Of eleven parties."""
    settings = {"runtime": {"parties": 11, "environments": 1, **runtime}}
    request = presets.Request("a2c", "gymnax:CartPole-v1", 100, runtime="federated", settings=settings)
    asked = presets.resolve(request)[0]
    how = experiment.ways("federated", asked.configs["runtime"])
    return [
        (one.made.configs["network"].hidden, one.made.configs["network"].activation,
         one.made.configs["optimiser"].learning_rate)
        for one in parties.each(asked, how)
    ]  # fmt: skip


@pytest.mark.parametrize("exchange", ["outputs", "none"])
def test_ten_owners_have_ten_networks_and_rates_also_where_each_is_alone(exchange):
    each = networks_and_rates(exchange=exchange, segment="episode")
    assert each == [*parties.SPREAD, parties.SPREAD[0]]
    assert len({*each}) == 10


@pytest.mark.parametrize(
    "runtime",
    [{"exchange": "none"}, {"exchange": "none", "segment": "episode", "spread": False},
     {"exchange": "outputs", "spread": False}, {"exchange": "gradient"}],
)  # fmt: skip
def test_owners_are_alike_where_nobody_asks_for_the_papers(runtime):
    assert len({*networks_and_rates(**runtime)}) == 1


def test_public_states_are_recorded_or_drawn():
    parts = made().parts
    recorded = consensus.public(parts, "owner", 16, 0)
    assert recorded.shape == (16, 1)
    assert {*recorded.reshape(-1)} == {-1.0, 1.0}
    assert (recorded == consensus.public(parts, "owner", 16, 0)).all()
    with pytest.raises(errors.Refused, match="no finite bounds"):
        consensus.public(parts, "bounds", 16, 0)
    bounded = parts._replace(
        spec=parts.spec._replace(observation=parts.spec.observation._replace(low=(-2.0,), high=(3.0,)))
    )
    drawn = consensus.public(bounded, "bounds", 400, 0)
    assert drawn.min() >= -2.0
    assert 2.5 < drawn.max() <= 3.0


@pytest.mark.parametrize(
    ("preset", "env", "more", "match"),
    [
        ("a2c", "probe:match", {"asynchronous": True}, "asynchronous=True changes nothing"),
        ("a2c", "probe:match", {"clip": 1.0}, "distributions"),
        (
            "a2c",
            "probe:match",
            {"segment": "episode", "exchange": "delta", "public": 500, "distil_every": 5},
            "segment=episode",
        ),
        ("a2c", "probe:match", {"segment": "episode", "environments": 2}, "one environment"),
    ],
)
def test_what_does_not_fit_is_refused(preset, env, more, match):
    with pytest.raises(errors.Refused, match=match):
        made(preset, env, **more)
