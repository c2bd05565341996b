"""Learners that exchange weights, and mappers: messages, mailboxes, whole runs, deaths, resumes."""

from __future__ import annotations

import importlib
import os
import signal
import time
import types as python_types

import numpy as np
import pytest

import shoal
from shoal import experiment
from shoal.core import errors, tree, types
from shoal.experiment import presets
from shoal.runs.session import ending
from shoal.runtimes import map_reduce
from shoal.runtimes import peers as peers_runtime
from shoal.runtimes.crew import crew, life, sharing, supervise
from shoal.runtimes.peers import mailboxes, process
from tests import faults
from tests.conformance import test_runtimes

mapper = importlib.import_module("shoal.runtimes.map_reduce.mapper")  # itself: its package imports it late

Observer = test_runtimes.Observer
SCHEMES = ("average", "filtered", "asynchronous")


def message(entries):
    """A message from {index: (value, visits)}."""
    index = np.array(sorted(entries), np.int32)
    value, visits = (np.array([entries[i][at] for i in index]) for at in range(2))
    return mailboxes.Message(index, value.astype(float), visits.astype(np.int32))


# ---------------------------------------------------------------------------------------------- messages


def test_weights_are_averaged_by_visits_and_stay_where_nobody_was():
    known = np.array([5.0, 6.0, 7.0])
    told = [message({0: (1.0, 1), 1: (2.0, 0)}), message({0: (4.0, 2), 1: (9.0, 0)})]
    np.testing.assert_allclose(mailboxes.averaged(known, told), [3.0, 6.0, 7.0])


def test_only_what_moved_is_told():
    found = mailboxes.moved(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.5, 2.8]), np.array([4, 5, 6]), 0.3)
    assert [leaf.tolist() for leaf in found] == [[1], [2.0], [5]]


def test_bytes_are_those_of_index_value_and_count():
    told = message({3: (1.0, 1), 8: (2.0, 1)})
    assert mailboxes.size(told, dense=False) == 2 * (4 + 8 + 4)
    assert mailboxes.size(told, dense=True) == 2 * (8 + 4), "entries in order need no index"


def test_a_full_mailbox_drops_the_oldest_and_counts():
    block = sharing.Block(mailboxes.layout(3, 10, 4))
    sender, reader = mailboxes.Mailboxes(block, 0), mailboxes.Mailboxes(block, 1)
    for number in range(6):
        sender.post(message({number: (float(number), 1)}), steps=number)
    assert mailboxes.dropped(block) == 4, "two in the mailbox of each of the two others, unread or not"
    assert [found.entry.tolist() for found in reader.found()] == [[2], [3], [4], [5]]
    assert list(reader.found()) == [], "each is taken once"
    assert list(sender.found()) == [], "one's own messages are not"
    assert (block["dropped"].tolist(), mailboxes.dropped(block)) == ([0, 2, 0], 4)
    assert (int(block["messages"][0]), int(block["bytes"][0])) == (12, 12 * 16)
    block.close()


# ---------------------------------------------------------------------------------------------- learners


def built(preset="parallel_sarsa", steps=6000, seed=0, env="MountainCar-v0", **settings):
    request = presets.Request(preset, env, steps, seed=seed, settings=settings)
    return experiment.build(presets.resolve(request)[0])


def run(made, steps=6000, seed=0, observer=None, saved=None):
    return made.runtime.run(made.parts, seed, steps, None, observer or Observer(), saved)


def peers(scheme, *, spawn=False, workers=3, **more):
    return {"runtime": {"scheme": scheme, "workers": workers, "spawn": spawn, "report_s": 0.02} | more}


@pytest.fixture(scope="module")
def ended():
    """A run of each scheme, learners taking turns."""
    return {scheme: run(built(**peers(scheme))) for scheme in SCHEMES}


def told(result):
    return result.final.subsystems["communication"]


def test_after_an_exchange_all_learners_agree(ended):
    saved = {scheme: result.final.save() for scheme, result in ended.items()}
    average, filtered = saved["average"], saved["filtered"]
    assert (average["weights"] == average["weights"][0]).all(), "to the last bit"
    assert average["weights"].any()
    assert (filtered["known"] == filtered["known"][0]).all()
    assert np.abs(filtered["weights"] - filtered["known"]).max() <= 0.1, "what is not told is less than the threshold"
    assert (saved["asynchronous"]["weights"] != saved["asynchronous"]["weights"][0]).any()
    for one in (average, filtered):
        assert np.ptp(one["episodes"]) <= 2, "episodes of the end may be cut short"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_turns_any_scheme_repeats(ended, scheme):
    again = run(built(**peers(scheme)))
    assert tree.sha256(again.policy.params) == tree.sha256(ended[scheme].policy.params)
    assert told(again) == told(ended[scheme])
    other = run(built(seed=1, **peers(scheme)), seed=1)
    assert tree.sha256(other.policy.params) != tree.sha256(again.policy.params)


