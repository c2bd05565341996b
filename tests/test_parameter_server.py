"""The parameter server: its transport, its guards, one bundle beside shards in threads, and whole runs of processes."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import time
import types as python_types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, seeds, tree
from shoal.experiment import budget, presets
from shoal.formulas import optimise, rules
from shoal.networks import in_numpy
from shoal.runs import checkpoint, run_folder, training
from shoal.runtimes import parameter_server
from shoal.runtimes.crew import life, sharing, supervise
from shoal.runtimes.experience import segments
from shoal.runtimes.parameter_server import (
    bundle_learning,
    bundle_process,
    bundle_state,
    guards,
    serving,
    shard_process,
    transport,
)
from tests import faults
from tests.conformance.test_runtimes import Observer

HYPER = optimise.Hyper(0.1, optimise.LARGEST, 0.9, 1e-3, optimise.LARGEST)
SMALL = {  # a DQN that learns from the first steps on
    "algorithm": {
        "rollout_length": 4, "batch": 8, "capacity": 200, "learning_starts": 40, "target_period": 7,
        "epsilon_steps": 300, "n_step": 1,
    },
    "network": {"hidden": (8,)},
    "optimiser": {"anneal": True},
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ the transport


def server(size=10, shards=3, queue=4, bundles=1, rated=False):
    block = sharing.Block({**transport.layout(size, shards, queue, rated), **bundle_state.layout(bundles, 0)})
    bells = transport.Bells(*([sharing.Bell() for _ in range(count)] for count in (shards, bundles)))
    return block, bells


def client(block, bells, bundle=0):
    return transport.Client(block, bells, bundle)


def apply(inbox, block):
    """What a shard does with its next push, with plain gradient descent; whether there was one."""
    push = inbox.take()
    if push is None:
        return False
    with inbox.writing():
        block["theta"][inbox.part] -= push.eta * push.gradient
    return True


@pytest.mark.parametrize(("size", "shards"), [(10, 1), (10, 3), (67, 31), (5, 8)])
def test_slices_are_disjoint_contiguous_and_cover_all(size, shards):
    parts = transport.slices(size, shards)
    assert len(parts) == shards
    assert [i for part in parts for i in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_shards_apply_at_their_own_pace_and_a_fetch_tells_each_version():
    block, bells = server()
    theta, bundle = np.zeros(10, np.float32), client(block, bells)
    inboxes = [transport.Inbox(block, bells, shard) for shard in range(3)]
    assert bundle.fetch(theta).tolist() == [0, 0, 0]
    gradient = np.arange(10, dtype=np.float32)
    for _ in range(2):
        assert bundle.push(gradient, np.zeros(3, int), HYPER, 0.5, None, 0).taken
    assert [apply(inboxes[1], block) for _ in range(3)] == [True, True, False]
    assert apply(inboxes[2], block)
    assert bundle.fetch(theta).tolist() == [0, 2, 1]
    np.testing.assert_array_equal(theta, [0, 0, 0, -3, -4, -5, -3, -3.5, -4, -4.5])


def test_a_push_brings_a_rate_for_every_parameter():
    block, bells = server(rated=True)
    factors = np.linspace(0.0, 9.0, 10, dtype=np.float32)
    client(block, bells).push(np.ones(10, np.float32), np.zeros(3, int), HYPER, 0.5, factors, 0)
    for shard in range(3):
        assert apply(transport.Inbox(block, bells, shard), block)
    np.testing.assert_allclose(block["theta"], -0.5 * factors)


def test_a_gradient_too_old_at_any_shard_is_refused_whole():
    block, bells = server(queue=20)
    bundle, gradient = client(block, bells), np.ones(10, np.float32)
    inboxes = [transport.Inbox(block, bells, shard) for shard in range(3)]
    for _ in range(5):
        bundle.push(gradient, np.full(3, 99), HYPER, 1.0, None, 0)
    apply(inboxes[0], block)
    before = block["theta"].copy()
    versions = np.array([5, 5, 1])  # two slices are new, one is 4 versions old
    assert bundle.push(gradient, versions, HYPER, 1.0, None, 3) == (False, 4)
    assert block["tickets"][0] == 5
    for inbox in inboxes:
        while apply(inbox, block):
            pass
    assert block["version"].tolist() == [5, 5, 5], "what was refused reached no shard"
    assert not np.array_equal(block["theta"], before)
    assert bundle.push(gradient, versions, HYPER, 1.0, None, 4) == (True, 4)
    assert bundle.push(gradient, np.zeros(3, int), HYPER, 1.0, None, 0) == (True, 6), "0 takes everything"


def test_a_full_queue_makes_the_bundle_wait():
    block, bells = server(shards=2, queue=2)
    bundle = client(block, bells)

    def push():
        return bundle.push(np.ones(10, np.float32), np.zeros(2, int), HYPER, 1.0, None, 0)

    assert push().taken
    assert push().taken
    assert push() is None
    inboxes = [transport.Inbox(block, bells, shard) for shard in range(2)]
    assert apply(inboxes[0], block)
    assert push() is None, "one shard is behind: its queue counts"
    assert apply(inboxes[1], block)
    assert push().taken
    assert not bundle.settled()
    for inbox in inboxes:
        while apply(inbox, block):
            pass
    assert bundle.settled()


def test_what_a_shard_died_over_is_lost_and_the_rest_applied_once():
    block, bells = server(shards=1)
    bundle, gradient = client(block, bells), np.ones(10, np.float32)
    for _ in range(3):
        bundle.push(gradient, np.zeros(1, int), HYPER, 1.0, None, 0)
    dead = transport.Inbox(block, bells, 0)
    assert apply(dead, block)
    assert dead.take() is not None  # and then it dies
    follower = transport.Inbox(block, bells, 0)
    follower.recover()
    assert apply(follower, block)
    assert not apply(follower, block)
    assert (block["version"][0], block["lost"][0]) == (3, 1)
    np.testing.assert_array_equal(block["theta"], -2.0)


def test_a_shard_that_is_never_idle_gives_signs_of_life(monkeypatch):
    class Link:
        signs = 0
        until = time.monotonic() + 10

        def send(self, message):
            del message
            self.signs += 1

        def orphaned(self):
            return self.signs > 3 or time.monotonic() > self.until

    block, bells = server(shards=1)
    push = transport.Push(np.ones(10, np.float32), HYPER, 0.1)
    monkeypatch.setattr(transport.Inbox, "take", lambda _: push)
    run = serving.Run(parameter_server.Config(bundles=1), parts("gymnax:CartPole-v1"), 0, 100, None)
    role = run.roles()[1]
    assert 0 < role.report_s < supervise.SILENCE / 2
    signals = life.Signals([role])
    seat = life.Seat(signals.block, 0, 0, role.open, role.together, role.holds, role.serves, 0.01)
    link = Link()
    link.receive = None
    life.live(link, seat, shard_process.Job(block, bells, 0, rules.AdaGrad(())))
    assert link.signs > 3
    assert time.monotonic() < link.until, "and not only at its end"


def test_a_bell_wakes_and_rings_are_not_counted():
    bell = sharing.Bell()
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    began = time.monotonic()
    bell.wait(30.0)
    while time.monotonic() - began < 20.0:
        before = time.monotonic()
        bell.wait(0.05)
        if time.monotonic() - before >= 0.04:
            break
    assert time.monotonic() - began < 20.0
    bell.close()
    bell.close()


# ------------------------------------------------------------------------------------------------ the guard of losses


def losses(count, level=1.0, seed=0):
    return level * (1.0 + 0.1 * np.random.default_rng(seed).normal(size=count))


def test_an_outlier_is_dropped_and_leaves_the_statistics_alone():
    guard = guards.Outliers(3.0)
    assert not any(guard.drops(loss) for loss in losses(100))
    assert guard.drops(1000.0)
    assert guard.drops(-1000.0), "it is the size that counts"
    _, mean, variance = guard.save()
    assert mean == pytest.approx(1.0, abs=0.05)
    assert variance**0.5 == pytest.approx(0.1, abs=0.05)
    assert sum(guard.drops(loss) for loss in losses(1000, seed=1)) < 20


def test_the_first_hundred_losses_are_never_dropped_nor_any_without_a_guard():
    guard, off = guards.Outliers(3.0), guards.Outliers(0.0)
    assert not any(guard.drops(1000.0 if i == 50 else 1.0) for i in range(100))
    assert not any(off.drops(1e6 if i == 500 else loss) for i, loss in enumerate(losses(1000)))


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_lasting_change_of_level_is_let_through_in_the_end(start):
    guard = guards.Outliers(3.0)
    for loss in losses(200, start):
        guard.drops(loss)
    dropped = [guard.drops(loss) for loss in losses(500, 100.0)]
    assert not any(dropped[-100:])


def test_the_guard_goes_on_from_what_it_saved():
    guard, other = guards.Outliers(3.0), guards.Outliers(3.0)
    for loss in losses(150):
        guard.drops(loss)
    other.restore(guard.save())
    later = losses(50, seed=2) + 0.2
    assert [guard.drops(loss) for loss in later] == [other.drops(loss) for loss in later]


# ------------------------------------------------------------------------------------------------ one bundle


def parts(env, **settings):
    merged = {kind: {**values, **settings.get(kind, {})} for kind, values in SMALL.items()}
    made = presets.resolve(presets.Request("gorila", env, 2000, settings=merged))[0]
    experiment.cache()
    return experiment.build(made).parts


_compiled: dict[int, tuple] = {}  # id of parts -> the parts, and what each bundle of theirs would compile again


def compiled(parts):
    """The compiled functions of a bundle and its first state's, made once for all bundles of the same parts."""
    if id(parts) not in _compiled:
        learning = bundle_learning.Learning(parts.agent)
        _compiled[id(parts)] = parts, jax.jit(parts.agent.init), learning, segments.Programs(parts)
    return _compiled[id(parts)][1:]


