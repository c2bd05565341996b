"""Members of a population in one program: each is the agent it would be alone, whatever becomes of the others."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shoal
from shoal import experiment
from shoal.core import errors, seeds, tree
from shoal.experiment import budget, presets
from shoal.runtimes.experience import rollouts
from shoal.runtimes.members import dispatch, fitness, learning, loop, spread
from shoal.runtimes.population import compiling, failing, lineage, running, standing
from tests import faults
from tests.conformance.test_runtimes import Observer

MEMBERS, UPDATES = 4, 50
SMALL = {"network": {"hidden": (8,)}}
REPLAY = {"batch": 8, "capacity": 200, "learning_starts": 10}
RULES = {
    "td3": (
        "td3",
        "probe:target",
        {"algorithm": REPLAY},
        ("algorithm.policy_delay=integer(1,3)", "algorithm.learning_starts=integer(4,90)"),
    ),
    "sac": ("sac", "probe:target", {"algorithm": REPLAY}, ("algorithm.reward_scale=log_uniform(0.1,10)",)),
    "dqn": ("dqn", "probe:match", {"algorithm": {**REPLAY, "rollout_length": 2, "replay": "prioritised"}}, ()),
    "a2c": ("a2c", "probe:match", {}, ("algorithm.entropy_cost=log_uniform(1e-3,1e-1)",)),
}
RATES = ("optimiser.learning_rate=log_uniform(1e-4,1e-2)", "algorithm.discount=uniform(0.9,0.99)")


def asked(name, steps=800, **runtime):
    preset, env, settings, prior = RULES[name]
    given = {"members": MEMBERS, "environments": 2, "prior": (*RATES, *prior), "interval": 100, "episodes": 2,
        "dispatch": "vmap", "chunk_steps": 160, **runtime}  # fmt: skip
    return presets.Request(preset, env, steps, runtime="population", settings={"runtime": given, **SMALL, **settings})


def built(name, steps=800, **runtime):
    return experiment.build(presets.resolve(asked(name, steps, **runtime))[0])


def run(made, steps=800, saved=None, **options):
    observer = Observer(**options)
    return observer, made.runtime.run(made.parts, 0, steps, None, observer, saved)


@pytest.fixture(scope="module", autouse=True)
def cache():
    experiment.cache()


def digest(saved):
    return tree.sha256(saved.loop)


# ------------------------------------------------------------------------------------------------ independence


def compiler(name):
    made = built(name)
    return compiling.Compiler(made.parts, loop.Shape(2, UPDATES), made.runtime._rules)


@functools.cache
def begun(name):
    made = compiler(name)
    keys = made.keys(seeds.key(0, "init"))
    return made, jax.jit(made.begin)(keys), made.keys(seeds.key(0, "run"))


@functools.cache
def alone(name):
    """Every member by itself, as an ordinary agent with its memory in its state."""
    made, first, keys = begun(name)
    agent, env = made._parts.agent, made._parts.device_env
    field = agent.about.fields.memory

    @jax.jit
    def train(members, common, key):
        state, actors = members.state, members.actors
        if field:
            state = tree.replaced(state, field, learning.joined(members.memory, common.memory))

        def update(at, number):
            state, actors = at
            act_key, learn_key = jax.random.split(jax.random.fold_in(key, number))
            actors, rollout, _ = rollouts.collect(agent, env, agent.snapshot(state), actors, act_key)
            return (agent.update(state, rollout, learn_key)[0], actors), None

        return jax.lax.scan(update, (state, actors), jnp.arange(UPDATES, dtype=jnp.uint32))[0]

    def member(at):
        state, actors = train(jax.tree.map(lambda leaf: leaf[at], first.members), first.common, keys[at])
        kept = tree.field(state, field).experience if field else ()
        return (tree.replaced(state, field, ()) if field else state), kept, actors

    return [jax.device_get(member(at)) for at in range(MEMBERS)]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("way", [dispatch.Way("vmap", MEMBERS), dispatch.Way("map", 2), dispatch.Way("sequential", 0)])
def test_a_member_learns_what_it_would_alone(name, way):
    made, first, keys = begun(name)
    call = jax.jit(loop.call(made._parts, loop.Shape(2, UPDATES), way))
    ask = running.ask(UPDATES)
    members, common, told = jax.device_get(call(first.members, first.common, keys, ask))
    assert common.update == UPDATES
    assert told.finite.all()
    started = jax.device_get(first.members.state.params)
    for at, (state, kept, actors) in enumerate(alone(name)):
        ours = jax.tree.map(lambda leaf, at=at: leaf[at], members)
        for found, wanted in zip(jax.tree.leaves(ours.state), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
        for found, wanted in zip(jax.tree.leaves(ours.actors), jax.tree.leaves(actors), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
        if kept:
            for found, wanted in zip(ours.memory.experience, kept, strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
        mine = jax.tree.map(lambda leaf, at=at: leaf[at], started)
        assert tree.sha256(ours.state.params) != tree.sha256(mine), "something was learned"
    rates = members.state.optimiser.hyper.learning_rate
    assert len(set(rates.tolist())) == MEMBERS, "hyperparameters differ"


# ------------------------------------------------------------------------------------------------ in float64


WHOLE = 8  # members


def doubled(whole):
    """In float64, what was float32."""

    def one(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        leaf = np.asarray(leaf)
        return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf

    return jax.tree.map(one, whole)


@functools.cache
def seen(name):
    """Members at their beginning, and rollouts ``[N, UPDATES, T, B]`` of their first policies; all of it in float32."""
    made = built(name, members=WHOLE)
    kit = compiling.Compiler(made.parts, loop.Shape(2, UPDATES), made.runtime._rules)
    agent, env = made.parts.agent, made.parts.device_env
    first = jax.jit(kit.begin)(kit.keys(seeds.key(0, "init")))

    def collected(state, actors, key):
        policy = agent.snapshot(state)

        def once(actors, key):
            actors, rollout, _ = rollouts.collect(agent, env, policy, actors, key)
            return actors, rollout

        return jax.lax.scan(once, actors, jax.random.split(key, UPDATES))[1]

    acted = first.members.state, first.members.actors, kit.keys(seeds.key(0, "acting"))
    return made.parts, first, jax.jit(jax.vmap(collected))(*acted), kit.keys(seeds.key(0, "learn"))


def learning_from(parts, lift, front):
    """(members and their rollouts, common, keys) -> the same after UPDATES; `front`: the axis of the updates."""
    practise = loop.learn(parts, lift)

    def several(given, common, keys):
        members, collected = given

        def once(now, at):
            mine = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, at, front, keepdims=False), collected)
            own = lift(lambda key: jax.random.fold_in(key, at))(keys)
            return practise(*now, mine, own, jnp.bool_(False))[:2], None

        (members, common), _ = jax.lax.scan(once, (members, common), jnp.arange(UPDATES, dtype=jnp.uint32))
        return (members, collected), common, keys

    return several


@pytest.mark.slow
@pytest.mark.parametrize("name", ["td3", "sac", "dqn"])
def test_in_float64_a_member_learns_what_it_would_alone_to_nine_places(name):
    """Independence beyond what float32 can show; acting is part of no update, so they learn from given rollouts."""
    parts, first, collected, keys = seen(name)
    agent, field = parts.agent, parts.agent.about.fields.memory

    def alone(members, common, collected, key):
        state = tree.replaced(members.state, field, learning.joined(members.memory, common.memory))

        def once(state, at):
            mine = jax.tree.map(lambda leaf: leaf[at], collected)
            return agent.update(state, mine, jax.random.fold_in(key, at))[0], None

        return tree.replaced(jax.lax.scan(once, state, jnp.arange(UPDATES, dtype=jnp.uint32))[0], field, ())

    ways = [dispatch.Way("vmap", WHOLE), dispatch.Way("map", 2), dispatch.Way("sequential", 0)]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        members, common, collected = doubled((first.members, first.common, collected))
        train = jax.jit(alone)
        wanted = [
            jax.device_get(train(*jax.tree.map(lambda leaf, at=at: leaf[at], (members,)), common,
                                 *jax.tree.map(lambda leaf, at=at: leaf[at], (collected, keys))))
            for at in range(WHOLE)
        ]  # fmt: skip
        for way in ways:
            one, axis = learning_from(parts, lambda function, *_: function, 0), learning_from(parts, loop.vmapped, 1)
            (after, _), _, _ = jax.jit(dispatch.every(one, axis, way))((members, collected), common, keys)
            after = jax.device_get(after.state)
            assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {np.dtype("float64")}
            for at, whole in enumerate(wanted):
                mine = jax.tree.map(lambda leaf, at=at: leaf[at], after)
                for found, leaf in zip(jax.tree.leaves(mine), jax.tree.leaves(whole), strict=True):
                    np.testing.assert_allclose(found, leaf, rtol=1e-9, atol=1e-12)
                for found, leaf in zip(
                    jax.tree.leaves(mine.params), jax.tree.leaves(members.state.params), strict=True
                ):
                    assert (found != leaf[at]).any(), "it has learned"


def test_the_length_of_calls_changes_no_bit():
    made, first, keys = begun("a2c")
    call = jax.jit(loop.call(made._parts, loop.Shape(2, UPDATES), dispatch.Way("vmap", MEMBERS)))
    once = call(first.members, first.common, keys, running.ask(UPDATES))
    twice = call(*call(first.members, first.common, keys, running.ask(20))[:2], keys, running.ask(UPDATES - 20))
    assert tree.sha256(once[:2]) == tree.sha256(twice[:2])


def test_a_write_to_the_memories_is_a_slice_in_place():
    """What `vmap` makes of a write at a place that all have in common, and no copy of the memories."""
    made, first, keys = begun("td3")
    call = loop.call(made._parts, loop.Shape(2, UPDATES), dispatch.Way("vmap", MEMBERS))
    lowered = jax.jit(call, donate_argnums=(0, 1)).lower(first.members, first.common, keys, running.ask(UPDATES))
    used = lowered.compile().memory_analysis()
    if used is None:
        pytest.skip("this platform does not tell")
    kept = tree.bytes(first.members.memory)
    # Before an update that learns there is what it learns from, but never the memories once more.
    assert used.alias_size_in_bytes >= kept, "they are handed on in place"


# ------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def trained():
    made = built("td3")
    observer, result = run(made)
    return made, observer, result


def test_nothing_is_compiled_once_exchanges_have_begun():
    """Every exchange but the burn-in changes hyperparameters of members; what XLA is asked to compile is counted."""
    made, events, seen = built("a2c", steps=1600, fraction=0.9, burn_in=1), [], []

    def heard(name, seconds, **more):
        del seconds, more
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    class Watching(Observer):
        def __call__(self, progress):
            if progress.stage is None:
                seen.append((progress.subsystems["population"]["exchanges"], len(events)))
            return super().__call__(progress)

    jax.monitoring.register_event_duration_secs_listener(heard)
    result = made.runtime.run(made.parts, 0, 1600, None, Watching(), None)
    assert events, "compiling is heard"
    exchanged = [count for exchanges, count in seen if exchanges >= 1]
    assert seen[-1][0] == 3
    assert exchanged[0] == exchanged[-1]
    told = [event for event in result.final.artefacts[lineage.FILE].events() if event.event == "exchange"]
    assert {event.round for event in told if event.source is not None} == {1, 2}, "nobody takes over in the first round"
    assert result.final.subsystems["population"]["compilations_after_first_exchange"] == 0


def test_a_run_tells_of_all_its_members(trained):
    _, observer, result = trained
    told = result.final.subsystems["population"]
    assert told["members"] == MEMBERS
    assert told["exchanges"] == 1, "none after the last step"
    assert told["best"]["fitness"] == max(told["fitness"])
    assert told["fitness"][told["best"]["member"]] == told["best"]["fitness"]
    assert told["mean"] == pytest.approx(np.mean(told["fitness"]))
    assert told["spread"] == pytest.approx(np.std(told["fitness"]), rel=1e-4)
    assert told["min_distance"] > 0
    assert len(told["returns"]) == MEMBERS
    assert told["dispatch"]["mode"] == "vmap"
    assert told["member_steps_per_s"] > 0
    assert (told["compilations"], told["compilations_after_first_exchange"]) == (3, 0)
    episodes = [episode for progress in observer.told for episode in progress.episodes]
    assert {episode.worker for episode in episodes} == set(range(MEMBERS))
    assert len(episodes) == result.final.env_steps, "an episode of this probe is one step"
    events = result.final.artefacts[lineage.FILE].events()
    assert [event.event for event in events] == ["init"] * 4 + ["exchange"] * 4 + ["fitness"] * 4


def test_the_result_is_the_policy_of_the_best_member(trained):
    made, _, result = trained
    saved = result.final.save()
    best = standing.best(saved.standing)
    state = jax.tree.map(lambda leaf: leaf[best], saved.loop.members.state)
    assert tree.sha256(state.params["policy"]) == tree.sha256(result.policy.params)
    play = jax.jit(fitness.program(made.parts, 2))
    keys = compiler("td3").keys(seeds.key(0, "fitness", int(saved.loop.common.update)))
    (again,) = play(saved.loop.members.state, keys)
    np.testing.assert_allclose(again, saved.standing.fitness, rtol=1e-5)


@pytest.mark.parametrize("name", ["td3", "a2c"])
def test_it_goes_on_with_the_same_bits_from_the_middle_of_an_interval(name, trained):
    made, _, whole = trained if name == "td3" else (built(name), *run(built(name)))
    first, stopped = run(made, stop_at=130)  # after the first call of the first interval
    saved = stopped.final.save()
    assert int(saved.loop.common.update) % 10, "in the middle"
    _, resumed = run(made, saved=saved)
    assert digest(resumed.final.save()) == digest(whole.final.save())
    assert resumed.final.subsystems["population"]["fitness"] == whole.final.subsystems["population"]["fitness"]
    told = [event for done in (stopped, resumed) for event in done.final.artefacts[lineage.FILE].events()]
    assert told == whole.final.artefacts[lineage.FILE].events()
    del first


# ------------------------------------------------------------------------------------------------ failure


def poisoned(saved, member):
    params = jax.tree.map(np.array, saved.loop.members.state.params)
    for leaf in jax.tree.leaves(params):
        leaf[member] = np.nan
    state = saved.loop.members.state._replace(params=params)
    return saved._replace(loop=saved.loop._replace(members=saved.loop.members._replace(state=state)))


def rows(members, at):
    return tree.sha256(jax.tree.map(lambda leaf: leaf[at], members))


@pytest.mark.parametrize("name", ["td3", "a2c"])
def test_a_member_that_is_not_finite_is_replaced_alone(name):
    made = built(name, steps=3200, members=8, interval=400)
    _, stopped = run(made, steps=3200, stop_at=160)
    saved = stopped.final.save()
    _, calm = run(made, steps=3200, saved=saved, stop_at=480)
    _, upset = run(made, steps=3200, saved=poisoned(saved, 3), stop_at=480)
    ours, theirs = upset.final.save(), calm.final.save()
    for at in range(8):
        assert (rows(ours.loop.members, at) == rows(theirs.loop.members, at)) == (at != 3)
    assert tree.all_finite(ours.loop.members), "what it did while it was faulty is in no memory"
    assert upset.final.faults["non_finite"] == 1
    (event,) = upset.final.artefacts[lineage.FILE].events()
    assert (event.event, event.member, event.reason) == ("failure", 3, "non_finite")
    values = jax.device_get(ours.loop.members.state.optimiser.hyper.learning_rate)
    assert event.hyperparameters["optimiser.learning_rate"] == pytest.approx(float(values[3]))
    assert values[3] != theirs.loop.members.state.optimiser.hyper.learning_rate[3], "drawn anew"
    assert ours.loop.members.state.env_steps[3] == theirs.loop.members.state.env_steps[3], "schedules go on"


def test_a_faulty_member_takes_the_policy_of_one_that_is_fit():
    made = built("td3")
    _, stopped = run(made, stop_at=480)
    saved = stopped.final.save()
    assert saved.standing.measured.any()
    taken = failing.sources(saved.standing, np.arange(MEMBERS) == 3, 0.4, 0, 60)
    assert taken[:3].tolist() == [0, 1, 2]
    assert saved.standing.measured[taken[3]]
    fresh = failing.sources(standing.fresh(MEMBERS), np.arange(MEMBERS) == 3, 0.4, 0, 60)
    assert fresh.tolist() == [0, 1, 2, 3], "nobody has a fitness yet"


def test_too_many_failures_end_the_run_with_their_hyperparameters():
    now, mask = standing.fresh(MEMBERS), np.array([True, True, True, False])
    values = {"optimiser.learning_rate": np.array([0.1, 0.2, 0.3, 0.4])}
    with pytest.raises(errors.GaveUp, match=r"3 failures of 4 members.*member 0: optimiser.learning_rate=0.1") as gave:
        failing.check(standing.lapsed(now, mask), mask, values, 7)
    assert "\n" not in str(gave.value)
    made = built("td3")
    saved = run(made, stop_at=130)[1].final.save()
    with pytest.raises(errors.GaveUp, match="3 failures of 4 members"):
        run(made, saved=poisoned(saved, [0, 1, 3]))
    one = np.arange(MEMBERS) == 2
    for _ in range(2):
        now = standing.lapsed(now, one)
        failing.check(now, one, values, 7)
        now = standing.exchanged(now, np.zeros(MEMBERS, bool))
    with pytest.raises(errors.GaveUp, match=r"member 2 was not finite 3 times in a row.*learning_rate=0.3"):
        failing.check(standing.lapsed(now, one), one, values, 7)
    now = standing.exchanged(standing.exchanged(now, np.zeros(MEMBERS, bool)), np.zeros(MEMBERS, bool))
    failing.check(standing.lapsed(now, one), one, values, 7)


# ------------------------------------------------------------------------------------------------ dispatch


def test_a_way_by_hand_and_the_same_way_chosen_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(dispatch.Clock, "worth", lambda clock: len(clock.timed) < 2)
    monkeypatch.setattr(dispatch.Clock, "best", property(lambda clock: clock.timed[1]))
    made = built("a2c", dispatch="auto", steps=400)
    _, chosen = run(made, steps=400)
    told = chosen.final.subsystems["population"]["dispatch"]
    assert (told["mode"], [one["mode"] for one in told["candidates"]]) == ("sequential", ["vmap", "sequential"])
    assert all(one["seconds"] > 0 for one in told["candidates"])
    _, given = run(built("a2c", dispatch="sequential", steps=400), steps=400)
    assert digest(chosen.final.save()) == digest(given.final.save())
    monkeypatch.setattr(dispatch.Clock, "take", None)  # a resumed run does not measure
    _, resumed = run(made, steps=480, saved=chosen.final.save())
    assert resumed.final.subsystems["population"]["dispatch"] == told


def test_candidates_are_tried_while_it_pays():
    clock = dispatch.Clock(1000)
    assert clock.worth()
    vmap, turns = dispatch.candidates(8)[:2]
    clock.take(vmap, lambda _: None, 50, 1.0)
    assert clock.timed[0].way == vmap
    clock.timed = [dispatch.Timed(vmap, 0.1, 1.0)]
    assert clock.worth(), "a run of 100 s"
    clock.timed = [dispatch.Timed(vmap, 0.0001, 1.0)]
    assert not clock.worth(), "a run of 0.1 s is done sooner than another is compiled"
    clock.timed = [dispatch.Timed(vmap, 1.0, 31.0)]
    assert not clock.worth(), "beyond 30 s"
    clock.timed = [dispatch.Timed(vmap, 10.0, 31.0), dispatch.Timed(turns, 9.0, 1.0)]
    assert clock.worth(), "of a run of hours, a share"
    assert clock.best.way == turns


@pytest.mark.parametrize(
    ("members", "ways"),
    [
        (8, ["vmap", "sequential", "map in blocks of 4", "map in blocks of 2"]),
        (3, ["vmap", "sequential"]),
        (1, ["vmap"]),
    ],
)
def test_candidates_on_a_processor(members, ways):
    assert [str(way) for way in dispatch.candidates(members)] == ways


def test_members_are_spread_over_devices_to_the_same_numbers(tmp_path):
    script = """