def test_what_is_sent_is_counted(ended):
    rounds = int(ended["average"].final.save()["exchanges"][0])
    assert told(ended["average"])["messages"] == rounds * 3 * 2
    assert told(ended["average"])["bytes_sent"] == rounds * 3 * 2 * 1944 * 12
    assert 0 < told(ended["filtered"])["bytes_sent"] < told(ended["average"])["bytes_sent"]
    assert told(ended["asynchronous"])["bytes_sent"] > 0
    for result in ended.values():
        assert told(result)["dropped_messages"] == 0
        assert told(result)["waiting_s"] == 0


def test_one_learner_exchanges_nothing():
    alone = [run(built(steps=1500, **peers(scheme, workers=1)), 1500) for scheme in SCHEMES]
    for one in alone:
        assert (told(one)["bytes_sent"], told(one)["messages"]) == (0, 0)
        assert one.final.save()["exchanges"] > 0
    assert len({one.final.env_steps for one in alone[:2]}) == 1
    for scheme in SCHEMES:
        one, block = learner(scheme, workers=1)
        assert all(one.turn() for _ in range(8)), "it waits for nobody"
        assert block["exchanges"][0] > 0
        assert block["posted"][0] == 0


@pytest.mark.parametrize("scheme", SCHEMES[:2])
def test_one_learner_learns_as_if_alone_under_any_scheme(scheme):
    (one, block), (other, same) = learner(scheme, workers=1), learner("asynchronous", workers=1)
    for each in (one, other):
        while each.steps < 3000:
            each.turn()
    np.testing.assert_array_equal(block["weights"], same["weights"])
    made = built(**peers(scheme, workers=1))
    kept = {name: block[name] for name in process.KEPT} | {"life": 0}
    resumed = peers_runtime._Run(made.runtime._config, made.parts, 0, 0, None)
    resumed.restore(kept)
    np.testing.assert_array_equal(resumed.save()["weights"], block["weights"])


class Endless:
    """An episode without an end."""

    spec = None

    def reset(self, seed):
        self.at = np.random.default_rng(seed)
        return self._seen()

    def step(self, action):
        del action
        return (seen := self._seen()), types.Outcome(-1.0, 1.0, False, seen)

    def close(self):
        """Nothing is open."""

    def _seen(self):
        return self.at.uniform((-1.2, -0.07), (0.6, 0.07)).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES[:2])
@pytest.mark.parametrize("endless", [False, True])
def test_learners_that_wait_end_together_at_the_steps_asked_for(scheme, endless):
    made = built(steps=1000, **peers(scheme, period=40))
    if endless:
        made = made._replace(parts=made.parts._replace(environment=python_types.SimpleNamespace(host=Endless)))
    result = run(made, 1000, observer=Observer(stop_at=30_000))
    assert 1000 <= result.final.env_steps < 1000 + 3
    saved = result.final.save()
    assert len(set(saved["exchanges"].tolist())) == 1
    assert (saved["known"] == saved["known"][0]).all()
    assert saved["known"].any(), "what was learned is told"
    observer = Observer()
    again = run(made, 1000, observer=observer, saved=saved)
    assert again.final.env_steps == result.final.env_steps, "nothing is left to do"


def test_a_slow_simulator_is_reported_on():
    one, block = learner("asynchronous")
    one._job = one._job._replace(stretch_s=0.0)
    assert [(one.turn(), int(block["steps"][0])) for _ in range(3)] == [(True, 1), (True, 2), (True, 3)]


def test_processes_that_wait_for_each_other_come_to_the_bits_of_turns_even_if_one_dies(ended):
    class Killer(Observer):
        """Kills a learner once training is under way."""

        killed = False

        def __call__(self, progress):
            if progress.env_steps > 500 and not self.killed:
                self.killed = True
                os.kill(progress.workers["pids"][0], signal.SIGKILL)
            return super().__call__(progress)

    observer = Killer()
    result = run(built(**peers("average", spawn=True, workers=2)), observer=observer)
    assert observer.killed
    assert result.final.faults["restarts"] == result.final.workers["restarts"] == 1
    assert "SIGKILL" in observer.faults[0]
    weights = result.final.save()["weights"]
    assert (weights[0] == weights[1]).all()
    assert told(result)["waiting_s"] > 0, "for the one that was started again"
    assert result.final.env_steps >= 6000
    # Undisturbed, timing leaves no trace.
    processes = run(built(**peers("average", spawn=True)))
    assert tree.sha256(processes.policy.params) == tree.sha256(ended["average"].policy.params)
    assert told(processes)["bytes_sent"] == told(ended["average"])["bytes_sent"]