@contextlib.contextmanager
def beside(parts, shards=1, *, number=0, block=None, area=None, **settings):
    """A bundle in this process, its shards beside it: whatever it pushes is applied when it waits for that."""
    init, learning, programs = compiled(parts)
    state = init(seeds.key(0))
    flat = tree.flattener(state.params)
    fresh, bells = server(flat.size, shards, bundles=number + 1)
    if block is None:
        fresh["theta"][:] = flat.flatten(state.params)
    else:
        for name in ("theta", "g", "steps", "kept"):
            fresh[name][:] = block[name]
        for name in ("tickets", "taken", "version"):
            fresh[name][:] = block["version"].min()
    given = bundle_state.Settings(**{"max_lag": 10, "outlier_sigma": 0.0, "n_fetch": 1, "n_push": 1} | settings)
    room = area or bundle_state.area(bundle_state.kept(parts, given))
    above = python_types.SimpleNamespace(stopped=False, gone=lambda: False)
    jobs = [shard_process.Job(fresh, bells, shard, state.optimiser.rule) for shard in range(shards)]
    work = [shard_process.Shard(job, above) for job in jobs]
    del state  # and the memory in it
    job = bundle_process.Job(fresh, bells, room, lambda: parts, 0, number, 0, 2000, given, area is not None)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(bundle_learning, "Learning", lambda _: learning)
        patches.setattr(segments, "Programs", lambda _: programs)
        bundle = bundle_process.Bundle(job, above)
    bundle.apply = functools.partial(applied, work)
    bundle.cycle = functools.partial(cycle, bundle, fresh)
    try:
        yield bundle, fresh, room
    finally:
        bundle.apply = bundle.cycle = None  # or it would hold itself
        bundle.close()
        bells.close()


