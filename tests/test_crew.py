"""Both forms of a crew: what a parent can rely on whatever the workers do; and runtimes taking turns."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import numpy as np
import pytest

import shoal
from shoal import experiment
from shoal.core import errors, tree, types
from shoal.experiment import presets
from shoal.runtimes.crew import crew, life, sharing, turns
from shoal.runtimes.hogwild import parent as hogwild
from shoal.runtimes.parameter_server import serving

FORMS = {"processes": crew.Processes, "turns": turns.Turns}
EVERY = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
LONG = 60.0  # seconds in which whatever is waited for has happened


class Job(NamedTuple):
    block: sharing.Block
    worker: int
    incarnation: int
    turns: int
    breaks_at: int = -1  # the turn in which the first incarnation raises


def block(workers):
    return sharing.Block({"done": ((workers,), "i8"), "kept": ((workers,), "i8"), "stuck": ((1,), "i4")})


class Counts(life.Worker):
    """Counts its turns; waits for worker 0 where that is stuck."""

    def __init__(self, job, parent):
        self.job, self.parent, self.told = job, parent, 0

    @property
    def over(self):
        return self.parent.stopped or int(self.job.block["done"][self.job.worker]) >= self.job.turns

    def turn(self):
        done, me = self.job.block["done"], self.job.worker
        if self.job.block["stuck"][0] and me:
            return False
        if self.job.incarnation == 0 and int(done[me]) == self.job.breaks_at:
            raise ValueError("the worker broke")
        done[me] += 1
        return True

    def report(self):
        done, me = int(self.job.block["done"][self.job.worker]), self.job.worker
        ended, self.told = range(self.told, done), done
        return [types.Episode(i, float(i), 1, me) for i in ended], {"done": float(done)}

    def keep(self):
        self.job.block["kept"][self.job.worker] = self.job.block["done"][self.job.worker]


class Answers(life.Worker):
    """Doubles what it is sent; the worker that is sent 13 dies of it once."""

    def __init__(self, job, parent):
        self.job, self.parent, self.ended = job, parent, False

    @property
    def over(self):
        return self.ended

    def turn(self):
        asked = self.parent.next()
        if asked is None:
            self.ended = self.parent.stopped
            return False
        if asked == 13 and self.job.incarnation == 0:
            raise ValueError("unlucky")
        self.parent.tell((self.job.incarnation, 2 * asked))
        return True


def counting(shared, workers, steps, **more):
    def job(worker, incarnation):
        return Job(shared, worker, incarnation, steps, **more)

    return life.Role(name="counter", workers=workers, open=Counts, job=job, holds=True, report_s=0.01)


def no_fault(kind, story):
    raise AssertionError(f"{kind}\n{story}")


def to_the_end(team, role):
    told, until = [], time.monotonic() + LONG
    while not team.finished(role):
        assert time.monotonic() < until
        told.append(team.gather())
    return told


@EVERY
def test_all_begin_report_and_end(form):
    shared = block(2)
    with form([counting(shared, 2, 50)], no_fault) as team:
        assert team.begin(lambda: True)
        told = to_the_end(team, "counter")
        about = team.about("counter")
    episodes = [episode for each in told for episode in each.episodes]
    assert sorted((e.worker, e.env_steps) for e in episodes) == [(w, i) for w in range(2) for i in range(50)]
    assert all(each.episodes == sorted(each.episodes, key=lambda e: e.env_steps) for each in told)
    assert next(each.metrics for each in reversed(told) if each.metrics) == {"done": 50.0}
    assert (about["of"], about["restarts"]) == (2, 0)
    assert shared["done"].tolist() == [50, 50]


@EVERY
def test_nobody_begins_before_the_last_is_ready_and_a_no_ends_the_wait(form):
    shared = block(2)
    with form([counting(shared, 2, 50)], no_fault) as team:
        assert not team.begin(lambda: False)
        team.stop("counter")
        to_the_end(team, "counter")
    assert shared["done"].sum() < 100


@EVERY
def test_one_that_raises_is_told_and_replaced(form):
    shared, faults = block(2), []
    with form([counting(shared, 2, 20, breaks_at=7)], lambda *fault: faults.append(fault)) as team:
        team.begin(lambda: True)
        to_the_end(team, "counter")
        assert team.about("counter")["restarts"] == len(faults) == 2
    assert shared["done"].tolist() == [20, 20]
    assert all("counter" in kind and "the worker broke" in story for kind, story in faults)


@EVERY
def test_a_crash_loop_ends_with_the_traceback(form):
    shared = block(1)
    role = counting(shared, 1, 20)._replace(open=Breaks)
    with pytest.raises(errors.GaveUp, match="never opens"):
        worked(form, role)


def worked(form, role):
    with form([role], lambda *_: None) as team:
        team.begin(lambda: True)
        to_the_end(team, role.name)


class Breaks(Counts):
    def __init__(self, *_):
        raise ValueError("it never opens")


@EVERY
def test_held_still_nothing_moves_until_they_are_let_go(form):
    shared = block(2)
    with form([counting(shared, 2, 10**9)], no_fault) as team:
        team.begin(lambda: True)
        team.gather()
        assert team.hold().tolist() == [True, True]
        before = shared["done"].copy()
        team.look(0.05)
        assert shared["done"].tolist() == before.tolist() == shared["kept"].tolist()
        team.release()
        until = time.monotonic() + LONG
        while not (shared["done"] > before).all():
            assert time.monotonic() < until
            team.look(0.05)
        team.stop("counter")
        to_the_end(team, "counter")


@EVERY
def test_those_that_serve_answer_and_are_asked_again_when_they_died(form):
    shared, faults = block(2), []
    role = life.Role(
        name="answerer", workers=2, open=Answers, together=False, serves=True,
        job=lambda worker, incarnation: Job(shared, worker, incarnation, 0),
    )  # fmt: skip
    with form([role], lambda *fault: faults.append(fault)) as team:
        team.begin(lambda: True)
        team.send("answerer", 1, 4)
        assert answer(team) == (1, (0, 8))
        team.send("answerer", 0, 13)
        until = time.monotonic() + LONG
        while not faults:
            assert time.monotonic() < until
            team.gather()
        while team.about("answerer")["up"] < 2:
            team.gather()
        team.send("answerer", 0, 5)
        assert answer(team) == (0, (1, 10))
    assert len(faults) == 1


def answer(team):
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        for role, worker, _, message in team.gather().said:
            team.answered(role, worker)
            return worker, message
    raise AssertionError("nobody answered")


class Sleeps(Counts):
    """Worker 0 does not come to the end of a turn."""

    def turn(self):
        if not self.job.worker:
            self.job.block["stuck"][0] = 1
            time.sleep(LONG)
        return super().turn()


def test_one_that_is_late_is_told_apart(monkeypatch):
    monkeypatch.setattr(crew, "STILL", 2.0)
    shared = block(2)
    team = crew.Processes([counting(shared, 2, 10**9)._replace(open=Sleeps)], no_fault)
    try:
        team.begin(lambda: True)
        while not shared["stuck"][0]:
            team.look(0.01)
        assert team.hold().tolist() == [False, True]
    finally:
        team.__exit__(KeyboardInterrupt)  # as on an exception: without much patience for the sleeper


def progress(episodes):
    return types.Progress(
        env_steps=0, updates=0, train_s=0.0, episodes=episodes, metrics={}, split={}, workers={}, faults={}, save=dict
    )


@EVERY
def test_who_looks_on_is_told_how_many_are_ready_and_may_end_it_before_they_begin(form):
    shared, stages = block(2), []

    def observe(told):
        stages.append(told.stage)
        return told.stage.done < 2

    with form([counting(shared, 2, 10**9)], no_fault) as team, pytest.raises(errors.NotBegun):
        crew.Watch(team, "counter", observe).run(time.monotonic(), progress)
    assert {(stage.doing, stage.of) for stage in stages} == {("starting 2 counters", 2)}
    assert [stage.done for stage in stages] == sorted(stage.done for stage in stages)
    assert stages[-1].done == 2


def test_those_that_open_in_silence_are_not_waited_for_by_who_ends():
    """At the start, and in the place of one that died: what they import and compile keeps them from hearing words."""
    shared = block(2)
    began = time.monotonic()
    with crew.Processes([counting(shared, 2, 10**9)._replace(open=OpensLate)], no_fault) as team:
        assert not team.begin(lambda: not team.about("counter")["pids"])
    assert time.monotonic() - began < SILENT / 2
    faults = []
    with crew.Processes([counting(shared, 2, 10**9, breaks_at=5)], lambda *fault: faults.append(fault)) as team:
        team.begin(lambda: True)
        team._pools["counter"]._arguments = late(team._pools["counter"]._arguments)
        until = time.monotonic() + LONG
        while not (faults and team.about("counter")["up"] == 2 and team.incarnation("counter", 0) == 1):
            assert time.monotonic() < until
            team.gather()
        began = time.monotonic()
        team.stop("counter")
        to_the_end(team, "counter")
    assert time.monotonic() - began < SILENT / 2


SILENT = 20.0  # seconds


class OpensLate(Counts):
    def __init__(self, job, parent):
        time.sleep(SILENT)
        super().__init__(job, parent)


def late(arguments):
    """What a worker is told, but that it opens late."""

    def changed(worker, incarnation):
        seat, job = arguments(worker, incarnation)
        return seat._replace(open=OpensLate), job

    return changed


def test_nothing_moves_until_the_observer_is_back_from_a_checkpoint():
    shared, seen = block(2), []

    def observe(_):
        if not watch.train_s:  # they open still
            return True
        seen.append(shared["done"].sum())
        if len(seen) == 5:
            team.hold()
            before = shared["done"].copy()
            time.sleep(0.05)
            assert shared["done"].tolist() == before.tolist() == shared["kept"].tolist()
        return len(seen) < 8

    with crew.Processes([counting(shared, 2, 10**9)], no_fault) as team:
        watch = crew.Watch(team, "counter", observe)
        watch.run(time.monotonic(), progress)
    assert seen[-1] > seen[4], "and then they went on"
    assert watch.train_s > 0


def test_one_that_ends_while_a_checkpoint_is_taken_has_not_died():
    shared = block(2)
    with crew.Processes([counting(shared, 2, 2000)], no_fault) as team:
        team.begin(lambda: True)
        until = time.monotonic() + LONG
        while not team.finished("counter"):
            assert time.monotonic() < until
            assert team.hold().all()
            team.release()
        assert sum(len(told.episodes) for told in (team.gather(),)) == 4000, "what was told meanwhile is not lost"


def test_a_worker_whose_parent_died_does_not_wait_for_ever():
    class Link:
        sent, looks = [], 0

        def send(self, message):
            self.sent.append(message)

        def receive(self):
            return "go"

        def orphaned(self):
            self.looks += 1
            return self.looks > 5

    shared = block(2)
    shared["stuck"][0] = 1
    role = counting(shared, 2, 10)
    seat = life.Seat(life.Signals([role]).block, 0, 1, role.open, True, True, False, 0.1)
    link = Link()
    life.live(link, seat, role.job(1, 0))
    assert link.looks > 5
    assert shared["done"].sum() == 0


def test_whoever_waits_for_ever_in_turns_is_found_out():
    shared = block(2)
    shared["stuck"][0] = 1
    with turns.Turns([counting(shared, 2, 3)], no_fault) as team:
        team.begin(lambda: True)
        with pytest.raises(RuntimeError, match="each waits for another"):
            to_the_end(team, "counter")


def test_no_process_is_left_whatever_ends_the_block():
    pids = []

    def fails():
        with crew.Processes([counting(block(2), 2, 10**9)], no_fault) as team:
            team.begin(lambda: True)
            pids.extend(team.about("counter")["pids"])
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# ------------------------------------------------------------------------------------------------ runtimes in turns


def built(preset, **settings):
    request = presets.Request(preset, "CartPole-v1", 600, settings={"network": {"hidden": (8,)}, **settings})
    made, opened = presets.resolve(request)
    parts = experiment.build(made, opened).parts
    return made, parts._replace(rebuild=lambda: parts)


class Looks:
    """An observer that takes a checkpoint at its third look, and goes on."""

    def __init__(self, at=3):
        self.looks, self.at, self.saved = 0, at, None

    def __call__(self, progress):
        self.looks += 1
        if self.looks == self.at:
            self.saved = {path: np.array(leaf) for path, leaf in tree.host(progress.save()).items()}
        return True

    def fault(self, kind, message):
        raise AssertionError(f"{kind}\n{message}")


def hogwild_in_turns(made, parts, look):
    run = hogwild.Run(made.configs["runtime"], parts, 0, made.steps, None, look)
    return run.train(time.monotonic(), form=turns.Turns)


def server_in_turns(made, parts, look):
    run = serving.Run(made.configs["runtime"], parts, 0, made.steps, look)
    return run.train(time.monotonic(), form=turns.Turns)


SOON = {"algorithm": {"learning_starts": 100}}
WAYS = {
    "hogwild": ("a3c", {"runtime": {"workers": 2}}, hogwild_in_turns),
    "hogwild-blocking": (
        "async_sarsa", {"runtime": {"workers": 3, "max_lag": 2, "on_stale": "block"}}, hogwild_in_turns,
    ),
    "hogwild-recorded": ("a3c", {"runtime": {"workers": 2, "replayable": True}}, hogwild_in_turns),
    "parameter_server": ("gorila", {**SOON, "runtime": {"bundles": 2, "shards": 2}}, server_in_turns),
    "parameter_server-gathering": (
        "gorila", {**SOON, "runtime": {"bundles": 2, "n_push": 3, "n_fetch": 2, "queue": 1}}, server_in_turns,
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_runtime_in_turns_repeats_and_takes_checkpoints(way):
    """Nothing races, so the same seed gives the same bits, however often a checkpoint is asked for."""
    preset, settings, run = WAYS[way]
    made, parts = built(preset, **settings)
    look = Looks()
    first, again = run(made, parts, look), run(made, parts, Looks(at=10**9))
    assert tree.sha256(first.policy.params) == tree.sha256(again.policy.params)
    assert first.final.env_steps >= made.steps
    assert first.final.updates > 0
    assert first.final.workers["restarts"] == 0
    if way == "hogwild-blocking":
        assert first.final.workers["lag_max"] <= 2
    if look.looks >= look.at:
        assert look.saved


def test_in_turns_and_in_processes_one_worker_comes_to_the_same_bits(tmp_path):
    made, parts = built("a3c", runtime={"workers": 1})
    alone = hogwild_in_turns(made, parts, Looks())
    run = shoal.train(
        "a3c", "CartPole-v1", steps=600, workers=1, network={"hidden": (8,)}, out=tmp_path / "run", quiet=True,
        eval_episodes=0,
    )  # fmt: skip
    assert tree.sha256(alone.policy.params) == run.summary["params_sha256"]
