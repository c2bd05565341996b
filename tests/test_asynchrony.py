"""Asynchrony measured, limited, recorded and replayed."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pytest

from shoal import experiment
from shoal.command import cli
from shoal.core import errors, registry, tree
from shoal.core.types import Goal
from shoal.experiment import presets
from shoal.monitor import asynchrony
from shoal.runs import run_folder
from shoal.runtimes.crew import crew, sharing, turns
from shoal.runtimes.hogwild import sequential, shared_state, staleness, ticketing
from tests import faults

HOGWILD = registry.load("runtime", "hogwild")


# ------------------------------------------------------------------------------------------------ the record as data


def test_every_lag_has_its_bin():
    assert [asynchrony.place(lag) for lag in range(16)] == list(range(16))
    assert [asynchrony.LABELS[asynchrony.place(lag)] for lag in (16, 31, 32, 1023, 1024, 10**9)] == [
        "16-31", "16-31", "32-63", "512-1023", "1024+", "1024+",
    ]  # fmt: skip
    assert len(asynchrony.LABELS) == asynchrony.BINS
    counts = np.zeros(asynchrony.BINS, int)
    counts[[0, 2]] = 3, 1
    assert asynchrony.histogram(counts.tolist()) == {"0": 3, "1": 0, "2": 1}
    assert asynchrony.histogram([0] * asynchrony.BINS) == {}


def kept(record):
    marks = [asynchrony.Mark(2, "ab" * 32), asynchrony.Mark(5, "0" * 64)]
    return asynchrony.Kept(record, marks, {"versions": {"numpy": "1"}, "machine": {"cpu": "one"}})


def test_a_record_comes_back_whole_and_is_small(tmp_path):
    record = asynchrony.random(3, 20_000, seed=0)
    asynchrony.write(tmp_path, kept(record))
    found = asynchrony.read(tmp_path)
    for ours, theirs in zip(found.record, record, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (found.marks, found.about["versions"]) == (kept(record).marks, {"numpy": "1"})
    assert (tmp_path / asynchrony.FILE).stat().st_size <= 24 * record.tickets
    assert [path.name for path in tmp_path.iterdir()] == [asynchrony.FILE], "nothing temporary is left"
    asynchrony.write(tmp_path, kept(record.first(0))._replace(marks=[]))
    assert asynchrony.read(tmp_path).record.tickets == 0


def test_a_record_that_is_missing_damaged_or_senseless_is_refused(tmp_path):
    with pytest.raises(errors.Refused, match="--replayable"):
        asynchrony.read(tmp_path)
    record = asynchrony.round_robin(2, 50)
    path = tmp_path / asynchrony.FILE
    asynchrony.write(tmp_path, kept(record))
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(errors.Refused, match="cannot be read"):
        asynchrony.read(tmp_path)
    np.savez(path, worker=np.array([{}], object))
    with pytest.raises(errors.Refused, match="cannot be read"):
        asynchrony.read(tmp_path)
    asynchrony.write(tmp_path, kept(record._replace(read=record.read + 1)))  # of tickets that were still to come
    with pytest.raises(errors.Refused, match="do not fit together"):
        asynchrony.read(tmp_path)


def test_made_up_records_have_the_lags_asked_for():
    turns = asynchrony.round_robin(4, 100)
    assert (np.arange(100) - turns.read)[4:].tolist() == [3] * 96
    assert turns.worker[:5].tolist() == [0, 1, 2, 3, 0]
    assert (np.arange(100) - asynchrony.round_robin(4, 100, lag=7).read)[8:].tolist() == [7] * 92
    chance = asynchrony.random(4, 1000, seed=1)
    assert np.bincount(chance.worker).min() > 200
    for worker in range(4):  # it reads right after it has applied
        own = np.flatnonzero(chance.worker == worker)
        assert chance.read[own].tolist() == [0, *(own[:-1] + 1)]
    assert (asynchrony.random(1, 50, seed=1).read == np.arange(50)).all(), "alone nobody is late"


# ------------------------------------------------------------------------------------------------ limits and overlaps


@pytest.mark.parametrize(("workers", "limit"), [(2, 1), (3, 2), (4, 3), (4, 5), (8, 7)])
def test_waiting_bounds_every_lag_and_somebody_can_always_go_on(workers, limit):
    chance = np.random.default_rng(workers * 100 + limit)
    policy = staleness.Policy(limit, waits=True)
    reading, version, most = np.full(workers, staleness.IDLE), 0, 0
    for _ in range(2000):
        idle = np.flatnonzero(reading == staleness.IDLE)
        ready = [w for w in np.flatnonzero(reading != staleness.IDLE) if policy.lets_in(reading, version, w)]
        assert ready or len(idle), "all wait for each other"
        who = chance.choice([*idle, *ready])
        if who in idle:
            reading[who] = version
        else:
            most, version = max(most, version - reading[who]), version + 1
            reading[who] = staleness.IDLE
    assert most == limit, "the limit is reached, and never passed"


def test_a_worker_that_has_gone_is_not_waited_for():
    policy = staleness.Policy(2, waits=True)
    reading = np.array([5, 1, staleness.IDLE])
    assert not policy.lets_in(reading, 5, 0)
    reading[1] = staleness.IDLE  # as the parent leaves it when the worker dies
    assert policy.lets_in(reading, 5, 0)


def test_applies_that_meet_are_seen_and_others_are_not():
    shared = {name: np.zeros(2, np.int64) for name in ("applying", "overlapped", "contended")}
    shared["theta"] = np.zeros(64, np.float32)
    watches, step = [staleness.Watch(shared, worker) for worker in range(2)], np.full(64, 0.5, np.float32)

    def apply(worker, between=lambda: None):
        watches[worker].begin()
        between()
        shared["theta"] -= step
        watches[worker].end(step)

    apply(0)
    apply(1)
    assert shared["overlapped"].tolist() == shared["contended"].tolist() == [0, 0], "one after the other"
    apply(0, lambda: apply(1))  # all of it inside
    assert shared["overlapped"].tolist() == [1, 1]
    assert shared["contended"].tolist() == [staleness.SAMPLE, 0], "the second saw the first write nothing"

    def overwrite():  # the first reads before the second writes, and writes after it
        seen = shared["theta"].copy()
        apply(1)
        shared["theta"][:] = seen

    apply(0, overwrite)
    assert shared["overlapped"].tolist() == [2, 2]


def test_a_ticket_that_was_not_finished_never_happened():
    state = {"theta": ((5,), "f4"), "tickets": ((1,), "i8")}
    block = sharing.Block({**state, **ticketing.layout(state, 10)})
    dead, alive = (ticketing.Tickets(block, len(state)) for _ in range(2))
    with dead:
        dead.begin()
        block["theta"][:] = 1.0
        dead.finish(0, 0, 0, 5, asynchrony.APPLIED)
    with dead:  # killed in the middle
        dead.begin()
        block["theta"][2:] = 7.0
        block["tickets"][0] += 1
    with alive:
        assert block["theta"].tolist() == [1.0] * 5
        assert block["tickets"][0] == 1
    assert alive.record(0).worker.tolist() == [0]


# ------------------------------------------------------------------------------------------------ the executor


def built(env="CartPole-v1", preset="a3c", workers=2, **runtime):
    settings = {"runtime": {"workers": workers, **runtime}, "network": {"hidden": (8,)}}
    settings |= {"algorithm": {"rollout_length": 5}}
    made = presets.resolve(presets.Request(preset, env, 10_000, settings=settings))[0]
    experiment.cache()
    return made, experiment.build(made)


def sequence(made, parts):
    return HOGWILD.replayer(made.configs["runtime"], parts, made.seed)


def ends(steps, record, **how):
    """(parameters' digest, what became of each gradient, state) after a record."""
    steps.begin()
    flags = [done.flag for done in steps.run(record, **how)]
    return tree.sha256(steps.params()), flags, steps.state


@pytest.fixture(scope="module")
def logical():
    """Two logical workers, and no limit of their lag."""
    made, found = built()
    return sequence(made, found.parts)


@pytest.fixture(scope="module")
def limited():
    """The same with a limit."""
    made, found = built(max_lag=2)
    return sequence(made, found.parts)


def changed(record, name, at, value):
    column = getattr(record, name).copy()
    column[at] = value
    return record._replace(**{name: column})


def test_the_same_record_gives_the_same_bits_and_one_entry_changes_them(logical):
    record = asynchrony.random(2, 40, seed=3)
    reference, flags, state = ends(logical, record)
    assert flags == [asynchrony.APPLIED] * 40
    assert state["lags"].sum() == state["updates"].sum() == 40
    assert ends(logical, record)[0] == reference
    swapped = changed(record, "worker", 20, 1 - record.worker[20])
    for other in (
        swapped,
        changed(record, "read", 20, record.read[20] - 1),
        changed(record, "flag", 20, asynchrony.STALE),
        changed(record, "incarnation", 20, 1),
        record.first(39),
    ):
        assert ends(logical, other)[0] != reference


def test_a_gradient_that_is_dropped_leaves_the_parameters_as_they_were(limited):
    record, steps = asynchrony.round_robin(2, 12, lag=5), limited
    before, dropped = steps.state["theta"].copy(), 0
    for done in steps.run(record, judge=True):
        if done.flag == asynchrony.STALE:
            dropped += 1
            np.testing.assert_array_equal(steps.state["theta"], before)
        before = steps.state["theta"].copy()
    state = steps.state
    assert dropped == state["stale"].sum() > 0
    assert state["updates"].sum() == state["lags"].sum() == 12 - dropped > 3
    assert state["steps"].sum() == 12 * 5, "they were taken all the same"
    assert state["lag_max"].max() <= 2


@pytest.fixture(scope="module")
def private():
    """Two logical workers with a target network and statistics of their own."""
    made, found = built(preset="async_q", statistics="worker")
    return sequence(made, found.parts)


def test_everything_an_apply_writes_is_what_a_run_journals(private):
    private.begin()
    before = {name: value.copy() for name, value in private.state.items()}
    assert {*shared_state.SEEN} <= {*before} == {*shared_state.layout(shared_state.Sizes(1), 1)}
    assert len(list(private.run(asynchrony.round_robin(2, 6)))) == 6
    moved = {name for name, value in private.state.items() if not np.array_equal(value, before[name])}
    assert {"theta", "g", "steps", "updates", "tickets", "lags"} <= moved
    assert private.state["g"].shape == (2, len(before["theta"]))


@pytest.mark.parametrize(("incarnation", "zero"), [(1, True), (crew.LIVES, False)])
def test_a_restarted_worker_begins_with_statistics_at_zero_and_a_resumed_one_keeps_them(private, incarnation, zero):
    record = changed(asynchrony.round_robin(2, 5), "incarnation", 4, incarnation)
    _, _, state = ends(private, record)
    learner = private._learners[0][1].learners[0]
    squares = np.float32(1.0 - 0.99) * learner.out[: len(state["theta"])] ** 2  # of the first gradient alone
    assert np.allclose(state["g"][0], squares, rtol=1e-5, atol=0.0) == zero


# ------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def died(tmp_path_factory):
    """A replayable run of two workers, of which one was killed and restarted, with checkpoints on the way."""
    folder = tmp_path_factory.mktemp("died") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_TEST_ONCE", str(folder.parent / "once"))
        patch.setenv("SHOAL_SAVE_EVERY", "0")
        typed = (
            "train", "a3c", "--env", "tests.faults.envs:DiesAtWork-v0", "--workers", 2, "--steps", 2500, "--replayable",
            "--network.hidden", 8, "--runtime.max-lag", 1, "--eval-episodes", 0, "--out", folder, "--quiet",
        )  # fmt: skip
        assert cli.main([str(word) for word in typed]) == 0
    return folder


def reached(folder, record=None):
    made = run_folder.unedited(folder, run_folder.read_config(folder))
    record = asynchrony.read(folder).record if record is None else record
    return ends(sequence(made, experiment.build(made).parts), record)


def test_a_run_in_which_a_worker_was_killed_is_replayed_to_the_same_bits(died, capsys, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(died.parent / "once"))  # it has died already
    summary, found = faults.summary(died), asynchrony.read(died)
    assert (summary["status"], summary["faults"]["restarts"]) == ("completed", 1)
    assert {0, 1} == {*found.record.incarnation.tolist()}
    assert len(found.marks) >= 2, "checkpoints on the way"
    digest, flags, state = reached(died)
    assert digest == summary["params_sha256"]
    assert flags == found.record.flag.tolist()
    assert state["steps"].tolist() == summary["workers"]["env_steps"]
    ended = faults.call(capsys, "replay", died, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["equal"]
    assert ended.json["compared"] == len({mark.tickets for mark in found.marks})
    assert ended.json["params_sha256"] == summary["params_sha256"]
    assert ended.json["tickets"] == found.record.tickets


def test_a_record_that_cannot_be_written_leaves_a_run_that_can_be_resumed(tmp_path, capsys, monkeypatch):
    """A checkpoint beyond its record could not be: it is not written either."""
    out, write, calls = tmp_path / "run", asynchrony.write, []

    def full(*given):
        calls.append(given)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        write(*given)

    monkeypatch.setenv("SHOAL_SAVE_EVERY", "0")
    monkeypatch.setattr(asynchrony, "write", full)
    words = ("--env", "tests.faults.envs:Slow-v0", "--workers", 2, "--replayable", "--network.hidden", 8)
    ended = faults.call(capsys, "train", "a3c", *words, "--steps", 1000, "--eval-episodes", 0, "--out", out, "--json")
    assert len(calls) > 2
    assert "asynchrony.npz could not be written" in ended.err
    monkeypatch.setattr(asynchrony, "write", write)
    (out / "summary.json").unlink()  # as if it had been killed at its end
    (out / asynchrony.FILE).rename(tmp_path / "lost")
    refused = faults.call(capsys, "resume", out, "--quiet")
    assert (refused.code, refused.err.count("\n"), asynchrony.FILE in refused.err) == (2, 1, True), refused.err
    assert not (out / "summary.json").exists(), "once it is restored, the run goes on"
    (tmp_path / "lost").rename(out / asynchrony.FILE)
    resumed = faults.call(capsys, "resume", out, "--eval-episodes", 0, "--quiet", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["status"] == "completed"
    assert faults.call(capsys, "replay", out, "--json").json["equal"]


def test_workers_that_see_pictures_are_replayed_with_their_target_network(tmp_path, capsys):
    """Bytes between the float32 words of a worker, Sarsa's step that waits for its action, several target copies."""
    pytest.importorskip("ale_py")
    out = tmp_path / "run"
    summary = faults.train(
        capsys, out, "async_sarsa", "--env", "ALE/Pong-v5", "--environment.time-limit", 40, "--workers", 2, "--steps",
        300, "--replayable", "--algorithm.target-period", 60, "--algorithm.rollout-length", 10,
    )  # fmt: skip
    assert summary["workers"]["of"] == 2
    assert min(summary["workers"]["updates"]) > 0
    replayed = faults.call(capsys, "replay", out, "--json").json
    assert replayed["equal"]
    assert replayed["params_sha256"] == summary["params_sha256"]


def test_decisions_of_a_compiled_network_are_replayed_to_the_same_bits(tmp_path, capsys):
    """Small networks decide in NumPy; an LSTM in one jitted call a step, which workers rehearse before they start.

    In a process with one thread, as workers are: products along a segment are summed in another order by several.
    """
    folder = tmp_path / "run"
    typed = (
        "train", "a3c", "--env", "CartPole-v1", "--workers", 2, "--steps", 400, "--replayable", "--network.hidden", 8,
        "--network.lstm", 4, "--algorithm.normalise-observations", "--eval-episodes", 0, "--out", folder,
        "--quiet",
    )  # fmt: skip
    assert cli.main([str(word) for word in typed]) == 0
    replayed = faults.call(capsys, "replay", folder, "--json").json
    assert replayed["equal"]
    assert replayed["params_sha256"] == faults.summary(folder)["params_sha256"]
    assert set(asynchrony.read(folder).record.flag.tolist()) == {asynchrony.APPLIED}


def test_what_was_measured_adds_up(died):
    summary, found = faults.summary(died), asynchrony.read(died)
    workers, dropped = summary["workers"], summary["faults"]["stale"]
    assert sum(workers["lag_histogram"].values()) == summary["updates"]
    assert workers["lag_max"] <= 1
    assert np.bincount(found.record.flag, minlength=2).tolist() == [summary["updates"], dropped]
    assert workers["overlapped"] == workers["contended_share"] == 0, "one at a time"
    assert found.record.steps.sum() == summary["env_steps"]
    last = faults.metrics(died)[-1]
    assert (last["lag_max"], last["stale"]) == (workers["lag_max"], dropped)


@pytest.fixture
def at_once(monkeypatch):
    """Replays in this process: what another one would tell is told at once."""

    monkeypatch.setattr(sequential, "apart", functools.partial(sequential.apart, form=turns.Turns))


@pytest.mark.usefixtures("at_once")
def test_another_order_is_told_by_the_first_checkpoint_that_differs(died, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(died.parent / "once"))
    copy = shutil.copytree(died, tmp_path / "run")
    found = asynchrony.read(copy)
    marks = [mark._replace(sha256="0" * 64) if i == 0 else mark for i, mark in enumerate(found.marks)]
    asynchrony.write(copy, found._replace(marks=marks, about={**found.about, "versions": {"jax": "0.0.1"}}))
    ended = faults.call(capsys, "replay", copy, "--json")
    assert ended.code == 1, ended.err
    assert (ended.json["equal"], ended.json["first_difference"]) == (False, marks[0].tickets)
    assert ended.json["same_machine"] is False
    assert "jax version was 0.0.1" in ended.err
    applied, read = found.record.flag == asynchrony.APPLIED, found.record.read
    # The state it read differs from the one before; not among the last, whose steps are too small to be sure of a bit.
    behind = np.flatnonzero(applied & (read > 0) & applied[read - 1])
    early = behind[len(behind) // 4]
    other = changed(found.record, "read", early, read[early] - 1)
    assert reached(copy, other)[0] != faults.summary(died)["params_sha256"]


def test_waiting_for_a_worker_that_dies_ends_and_racing_cannot_be_replayed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(tmp_path / "once"))
    out = tmp_path / "run"
    summary = faults.train(
        capsys, out, "a3c", "--env", "tests.faults.envs:DiesAtWork-v0", "--workers", 2, "--steps", 2500,
        "--network.hidden", 8, "--runtime.max-lag", 1, "--runtime.on-stale", "block",
    )  # fmt: skip
    assert (summary["status"], summary["faults"]["restarts"], summary["faults"]["stale"]) == ("completed", 1, 0)
    assert summary["workers"]["lag_max"] <= 1
    assert sum(summary["workers"]["lag_histogram"].values()) == summary["updates"]
    assert min(summary["workers"]["updates"]) > 0
    assert summary["split"]["waiting"] > 0
    ended = faults.call(capsys, "replay", out)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "without locks" in ended.err
    assert "--replayable" in ended.err


@pytest.mark.parametrize(
    ("preset", "runtime", "words"),
    [
        ("gorila", {"bundles": 2}, ["raced under parameter_server", "only hogwild", "trained with --workers 1 "]),
        ("gorila", {"bundles": 1}, ["where no workers race", "with its seed"]),
        ("parallel_sarsa", {"scheme": "asynchronous"}, ["raced under peers", "only hogwild", "--runtime.no-spawn "]),
        ("parallel_sarsa", {"scheme": "asynchronous", "spawn": False}, ["where no workers race", "with its seed"]),
        ("parallel_sarsa", {"scheme": "average"}, ["where no workers race", "with its seed"]),
        ("a2c", {}, ["ran under", "where no workers race", "with its seed"]),
    ],
)
def test_the_run_of_another_runtime_is_not_replayed_and_the_reason_is_its_own(preset, runtime, words, tmp_path, capsys):
    made = presets.resolve(presets.Request(preset, settings={"runtime": runtime}))[0]
    run_folder.write_config(tmp_path, made, f"shoal train {preset}")
    ended = faults.call(capsys, "replay", tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert all(word in ended.err for word in words), ended.err


def test_what_cannot_be_replayable_is_refused(capsys, tmp_path):
    for typed, words in (
        (("--env", "tests.faults.envs:Forgetful-v0", "--replayable"), ("Forgetful-v0", "check-env")),
        (("--workers", 4, "--runtime.max-lag", 2, "--runtime.on-stale", "block"), ("max_lag=2", "at least 3")),
        (("--runtime.max-lag", -1), ("max_lag=-1", "at least 0")),
        (("--env", "gymnax:CartPole-v1", "--runtime", "on_device", "--replayable"), ("--replayable", "hogwild")),
    ):
        ended = faults.call(capsys, "train", "a3c", *typed, "--out", tmp_path / "run")
        assert ended.code == 2, ended.err
        assert ended.err.count("\n") == 1
        assert all(word in ended.err for word in words), ended.err
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_goes_on_with_its_window_of_episodes_and_its_counts():
    made, found = built(env="probe:constant", preset="async_q")

    class Observer:
        def __init__(self, until):
            self.until = until

        def __call__(self, progress):
            return progress.stage is not None or progress.env_steps < self.until

        def fault(self, kind, message):
            raise AssertionError(f"{kind}\n{message}")

    def life(steps, goal, saved):
        return found.runtime.run(found.parts, made.seed, steps, goal, Observer(steps), saved).final

    first = life(400, None, None)
    saved = first.save()
    assert (saved["ended_at"] > 0).sum(axis=1).tolist() == np.minimum(saved["episodes"], 100).tolist()
    again = life(first.env_steps, Goal(1e9), saved).save()  # nothing is left to do
    for name in ("overlapped", "contended", "episodes", "returns", "ended_at"):
        assert again[name].tolist() == saved[name].tolist()
    met = life(10**6, Goal(1.0), saved)
    assert met.solved_at is not None
    assert met.solved_at <= first.env_steps + 50, "a goal all but met takes a few episodes, not a whole window"


def test_a_resumed_run_is_replayed_over_both_lives(tmp_path):
    made, found = built(env="probe:constant", preset="async_q", workers=1, replayable=True, statistics="worker")
    runtime, told = found.runtime, []

    class Observer:
        def __init__(self, until):
            self.until = until

        def __call__(self, progress):
            told.append(progress)
            return progress.env_steps < self.until

        def fault(self, kind, message):
            raise AssertionError(f"{kind}\n{message}")

    first = runtime.run(found.parts, made.seed, 10**6, None, Observer(500), None)
    saved = first.final.save()
    journal = first.final.artefacts[asynchrony.FILE]
    record, marks = journal.added()
    assert marks[-1].tickets == record.tickets == saved["tickets"][0]
    second = runtime.run(found.parts, made.seed, first.final.env_steps + 300, None, Observer(10**9), saved)
    both = asynchrony.joined(record, second.final.artefacts[asynchrony.FILE].added()[0])
    assert len({*both.incarnation.tolist()}) == 2
    steps = sequence(made, found.parts)
    digests = {done.ticket: tree.sha256(steps.params()) for done in steps.run(both)}
    assert digests[marks[-1].tickets] == marks[-1].sha256 == tree.sha256(first.policy.params)
    assert digests[both.tickets] == tree.sha256(second.policy.params)
    # What was recorded after the checkpoint that a life began with never happened.
    about = {"versions": {}, "machine": {}}
    asynchrony.write(tmp_path, asynchrony.Kept(both, [*marks, asynchrony.Mark(both.tickets, "0" * 64)], about))
    known = asynchrony.cut(tmp_path, record.tickets)
    assert (known.record.tickets, known.marks) == (record.tickets, list(marks))
    with pytest.raises(errors.Refused, match="restore it"):
        asynchrony.cut(tmp_path, both.tickets + 1)
    later = second.final.artefacts[asynchrony.FILE]
    second.final.save()
    later.take_up(tmp_path, {"tickets": record.tickets})
    assert later.write(tmp_path, about) == {"tickets": both.tickets}
    assert asynchrony.read(tmp_path).record.read.tolist() == both.read.tolist()


def test_summaries_without_an_order_are_not_disturbed(tmp_path, capsys):
    """A run that lacks its record, or was killed before its first checkpoint, is refused with the reason."""
    made = presets.resolve(presets.Request("a3c", settings={"runtime": {"replayable": True}}))[0]
    run_folder.write_config(tmp_path, made, "shoal train a3c --replayable")
    ended = faults.call(capsys, "replay", tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert asynchrony.FILE in ended.err
    asynchrony.write(tmp_path, asynchrony.Kept(asynchrony.round_robin(2, 5), [], {"versions": {}, "machine": {}}))
    assert "no checkpoint" in faults.call(capsys, "replay", tmp_path).err
    asynchrony.write(tmp_path, kept(asynchrony.round_robin(3, 9)))
    assert "names worker 2" in faults.call(capsys, "replay", tmp_path).err
    record = asynchrony.round_robin(2, 9)
    record.read[5] = -1
    asynchrony.write(tmp_path, kept(record))
    ended = faults.call(capsys, "replay", tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "do not fit together" in ended.err
    config = json.loads((tmp_path / "config.json").read_text())
    config["seed"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "edited" in faults.call(capsys, "replay", tmp_path).err