def applied(shards):
    """All that was pushed is applied."""
    for shard in shards:
        while not shard.over and shard.turn():
            pass


def cycle(bundle, block):
    """Turns up to the next segment, and until what it came to was offered."""
    before = int(block["steps"].sum())
    while int(block["steps"].sum()) == before or bundle._pushes.pending:
        if not bundle.turn():
            bundle.apply()


@pytest.fixture(scope="module")
def cartpole():
    return parts("gymnax:CartPole-v1")


def learned(parts, shards=1, cycles=60, **settings):
    """(parameters, updates) after some cycles."""
    with beside(parts, shards, **settings) as (bundle, block, _):
        for _ in range(cycles):
            bundle.cycle()
        bundle.apply()
        return block["theta"].copy(), int(block["updates"][0])


@pytest.mark.parametrize(("rule", "others"), [("adagrad", (3,)), ("rmsprop", (31,))])
def test_one_bundle_learns_the_same_however_many_shards_there_are(rule, others):
    made = parts("gymnax:CartPole-v1", optimiser={"rule": rule})
    one, updates = learned(made, 1, cycles=30)
    assert updates == 30 - 9, "nothing was pushed while the memory was filled"
    for shards in others:
        found, count = learned(made, shards, cycles=30)
        assert count == updates
        assert found.tobytes() == one.tobytes()