def test_asynchronous_learners_wait_for_nobody():
    observer = Observer()
    result = run(built(**peers("asynchronous", spawn=True, workers=2)), observer=observer)
    assert told(result)["waiting_s"] == 0
    assert told(result)["messages"] > 2
    assert all(count > 0 for count in result.final.workers["env_steps"])
    assert not observer.faults


def learner(scheme, workers=3):
    """One learner of several, the others silent; and what they share."""
    made = built(**peers(scheme, workers=workers))
    block = sharing.Block(process.layout(workers, made.parts.agent.about.exchange.size, 4))
    job = process.Job(block, lambda: made.parts, 0, 0, 0, 10**9, scheme, 1, 0.1, 1.0)
    return process.Learner(job, python_types.SimpleNamespace(stopped=False)), block


def test_who_waits_and_who_does_not_when_others_are_silent():
    for scheme in SCHEMES:
        one, block = learner(scheme)
        went_on = [one.turn() for _ in range(8)]
        if scheme == "asynchronous":
            assert all(went_on)
            assert block["episodes"][0] > 1
        else:
            assert not went_on[-1]
            assert block["episodes"][0] == 1, "it waits with its first news"


def test_news_found_together_weigh_alike_and_are_not_told_again():
    one, block = learner("asynchronous")
    block["weights"][0, 5], block["visits"][0, 5] = 3.0, 1
    for other, value in ((1, 6.0), (2, 9.0)):
        mailboxes.Mailboxes(block, other).post(message({5: (value, 1), 7 + other: (value, 1)}), steps=0)
    one._exchange()
    assert block["weights"][0, [5, 8, 9]].tolist() == [6.0, 6.0, 9.0]
    first = next(mailboxes.Mailboxes(block, 1).found())
    assert first.entry.tolist() == [5], "what others told is not one's own news"
    one._exchange()
    assert block["weights"][0, [5, 8, 9]].tolist() == [6.0, 6.0, 9.0]


def test_a_resume_of_learners_that_wait_begins_together():
    made, observer = built(steps=10**6, **peers("filtered")), Observer(stop_at=4000)
    saved = run(made, 10**6, observer=observer).final.save()
    saved["weights"][0, 5] += 4.0  # as if it had been stopped before it could tell
    saved["visits"][:, 5] = saved["told"][:, 5] + (3, 1, 0)
    run_again = peers_runtime._Run(made.runtime._config, made.parts, 0, 0, None)
    run_again.restore(saved)
    weights = run_again.save()["weights"]
    assert (weights == weights[0]).all(), "what was under way is exchanged first"
    mean = (3 * saved["weights"][0, 5] + saved["weights"][1, 5]) / 4
    assert weights[0, 5] == pytest.approx(mean)
    again = built(steps=8000, **peers("filtered"))
    result = run(again, 8000, saved=saved)
    assert result.final.env_steps >= 8000
    assert told(result)["bytes_sent"] > saved["bytes"].sum(), "counted over all lives"
    assert (result.final.save()["episodes"] > saved["episodes"]).all(), "each has gone on"


def test_observations_that_are_not_finite_are_counted_once_over_all_lives():
    made, observer = built(steps=10**6, **peers("filtered")), Observer(stop_at=2000)
    saved = run(made, 10**6, observer=observer).final.save()
    saved["non_finite"][:] = (3, 0, 4)
    assert run(made, 10, saved=saved).final.faults["non_finite"] == 0, "those of earlier lives the session adds"


# ---------------------------------------------------------------------------------------------- mappers


def test_shards_cover_every_sample_once():
    assert mapper.shards(10, 4) == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert mapper.shards(1, 3)[0][0] == 0
    assert mapper.shards(1, 3)[-1][1] == 1
    assert mapper.chunks(5, 5) == [(5, 5)], "an empty shard has sums too"
    assert mapper.chunks(0, 5000) == [(0, 4096), (4096, 5000)]


def batch(steps=1500, *, workers=2, spawn=False, **algorithm):
    settings = {"runtime": {"workers": workers, "spawn": spawn}, "algorithm": algorithm}
    return built("batch_linear", steps, env="CartPole-v1", **settings)


