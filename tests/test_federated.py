"""Parties as one axis of a compiled program: what collaboration reduces to where theory says so; what stays home."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, seeds, tree
from shoal.experiment import presets
from shoal.networks import scopes
from shoal.runtimes import federated, on_device
from shoal.runtimes.federated import beginning, effects, running, together
from shoal.runtimes.members import dispatch, learning, loop
from tests.conformance.test_runtimes import Observer

SMALL = {"network": {"hidden": (8,)}, "optimiser": {"anneal": False}}
REPLAY = {"batch": 8, "capacity": 64, "learning_starts": 8, "rollout_length": 2, "updates": 1}
RULES = {
    "a2c": ("a2c", "probe:match", {}),
    "dqn": ("dqn", "probe:match", {"algorithm": REPLAY}),
    "td3": ("td3", "probe:target", {"algorithm": {**REPLAY, "rollout_length": 1}}),
}


@pytest.fixture(scope="module", autouse=True)
def cache():
    experiment.cache()


def made(rule="a2c", steps=400, runtime="federated", form="none", **settings):
    preset, env, more = RULES[rule]
    given = {kind: {**SMALL.get(kind, {}), **more.get(kind, {})} for kind in {*SMALL, *more}}
    given["network"] = {**given["network"], "form": form}
    given["optimiser"] = {**given["optimiser"], **settings.pop("optimiser", {})}
    own = {"environments": 2, **({"parties": 3} if runtime == "federated" else {}), **settings}
    request = presets.Request(preset, env, steps, runtime=runtime, settings={**given, "runtime": own})
    return experiment.build(presets.resolve(request)[0])


def run(built, steps=400, saved=None, seed=0, **options):
    observer = Observer(**options)
    return observer, built.runtime.run(built.parts, seed, steps, None, observer, saved)


def states(saved):
    return saved.parties.homes.members.state


def party(saved, at):
    return jax.tree.map(lambda leaf: leaf[at], saved)


# ------------------------------------------------------------------------------------------------ reductions


def alone(rule, updates, number=0, form="none", **settings):
    """One learner under `on_device`, begun and drawn for as one party is."""
    built = made(rule, runtime="on_device", form=form, **settings)
    init, runs = (jax.random.fold_in(seeds.key(0, purpose), number) for purpose in ("init", "run"))
    begun = loop.start(built.parts, loop.Shape(2, 1), lambda state, _: state)(init[None])
    members = jax.tree.map(lambda leaf: leaf[0], begun.members)
    if field := built.parts.agent.about.fields.memory:
        whole = learning.joined(members.memory, begun.common.memory)
        members = members._replace(state=tree.replaced(members.state, field, whole))
    per_update = 2 * built.parts.agent.about.rollout_length
    chunk = jax.jit(on_device._chunk(built.parts, on_device.Plan(per_update, updates, updates)))
    return chunk(on_device.Loop(members.state, members.actors, jnp.uint32(0)), runs)[0]


@pytest.mark.parametrize(("form", "rule"), [("none", "adam"), ("A", "rmsprop")])
def test_gradients_of_one_party_come_to_ordinary_training(form, rule):
    built = made(form=form, parties=1, optimiser={"rule": rule})
    _, result = run(built)
    # The server steps in NumPy, where no product and sum are rounded as one, as XLA does: not the same last bit.
    plain = alone("a2c", result.final.updates, form=form, optimiser={"rule": rule})
    for ours, theirs in zip(jax.tree.leaves(result.policy.params), jax.tree.leaves(plain.state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_gradients_are_averages_where_steps_are_plain():
    plain = {"optimiser": {"rule": "momentum", "decay": 0.0, "learning_rate": 0.1}, "form": "A"}
    ends = [run(made(exchange=exchange, **plain))[1] for exchange in ("gradient", "delta")]
    for gradient, delta in zip(*(jax.tree.leaves([one.params for one in end.policies]) for end in ends), strict=True):
        np.testing.assert_allclose(gradient, delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("exchange", ["gradient", "delta"])
def test_parties_hold_the_same_where_every_layer_is_global(exchange):
    _, result = run(made(exchange=exchange, local_updates=2))
    assert len({tree.sha256(policy.params) for policy in result.policies}) == 1
    assert len(result.policies) == 3


@pytest.mark.parametrize("rule", ["a2c", "dqn"])
def test_parties_that_exchange_nothing_come_to_ordinary_training(rule):
    _, result = run(made(rule, exchange="none"))
    for number, policy in enumerate(result.policies):
        plain = alone(rule, result.final.updates // 3, number).state.params
        for ours, theirs in zip(jax.tree.leaves(policy.params), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert result.final.subsystems["federation"]["bytes_up"] == 0


@pytest.mark.parametrize("rule", ["dqn"])
def test_one_after_the_other_parties_that_exchange_nothing_are_alone_bit_for_bit(rule):
    built = made(rule, exchange="none", dispatch="sequential")
    axis = axis_of(built)
    begun, empty = jax.device_get(axis.homes), asked(axis, True)

    def after(who):
        shape, way = together.Shape(len(who), 2, 20), dispatch.Way("sequential", 0)
        call = jax.jit(together.work(built.parts, shape, None, way, whole=True))
        return jax.device_get(call(*(party(all_, who) for all_ in (begun, axis._keys, empty)))[0])

    every = after(np.arange(3))
    for number in range(3):
        alone = np.array([number])
        assert tree.sha256(after(alone)) == tree.sha256(party(every, alone))


# ------------------------------------------------------------------------------------------------ at home


def axis_of(built, seed=0, block=-1):
    opening = beginning.opened(built.runtime._config, built.parts, seed)
    homes = opening.programs.begins.load()(opening.programs.keys(seed, "init"))
    return beginning.carrier(built.runtime._config, opening, seed, homes, block)


def asked(axis, active, theta=None):
    one = axis._made.asked()
    one.active[:] = active
    if theta is not None:
        one.theta[:] = theta
    return one


@pytest.mark.parametrize(("rule", "way"), [("a2c", "map"), ("dqn", "vmap"), ("a2c", "sequential")])
def test_who_is_not_at_work_keeps_every_bit(rule, way):
    axis = axis_of(made(rule, parties=4, exchange="delta", dispatch=way))
    whole, some = [True] * 4, [True, False, True, False]
    for _ in range(3):
        axis.advance(asked(axis, whole))
    before = jax.device_get(axis.homes)
    axis.advance(asked(axis, some, theta=1.0))
    after = jax.device_get(axis.homes)
    for at, worked in enumerate(some):
        assert (tree.sha256(party(before, at)) != tree.sha256(party(after, at))) == worked
    # and those that were learn what they do when all are: their keys count their own updates
    other = axis_of(made(rule, parties=4, exchange="delta", dispatch=way))
    for active in (whole, whole, whole, some):
        other.advance(asked(other, active, theta=1.0 if active is some else None))
    assert tree.sha256(jax.device_get(other.homes)) == tree.sha256(after)


@pytest.mark.parametrize(("rule", "form"), [("dqn", "C"), ("td3", "A")])
def test_a_download_changes_the_global_part_and_nothing_else(rule, form):
    built = made(rule, form=form, exchange="delta")
    axis = axis_of(built)
    axis.advance(asked(axis, True))
    state = party(axis.homes.members.state, 0)
    channel = axis._made.channel
    theta = jnp.arange(channel.spec.size, dtype=jnp.float32)
    after = channel.begin(state, theta, jnp.int32(3), jnp.float32(0.0))
    np.testing.assert_array_equal(scopes.vector(after.params), theta)
    (_, own), (_, own_after) = scopes.split(state.params), scopes.split(after.params)
    assert jax.tree.leaves(own), "there is something of one's own"
    assert tree.sha256(own) == tree.sha256(own_after)
    assert tree.sha256(state._replace(params=())) == tree.sha256(after._replace(params=()))


@pytest.mark.parametrize("rule", ["dqn", "td3"])
def test_nothing_of_a_party_is_in_the_servers_state(rule):
    built = made(rule, form="A", exchange="delta")
    _, result = run(built, steps=100)
    saved = result.final.save()
    kept = {leaf.tobytes() for leaf in jax.tree.leaves(saved.server) if np.ndim(leaf)}
    theta = saved.server["theta"]
    own = states(saved)._replace(params=scopes.split(states(saved).params)[1])
    for leaf in jax.tree.leaves((own, saved.parties.homes.members.memory)):
        for row in leaf:
            if row.size > 3 and row.dtype == np.float32 and row.any():
                assert row.tobytes() not in kept
                assert not np.isin(row.ravel(), theta).all()


# ------------------------------------------------------------------------------------------------ a run


WAYS_TO_GO_ON = {  # few programs, many ways to use them: what is compiled for one is found by the others
    "partial": ("dqn", {"participation": 0.5}),
    "asynchronous": ("a2c", {"asynchronous": True, "paces": (1.0, 2.0, 5.0), "max_lag": 2}),
    "slow": ("a2c", {"paces": (1.0, 1.0, 4.0), "deadline": 2.0}),
    "late": ("a2c", {"join": ("2:80",)}),
    "buffered": ("a2c", {"asynchronous": True, "buffer": 2, "exchange": "delta", "local_updates": 2, "mu": 0.1}),
    "alone": ("a2c", {"exchange": "none"}),
}


@pytest.mark.parametrize("name", WAYS_TO_GO_ON)
def test_a_run_goes_on_with_the_same_bits(name, monkeypatch):
    rule, given = WAYS_TO_GO_ON[name]
    monkeypatch.setattr(running, "REPORT", 1)
    built = made(rule, form="A", **given)
    observer, whole = run(built)
    reports = [told.env_steps for told in observer.told if told.stage is None]
    _, first = run(built, stop_at=reports[len(reports) // 2])
    assert 0 < first.final.env_steps < whole.final.env_steps
    saved = jax.tree.map(np.copy, first.final.save())
    _, second = run(built, saved=saved)
    assert tree.sha256(second.final.save()) == tree.sha256(whole.final.save())


def test_slow_parties_lag_and_are_weighted_down_but_never_beyond_the_limit():
    _, result = run(made(asynchronous=True, paces=(1.0, 1.0, 9.0), max_lag=3), steps=2000)
    told = result.final.subsystems["federation"]
    assert told["staleness_max"] <= 3
    assert told["rejected"]["stale"] > 0
    assert len(told["staleness"]) == 4
    steps = [one["env_steps"] for one in told["parties"]]
    assert max(steps) - min(steps) <= 2 * 2 * 5, "each has its share of the steps, at its own pace"


def test_who_joins_late_is_idle_before_and_starts_from_the_global_part(monkeypatch):
    monkeypatch.setattr(running, "REPORT", 1)
    built = made(join=("2:200",), form="A")
    observer, result = run(built)
    told = [told.subsystems["federation"]["parties"] for told in observer.told if told.stage is None]
    steps = [[one["env_steps"] for one in parties] for parties in told]
    assert all(one[2] == 0 for one in steps if sum(one[:2]) < 200)
    assert steps[-1][2] > 0
    assert steps[-1][0] > steps[-1][2]
    shared = [tree.sha256(scopes.split(policy.params)[0]) for policy in result.policies]
    assert len(set(shared)) == 1


def test_every_setting_that_only_some_exchanges_read_is_declared():
    fields = federated.Config.__dataclass_fields__
    assert set(effects.WHERE) <= set(fields)
    general = {"parties", "exchange", "clip", "noise", "privacy", "unit", "max_epsilon", "delta", "secure_sum",
               "environments", "placement", "dispatch", "evaluate_every", "episodes", "segment"}  # fmt: skip
    assert set(fields) - set(effects.WHERE) == general, "these are read with any exchange, or refused by `privacy`"


def test_what_a_preset_has_is_kept_where_another_exchange_passes_it_over():
    settings = {"runtime": {"exchange": "none"}}
    made, _ = presets.resolve(presets.Request("collab_td3", env="probe:target", settings=settings))
    assert made.configs["runtime"].local_updates == 10
    asked = {"runtime": {"exchange": "none", "local_updates": 3}}
    with pytest.raises(errors.Refused, match=r"local_updates=3 changes nothing with runtime.exchange=none"):
        presets.resolve(presets.Request("collab_td3", env="probe:target", settings=asked))