def test_several_updates_may_lie_between_fetches_and_pushes(cartpole):
    each, _ = learned(cartpole)
    seldom, pushes = learned(cartpole, 3, n_push=3)
    assert pushes == 51 // 3
    assert seldom.tobytes() != each.tobytes()
    with beside(cartpole, n_fetch=4) as (bundle, block, _):
        for _ in range(60):
            bundle.cycle()
        assert block["offered"][0][:5].tolist() == [15 - 2, 13, 13, 12, 0], "lags of 0 to 3"


@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_left_at_the_end_is_pushed_and_kept_by_one_that_was_stopped(cartpole, stopped):
    with beside(cartpole, 3, n_push=100) as (bundle, block, room):
        for _ in range(60):
            bundle.cycle()
        before = block["theta"].copy()
        bundle._parent.stopped = stopped
        block["steps"][0] = 2000
        while not bundle.over:
            bundle.turn()
        bundle.apply()
        bundle.finish()
        assert block["updates"][0] == (0 if stopped else 1)
        assert (block["theta"].tobytes() == before.tobytes()) == stopped
        assert room[".count"] == (51 if stopped else 0)


def test_a_gradient_too_old_is_dropped_and_counted(cartpole):
    with beside(cartpole, n_fetch=4, max_lag=2) as (bundle, block, _):
        for _ in range(60):
            bundle.cycle()
        assert block["offered"][0][:4].tolist() == [13, 13, 13, 12]
        assert block["dropped"][0][bundle_state.DROPPED.index("stale")] == 12
        assert (block["updates"][0], block["lag_max"][0]) == (39, 2)
        assert block["lags"][0][:4].tolist() == [13, 13, 13, 0], "of those that were taken"


def test_the_target_network_follows_the_updates_of_all(cartpole):
    with beside(cartpole) as (bundle, block, _):
        for _ in range(12):
            bundle.cycle()
        before = jax.device_get(bundle._state.target)
        assert int(bundle._state.moved_at) == 0
        bundle.apply()
        for name in ("tickets", "taken", "version"):  # what others pushed meanwhile
            block[name][:] += 10
        bundle.cycle()
        assert int(bundle._state.moved_at) == int(bundle._state.updates) == 14
        assert tree.sha256(bundle._state.target) != tree.sha256(before)
        moved = jax.device_get(bundle._state.target)
        bundle.cycle()
        assert tree.sha256(bundle._state.target) == tree.sha256(moved), "7 updates later, not before"


def test_schedules_follow_the_steps_of_all(cartpole):
    with beside(cartpole) as (bundle, block, _):
        bundle.cycle()
        assert bundle._metrics["epsilon"] == pytest.approx(1.0 - 0.95 * 4 / 300, abs=0.02)
        block["steps"][0] += 300
        bundle.cycle()
        assert bundle._metrics["epsilon"] < 0.1