import sys, numpy as np, jax
from tests import test_population as here
from shoal import experiment
experiment.cache()
made = here.built("td3", members=8, steps=1600, interval=50)
_, result = here.run(made, steps=1600)
told = result.final.subsystems["population"]
assert told["devices"] == int(sys.argv[1]), told["devices"]
np.savez(sys.argv[2], *jax.tree.leaves(result.final.save().loop.members.state), fitness=told["fitness"])
"""
    found = []
    for devices in (4, 1):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        out = tmp_path / f"{devices}.npz"
        done = subprocess.run(
            [sys.executable, "-c", script, str(devices), str(out)], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(dict(np.load(out)))
    for name, leaf in found[0].items():
        np.testing.assert_allclose(leaf, found[1][name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_shares_of_devices_are_equal():
    assert spread.Cut(8, fill=False).each * spread.Cut(8, fill=False).devices == 8


# ------------------------------------------------------------------------------------------------ before it begins


def test_bytes_are_told_and_a_population_that_does_not_fit_is_refused(monkeypatch, trained):
    made, _, result = trained
    told = result.final.subsystems["population"]["bytes_per_member"]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(result.final.save().loop.members)) / MEMBERS
    assert told == pytest.approx(held, rel=0.1)
    needed = budget.need(made.parts.agent, 200)
    assert needed.learner == pytest.approx(held, rel=0.1)
    monkeypatch.setattr(budget, "available", lambda: 5 * budget.MB)
    with pytest.raises(errors.Refused, match=r"24 MB.*5 MB.*at most 2 members"):
        budget.check(budget.Need(2 * budget.MB, None), 12, "members", option="--members")
    with pytest.raises(errors.Refused, match=r"8 MB.*5 MB.*at most 1 members"):
        budget.check(budget.Need(2 * budget.MB, None), 2, "members", copies=2, option="--members")
    said = budget.check(budget.Need(budget.MB, None), 2, "members", copies=2, option="--members")
    assert said == "1.00 MB a learner, 4 MB while a checkpoint is written"
    assert result.final.subsystems["population"]["peak_increase_mb"] >= 0.0


@pytest.mark.parametrize(("platform", "devices", "copies"), [("cpu", 2, 2), ("cpu", 1, 1), ("gpu", 2, 1)])
def test_a_checkpoint_is_a_second_copy_where_it_is_put_together(platform, devices, copies, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    assert budget.kept_twice() == copies


@pytest.mark.slow
@pytest.mark.parametrize("members", [8, 16])
def test_what_is_told_of_memory_is_what_it_takes(members, tmp_path):
    """In a process of its own, where nothing else has been in the memory; most of it is replay."""
    small = ("--network.hidden", 32, "--algorithm.batch", 32, "--algorithm.learning-starts", 100)
    words = ("--env", "gymnax:Pendulum-v1", "--members", members, "--steps", 600 * members, "--runtime.interval", 300)
    more = ("--algorithm.capacity", 1_000_000, "--runtime.dispatch", "vmap", "--eval-episodes", 0, "--json")
    with faults.Process("train", "pbt_td3", *words, *small, *more, "--out", tmp_path / "run") as process:
        ended = process.ended()
    assert ended.code == 0, ended.err
    told = ended.json["population"]
    copies = 2 if told["devices"] > 1 else 1
    expected = copies * members * told["bytes_per_member"] / budget.MB
    if copies == 2:
        said = re.search(r"([\d,]+) MB while a checkpoint is written", ended.err)
        assert float(said[1].replace(",", "")) == pytest.approx(expected, rel=0.01)
    assert told["peak_increase_mb"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("preset", "runtime", "meant"), [
    ("collab_a2c", "population", "truncation"), ("pbt_ppo", "federated", "gradient"),
])  # fmt: skip
def test_a_choice_of_the_presets_own_runtime_is_left_out_under_another_that_lacks_it(preset, runtime, meant):
    assert presets.config(presets.Request(preset, runtime=runtime), "runtime").exchange == meant


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ({"prior": ("algorithm.nothing=uniform(0,1)",)}, ["algorithm.nothing"]),
        ({"prior": ("algorithm.tau=uniform(0,2)",)}, ["algorithm.tau", "0 and 1"]),
        ({"prior": ("algorithm.discount",)}, ["NAME=KIND"]),
        ({"block": 3}, ["block=3", "1, 2, 4"]),
        ({"members": 1}, ["truncation", "two members"]),
        ({"members": 0}, ["members=0", "at least 1"]),
        ({"fraction": 1.0}, ["fraction"]),
        ({"factors": (-1.0, 2.0)}, ["runtime.factors=(-1.0, 2.0)", "0.8 1.25"]),
        ({"factors": (1.0, 1.0)}, ["runtime.factors"]),
    ],
)
def test_what_cannot_be_a_population_is_refused(runtime, words):
    with pytest.raises(errors.Refused) as refused:
        presets.resolve(asked("td3", **runtime))
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_several_seeds_are_several_populations(tmp_path):
    group = shoal.train(
        "pbt_ppo", env="probe:match", members=2, steps=2000, seeds=2, out=tmp_path / "runs", quiet=True,
        eval_episodes=0, runtime={"dispatch": "vmap", "interval": 600, "environments": 2},
        algorithm={"rollout_length": 16, "minibatches": 2}, network={"hidden": (8,)},
    )  # fmt: skip
    assert group.summary["status"] == "completed"
    assert [run.summary["population"]["members"] for run in group.runs] == [2, 2]
    assert len({run.summary["params_sha256"] for run in group.runs}) == 2
    for run in group.runs:
        assert run.summary["population"]["exchanges"] >= 1
        assert (run.folder / lineage.FILE).exists()
        assert run.summary["exact"]


def test_short_options_are_those_of_the_runtime(capsys, tmp_path):
    typed = ("pbt_ppo", "--env", "probe:match", "--members", 3, "--population.interval", 500, "--steps", 400,
        "--population.dispatch", "vmap")  # fmt: skip
    summary = faults.train(capsys, tmp_path / "run", *typed)
    assert summary["population"]["members"] == 3
    parts = json.loads((tmp_path / "run" / "config.json").read_text())["parts"]
    assert parts["runtime"]["interval"] == 500
    ended = faults.call(capsys, "train", "ppo", "--members", 2, "--out", tmp_path / "no")
    assert (ended.code, "--runtime population" in ended.err) == (2, True)


def test_the_steps_are_those_of_all_members():
    made, _ = presets.resolve(asked("a2c", steps=1000))
    agent = experiment.build(made).parts.agent
    state = jax.eval_shape(agent.init, jax.random.key(0))
    del state
    first = agent.init(jax.random.key(0))
    assert float(first.optimiser.hyper.anneal_steps) == 250, "each does a quarter, and anneals over that"


def test_calls_end_where_an_exchange_is_due():
    cut = running.plan(per_update=4, members=8, interval=1001, call=3200, steps=20_000)
    assert (cut.interval, cut.updates, cut.per_call) == (251, 625, 100)
    done, ends = 0, []
    while done < cut.updates:
        done += cut.next(done)
        ends.append(done)
    assert ends == [84, 168, 251, 335, 419, 502, 564, 625]
    assert running.plan(1, 4, 10, 1000, 7).updates == 2, "rounded up to whole updates of every member"