def test_any_number_of_mappers_comes_to_the_same_weights():
    found = {n: run(batch(workers=n, method="lstd"), 1500).final.save()["memory"]["w"] for n in (1, 2, 8)}
    for weights in found.values():
        np.testing.assert_allclose(weights, found[1], rtol=0, atol=1e-8 * np.abs(found[1]).max())


def test_chunks_change_nothing(monkeypatch):
    whole = run(batch(method="lstd"), 1500).final.save()["memory"]["w"]
    monkeypatch.setattr(mapper, "CHUNK", 100)
    weights = run(batch(method="lstd"), 1500).final.save()["memory"]["w"]
    np.testing.assert_allclose(weights, whole, rtol=0, atol=1e-8 * np.abs(whole).max())


def slow():
    """Parts whose mapper takes the seconds it is told for every chunk."""

    def work(memory, chunk):
        time.sleep(float(memory["seconds"]))
        return {"n": np.float64(len(chunk.reward))}

    sums = types.Sums(None, None, lambda samples: samples, work, None, 1, None, 8)
    about = python_types.SimpleNamespace(sums=sums)
    return python_types.SimpleNamespace(agent=python_types.SimpleNamespace(about=about))


def test_a_mapper_may_take_long_or_have_nothing_to_do_but_not_hang(monkeypatch):
    many, faults_told = 8 * mapper.CHUNK, []
    edges = [(0, many), (many, many + 1)]
    block = sharing.Block(mapper.layout(batch().parts.spec, many + 1))
    role = life.Role(
        name="worker", workers=2, open=mapper.Mapper, together=False, serves=True,
        job=lambda worker, _: mapper.Job(block, slow, *edges[worker]),
    )  # fmt: skip
    asked = []
    with crew.Processes([role], lambda kind, _: faults_told.append(kind)) as team:
        mappers = mapper.Mappers(team, 2)
        assert mappers.begin(lambda: True)
        monkeypatch.setattr(supervise, "SILENCE", 3.0)
        told = mappers.sums({"seconds": np.float64(0.5)}, lambda: not asked.append(1))
        assert [int(one["n"]) for one in told] == [many, 1]
        assert not faults_told, "4 s of work, told of; and as long without any"
        assert len(asked) > 10, "it is asked all the while whether to go on"
        assert mappers.sums({"seconds": np.float64(60)}, lambda: not faults_told) is None
        assert team.restarts["worker"] > 0, "one that says nothing is taken for hung"


@pytest.mark.parametrize("spawn", [False, True])
def test_a_round_can_be_stopped_and_is_done_again(monkeypatch, spawn):
    monkeypatch.setattr(map_reduce, "REPORT_EVERY", 0.0)
    made = batch(method="lstd", spawn=spawn)

    class Stop(Observer):
        def __call__(self, progress):
            super().__call__(progress)
            return not progress.split["waiting" if spawn else "learning"]

    stopped = run(made, 1500, observer=Stop()).final
    assert stopped.updates == 0, "it was in the middle"
    resumed = run(made, 1500, saved=stopped.save()).final.save()
    whole = run(batch(method="lstd"), 1500).final.save()
    np.testing.assert_array_equal(resumed["memory"]["w"], whole["memory"]["w"])


def test_a_mapper_that_dies_is_asked_again_and_timing_leaves_no_trace():
    class Killer(Observer):
        killed = False

        def __call__(self, progress):
            if progress.updates > 5 and not self.killed:
                self.killed = True
                os.kill(progress.workers["pids"][1], signal.SIGKILL)
            return super().__call__(progress)

    observer, settings = Killer(), {"method": "td", "rounds": 40}
    disturbed = run(batch(spawn=True, **settings), 1500, observer=observer)
    assert observer.killed
    assert disturbed.final.faults["restarts"] == 1
    calm = run(batch(**settings), 1500)
    assert tree.sha256(disturbed.policy.params) == tree.sha256(calm.policy.params)
    k = calm.final.save()["memory"]["w"].nbytes
    assert told(disturbed)["bytes_sent"] >= 40 * 2 * (k + k + 16)
    assert told(calm)["bytes_sent"] == 0


def test_a_stopped_solution_goes_on_where_it_was():
    settings = {"method": "td", "rounds": 60}
    whole = run(batch(**settings), 1500).final.save()

    class Stop(Observer):
        def __call__(self, progress):
            super().__call__(progress)
            return progress.updates < 20

    stopped = run(batch(**settings), 1500, observer=Stop()).final.save()
    assert stopped["rounds"] == 20
    observer = Observer()
    resumed = run(batch(**settings), 1500, observer=observer, saved=stopped).final.save()
    np.testing.assert_array_equal(resumed["memory"]["w"], whole["memory"]["w"])
    assert not any(progress.episodes for progress in observer.told), "they were told before the stop"