@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (4, 1), (4, 3)])
def test_a_bundle_goes_on_from_what_it_left(cartpole, n_fetch, n_push):
    seldom = {"outlier_sigma": 3.0, "n_fetch": n_fetch, "n_push": n_push}
    with beside(cartpole, **seldom) as (bundle, block, area):
        for number in range(60):
            if number == 30:
                bundle.apply()
                bundle.keep()
                offered = block["offered"].copy()
                left = {name: block[name].copy() for name in ("theta", "g", "steps", "kept", "version")}
                room = bundle_state.area(bundle_state.kept(cartpole, bundle._job.settings))
                for name, array in area.arrays.items():
                    room[name][...] = array
            bundle.cycle()
        bundle.apply()
        whole, memory, lags = block["theta"].copy(), jax.device_get(bundle._state.memory), block["offered"] - offered
    with beside(cartpole, 3, block=left, area=room, **seldom) as (bundle, block, _):
        for _ in range(30):
            bundle.cycle()
        bundle.apply()
        assert block["theta"].tobytes() == whole.tobytes()
        assert tree.sha256(bundle._state.memory) == tree.sha256(memory)
        np.testing.assert_array_equal(block["offered"], lags)


@pytest.mark.parametrize("restored", [False, True])
def test_a_bundle_never_has_two_replay_memories(monkeypatch, restored):
    """Counted by an array of each that nothing else has the shape of."""
    made = parts("gymnax:CartPole-v1", algorithm={"capacity": 213})
    copied, found = jnp.array, []

    def count():
        gc.collect()
        flags = [leaf for leaf in jax.live_arrays() if leaf.shape == (1, 213) and leaf.dtype == bool]
        return len({leaf.unsafe_buffer_pointer() for leaf in flags})

    def copies(leaf, *given, **more):
        if isinstance(leaf, np.ndarray) and leaf.shape == (1, 213):
            found.append(count())
        return copied(leaf, *given, **more)

    monkeypatch.setattr(jnp, "array", copies)
    with beside(made) as (bundle, block, area):
        bundle.cycle()
        bundle.apply()
        bundle.keep()
        left = {name: block[name].copy() for name in ("theta", "g", "steps", "kept", "version")}
        del bundle
    given = {"block": left, "area": area} if restored else {}
    with beside(made, **given) as (bundle, _, _):
        assert (count(), max(found, default=0)) == (1, 0), "one, made while there was no other"
        before, update = tree.sha256(bundle._kept()), bundle._learning.update

        def updates(*arguments):
            found.append(count())
            return update(*arguments)

        monkeypatch.setattr(bundle._learning, "update", updates)
        left = bundle_state.found(made, bundle._job.settings, area) if restored else None
        bundle._warm_up(left)
        assert (max(found), count()) == (1, 1)
        assert tree.sha256(bundle._kept()) == before


def test_an_actor_critic_that_decides_in_numpy_goes_on_too():
    made = presets.resolve(presets.Request("a3c", "CartPole-v1", 2000, runtime="parameter_server"))[0]
    given = experiment.build(made).parts
    assert in_numpy.decides(given.agent.about)
    with beside(given) as (bundle, _, area):
        for _ in range(5):
            bundle.cycle()
        bundle.apply()
        bundle.keep()
        stream = bundle.segments.save()
        draws = bundle.segments._generator.random(3)
        left = {
            "theta": np.zeros(1),
            "g": np.zeros(1),
            "steps": np.zeros(1),
            "kept": np.ones(1),
            "version": np.zeros(1),
        }
        with beside(given, block=left, area=area) as (other, _, _):
            assert all(
                np.array_equal(a, b) for a, b in zip(stream.values(), other.segments.save().values(), strict=True)
            )
            assert np.array_equal(other.segments._generator.random(3), draws)


def test_asynchronous_q_learning_copies_its_target_by_the_steps_of_all_and_explores_as_its_number():
    algorithm = {"rollout_length": 5, "target_period": 100, "epsilon_steps": 1000}
    request = presets.Request(
        "async_q", "CartPole-v1", 2000, runtime="parameter_server", settings={"algorithm": algorithm}
    )
    given = experiment.build(presets.resolve(request)[0]).parts
    assert in_numpy.decides(given.agent.about)
    with beside(given, number=1) as (bundle, block, _):
        assert bundle._state.epsilon_end.shape == (2,), "one for each bundle"
        assert int(bundle._state.stream) == 1
        bundle.cycle()
        first = jax.device_get(bundle._state.target.params)
        bundle.cycle()
        assert tree.sha256(bundle._state.target.params) == tree.sha256(first)
        bundle.apply()
        block["steps"][0] += 100  # what others did meanwhile
        fetched = block["theta"].copy()
        bundle.cycle()
        assert int(bundle._seen.env_steps) == 110, "it acts by the steps of all"
        np.testing.assert_array_equal(tree.flattener(first).flatten(bundle._state.target.params), fetched)
        bundle.cycle()
        np.testing.assert_array_equal(tree.flattener(first).flatten(bundle._state.target.params), fetched)


@pytest.mark.parametrize("sigma", [3.0, 0.0])
def test_a_sample_worth_a_thousand_is_dropped_by_the_guard_and_kept_without(sigma):
    made = parts("tests.faults.envs:PaysMuch-v0", algorithm={"capacity": 120, "batch": 32})
    with beside(made, outlier_sigma=sigma) as (bundle, block, _):
        for _ in range(123):
            bundle.cycle()
        before = block["dropped"][0].copy()
        worst = 0.0
        for _ in range(30):
            bundle.cycle()
            worst = max(worst, bundle._metrics["loss"])
        dropped = (block["dropped"][0] - before)[bundle_state.DROPPED.index("outlier")]
    assert worst > 50.0, "the sample was drawn"
    assert (dropped > 0) == (sigma > 0)


# ------------------------------------------------------------------------------------------------ whole runs


def run(env="gymnax:CartPole-v1", steps=400, saved=None, observer=None, **runtime):
    settings = {**SMALL, "runtime": {"bundles": 1, "shards": 1, "report_s": 0.01, **runtime}}
    experiment.cache()
    built = experiment.build(presets.resolve(presets.Request("gorila", env, 400, settings=settings))[0])
    observer = observer or Observer()
    return built.runtime.run(built.parts, 0, steps, None, observer, saved), observer


class Saves(Observer):
    """Takes a checkpoint at the first report after `at` steps."""

    saved = None

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __call__(self, progress):
        if self.saved is None and progress.env_steps >= self.at:
            self.saved = jax.tree.map(np.array, progress.save())
        return super().__call__(progress)


@pytest.mark.parametrize("n_fetch", [1, 10])  # a tenth of the checkpoints lies where parameters are fetched anyway
def test_a_run_continued_from_a_checkpoint_reaches_the_same_bits(n_fetch):
    """One bundle on a pure-JAX environment: parameters, statistics, target, schedules, memory and random streams."""
    whole, observer = run(steps=1200, observer=Saves(300), n_fetch=n_fetch)
    at = int(observer.saved["steps"].sum())
    assert 300 <= at < 1200, "it was saved on the way"
    assert observer.saved["kept"].tolist() == [1]
    assert observer.saved["pushes"] == observer.saved["updates"].sum() > 0
    continued, _ = run(steps=1200, saved=observer.saved, n_fetch=n_fetch)
    assert continued.final.updates == whole.final.updates
    assert tree.sha256(continued.policy) == tree.sha256(whole.policy)


class Begun(Exception):
    """Its processes would start now."""