BROKEN = {"algorithm": {"method": "td", "rounds": 4, "features": "polynomial", "low": (0.0, 0.0), "high": (1.0, 1.0)}}


@pytest.fixture
def once(monkeypatch, tmp_path):
    """What is to happen once in a run has not happened yet."""
    monkeypatch.setenv("SHOAL_TEST_ONCE", str(tmp_path / "once"))


def test_samples_left_out_are_no_diverged_learner_and_are_counted_once(tmp_path, monkeypatch):
    """3 in 100 are not finite: more than would make a learner of gradients give up."""
    monkeypatch.setattr(ending, "DIVERGED", 20)
    options = {"steps": 2000, "out": tmp_path / "run", "eval_episodes": 0, "quiet": True}
    summary = shoal.train("batch_linear", "tests.faults.envs:PaysNaN-v0", **options, **BROKEN).summary
    assert summary["status"] == "completed"
    assert summary["faults"]["non_finite"] == 0
    assert 20 < summary["faults"]["left_out"] < 200
    made = built("batch_linear", 2000, env="tests.faults.envs:PaysNaN-v0", **BROKEN)

    class Stop(Observer):
        def __call__(self, progress):
            super().__call__(progress)
            return progress.updates < 2

    first = run(made, 2000, observer=Stop()).final
    again = run(made, 2000, saved=first.save()).final
    assert first.faults["left_out"] == summary["faults"]["left_out"]
    assert again.faults["left_out"] == 0, "those of earlier lives the session adds"


@pytest.mark.parametrize("env", ["RaisesOnce", "RaisesInReset"])
@pytest.mark.usefixtures("once")
def test_a_simulator_that_raises_is_opened_anew(env):
    made, observer = built("batch_linear", 300, env=f"tests.faults.envs:{env}-v0", **BROKEN), Observer()
    assert run(made, 300, observer=observer).final.faults["restarts"] == 1
    (told,) = observer.faults
    assert "opening another" in told
    assert "RuntimeError" in told


def test_a_simulator_that_always_raises_ends_the_run():
    made = built("batch_linear", 300, env="tests.faults.envs:RaisesAlways-v0", **BROKEN)
    with pytest.raises(errors.GaveUp, match="failed 5 times without a sample"):
        run(made, 300)


# ---------------------------------------------------------------------------------------------- commands


def test_commands(capsys, tmp_path):
    for preset, env, more in [
        ("parallel_sarsa", "MountainCar-v0", ("--runtime.scheme", "filtered")),
        ("batch_linear", "CartPole-v1", ("--algorithm.method", "lspi")),
    ]:
        folder = tmp_path / preset
        words = (
            "--steps",
            2500,
            "--env",
            env,
            "--workers",
            2,
            "--runtime.no-spawn",
            *more,
            "--environment.time-limit",
            60,
        )
        summary = faults.train(capsys, folder, preset, *words, evaluate=2)
        assert summary["status"] == "completed"
        assert {"bytes_sent", "messages", "dropped_messages", "waiting_s"} <= set(summary["communication"])
        played = faults.call(capsys, "eval", folder, "--episodes", 2, "--json").json
        assert played["eval_return_mean"] != 0
        assert faults.call(capsys, "resume", folder).code == 2, "nothing is left to do"
        assert faults.call(capsys, "report", folder).code == 0
        refused = faults.call(capsys, "export", folder)
        assert refused.code == 2, "no network of layers"
        assert len(refused.err.strip().splitlines()) == 1


# ---------------------------------------------------------------------------------------------- learning


def learned(scheme, seed, steps):
    """Steps per episode over the last 40 episodes of every learner, and bytes sent; learners take turns."""
    observer = Observer()
    result = run(built(steps=steps, seed=seed, **peers(scheme, workers=2)), steps, seed, observer)
    lengths = [episode.length for progress in observer.told for episode in progress.episodes]
    return np.mean(lengths[-80:]), told(result)["bytes_sent"]


def test_filtered_messages_are_a_fraction_at_the_same_score():
    (score, sent), (other, less) = (learned(scheme, 0, 24_000) for scheme in ("average", "filtered"))
    assert less <= 0.3 * sent
    assert other <= 1.1 * score
    assert score < 200, "it is learned: random actions take thousands of steps"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_learns_mountain_car(scheme):
    scores = [learned(scheme, 1000 + seed, 60_000)[0] for seed in range(5)]
    assert np.mean(scores) < 140