def test_a_loaded_checkpoint_is_freed_once_it_was_copied(monkeypatch, tmp_path):
    request = presets.Request("gorila", "gymnax:CartPole-v1", 400, settings={**SMALL, "runtime": {"bundles": 2}})
    made, folder, loaded = presets.resolve(request)[0], tmp_path / "run", []
    built = experiment.build(made)
    folder.mkdir()
    run_folder.write_config(folder, made, "shoal train gorila")
    about = {"config_sha256": run_folder.digest(made), "updates": 0, "env_steps": 4}
    checkpoint.save(folder / "checkpoints", 4, built.runtime.like(built.parts, made.seed), about)
    restore = serving.Run.restore

    def restores(run, saved):
        loaded.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(saved["bundles"]))
        restore(run, saved)

    def begins(*_):
        raise Begun

    monkeypatch.setattr(serving.Run, "restore", restores)
    monkeypatch.setattr(serving.Run, "train", begins)
    with pytest.raises(Begun) as stopped:
        training.resume(folder)
    assert stopped.type is Begun
    assert loaded
    assert not [one for one in loaded if one() is not None]


def test_memories_of_processes_are_counted_on_the_host(monkeypatch):
    """An accelerator's memory is neither what bundles take nor what limits them."""
    request = presets.Request("gorila", "gymnax:CartPole-v1", 400, settings={"runtime": {"bundles": 3}})
    made, opened = presets.resolve(request)
    agent = experiment.build(made, opened).parts.agent
    needed = budget.Need(100 * budget.MB, {"steps": 10, "bytes": 90 * budget.MB})
    monkeypatch.setattr(budget, "available", lambda: 1 * budget.MB)
    monkeypatch.setattr(budget, "on_host", lambda: 600 * budget.MB)
    assert "270 MB in all" in training.checked(made, agent, needed, 1)
    monkeypatch.setattr(budget, "on_host", lambda: 599 * budget.MB)
    with pytest.raises(errors.Refused, match=r"600 MB.*599 MB.*fewer bundles"):
        training.checked(made, agent, needed, 1)


class Still:
    """Stands for a crew whose second bundle is late; `turn` is what shards do between two looks of the parent."""

    def __init__(self, turn=lambda: None, late=False):
        self._turn, self._late = turn, late

    def hold(self):
        return np.array([True, not self._late])

    def look(self, seconds):
        del seconds
        self._turn()


def test_a_late_bundles_area_is_in_no_checkpoint(cartpole):
    """It may be written at any moment; the other's is a view."""
    run = serving.Run(parameter_server.Config(bundles=2, max_lag=0), cartpole, 0, 100, None)
    run._crew = Still(late=True)
    run._areas[0][".key"][:] = run._areas[1][".key"][:] = 3
    run._block["kept"][:] = 1
    saved = run.save()
    run._block["kept"][1], run._areas[1][".key"][:] = 1, 7
    assert saved["kept"].tolist() == [1, 0]
    assert [bundle.key.tolist() for bundle in saved["bundles"]] == [[3, 3, 3], [0, 0, 0]]


def test_a_checkpoint_holds_every_push_that_was_let_in(cartpole):
    """Those of a late bundle too: they are applied everywhere before the parameters are copied."""
    run = serving.Run(parameter_server.Config(bundles=2, max_lag=0), cartpole, 0, 100, None)
    block = run._block
    block["tickets"][0] = 5
    block["theta"][:] = 0.0

    def turn():
        block["version"][0] += 1
        block["theta"][0] += 1.0

    run._crew = Still(turn)
    saved = run.save()
    assert (saved["pushes"], saved["theta"][0]) == (5, 5.0)


def test_two_bundles_and_two_shards_report_what_they_did(capsys, tmp_path):
    summary = faults.train(
        capsys, tmp_path / "run", "gorila", "--workers", 2, "--steps", 1500, "--algorithm.learning-starts", 200,
        "--network.hidden", 8, "--runtime.shards", 2, evaluate=1,
    )  # fmt: skip
    assert summary["runtime"] == "parameter_server"
    assert summary["workers"]["of"] == 2
    assert min(summary["workers"]["updates"]) > 0
    told = summary["server"]
    assert told["shards"] == len(told["updates"]) == 2
    assert told["updates"] == [summary["updates"]] * 2, "every shard applied every push"
    assert all(0 < share < 1 for share in told["utilisation"])
    assert all(microseconds > 1 for microseconds in told["update_us"])
    assert sum(told["offered_by_lag"].values()) == summary["updates"] + summary["faults"]["stale"]
    assert sum(summary["workers"]["lag_histogram"].values()) == summary["updates"]
    assert set(summary["faults"]) == {"restarts", "stale", "outlier", "non_finite"}
    assert summary["replay"]["steps"] == 50_000


def test_dead_processes_are_replaced_and_nothing_else_is_lost():
    class Kills(Observer):
        done, at = 0, 0

        def __call__(self, progress):
            if self.done < 2 and progress.updates > self.at + 20 and len(progress.workers["pids"]) == 2:
                bundle, shard = progress.workers["pids"]
                os.kill((shard, bundle)[self.done], signal.SIGKILL)
                self.done, self.at = self.done + 1, progress.updates
            return super().__call__(progress)

    result, observer = run("tests.faults.envs:Slow-v0", 1500, observer=Kills())
    final = result.final
    server = final.subsystems["server"]
    assert final.env_steps >= 1500
    assert (final.faults["restarts"], final.workers["restarts"], server["restarts"]) == (2, 1, 1)
    assert "shard 0 died (signal SIGKILL)" in observer.faults[0]
    assert "bundle 0 died (signal SIGKILL)" in observer.faults[1]
    assert final.updates > observer.at, "it learned on"
    assert server["updates"][0] + server["lost"] == final.updates, "every push but the one in hand"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("gorila", "--optimiser.rule", "adam"), ["optimiser.rule=adam", "adagrad and rmsprop"]),
        (("gorila", "--algorithm.updates", 2), ["several gradient steps", "algorithm.updates to 1"]),
        (("gorila", "--runtime.outlier-sigma", 0.5), ["outlier_sigma=0.5", "at least 1"]),
        (("gorila", "--runtime.n-fetch", 12), ["max_lag=10", "n_fetch=12", "at least 11", "lower n_fetch"]),
        (("gorila", "--runtime.shards", 0), ["runtime.shards=0", "between 1 and"]),
        (("gorila", "--workers", 0), ["runtime.bundles=0"]),
        (("gorila", "--algorithm.capacity", 10**10), ["memory", "capacity"]),
        (("sac", "--runtime", "parameter_server"), ["sac has several optimisers"]),
    ],
)
def test_what_cannot_work_is_refused(typed, words, capsys, tmp_path):
    ended = faults.call(capsys, "train", *typed, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert [word for word in words if word not in ended.err] == []
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_gorila_learns_cartpole(capsys, tmp_path):
    """The bar of 195 over 100 greedy episodes in at least 4 of 5 seeds, two bundles and three shards."""
    scores = [
        faults.train(capsys, tmp_path / str(seed), "gorila", "--workers", 2, "--seed", seed, evaluate=100)
        for seed in range(5)
    ]
    assert sum(score["eval_return_mean"] >= 195 for score in scores) >= 4, scores


@pytest.mark.slow
def test_it_learns_although_one_of_its_bundles_is_always_too_old(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(tmp_path / "once"))
    request = presets.Request("gorila", "tests.faults.envs:LagsOnCartPole-v0", 60_000, settings={})
    tuned = presets.PRESETS["gorila"].tuned["CartPole-v1"]
    built = experiment.build(presets.resolve(request._replace(settings=tuned.settings))[0])
    observer = Observer()
    result = built.runtime.run(built.parts, 0, 60_000, None, observer, None)
    assert result.final.faults["stale"] > 0
    assert result.final.workers["lag_max"] <= 10
    returns = [episode.episode_return for progress in observer.told for episode in progress.episodes]
    assert np.mean(returns[-100:]) >= 100, "most of a hundred greedy-but-for-2-percent episodes stay up"
