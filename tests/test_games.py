"""Several games of one hogwild worker: one decision for all, a segment and an update for each."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from shoal import experiment
from shoal.core import registry, tree
from shoal.experiment import presets
from shoal.monitor import asynchrony
from shoal.runs import run_folder
from shoal.runtimes.hogwild import games
from tests import faults

HOGWILD = registry.load("runtime", "hogwild")
T = 5


def sequence(preset="a3c", network=None, **runtime):
    settings = {
        "runtime": {"workers": 2, "games": 2, **runtime},
        "network": {"hidden": (8,), **(network or {})},
        "algorithm": {"rollout_length": T},
    }
    made = presets.resolve(presets.Request(preset, "CartPole-v1", 10_000, settings=settings))[0]
    experiment.cache()
    return HOGWILD.replayer(made.configs["runtime"], experiment.build(made).parts, made.seed)


@pytest.fixture(scope="module")
def lstm():
    """What decides in jitted calls, with a recurrent state."""
    made = sequence(network={"lstm": 4})
    yield made
    made.close()


def test_each_game_has_the_gradient_of_its_own_segment_and_an_update_of_its_own(lstm):
    lstm.begin()
    two, state, compiled = games.Games(lstm._compiled, 0, 0), lstm.state, lstm._compiled
    for _ in range(3):
        two.read(state)
        two.compute()
        first, second = (two.due.popleft().learner for _ in range(2))
    carries = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(one._letter.rollout.carry)])
        for one in (first, second)
    ]
    assert np.abs(carries).max(axis=1).all(), "each goes on with its own recurrent state"
    assert not np.array_equal(*carries)
    gradients = [compiled.gradient(one._words, one._apart)[0][: compiled.flat.size].copy() for one in (first, second)]
    assert not np.allclose(*gradients, rtol=1e-2)
    for learner, gradient in zip((first, second), gradients, strict=True):
        before, theta = state["g"].copy(), state["theta"].copy()
        learner.settle(state)
        hyper = learner._letter.rest.optimiser.hyper
        squares = hyper.decay * before + (1 - hyper.decay) * gradient**2  # of one segment at a time
        np.testing.assert_allclose(state["g"], squares, rtol=1e-4, atol=1e-12)
        assert not np.array_equal(state["theta"], theta)
    assert (state["steps"].tolist(), state["updates"].tolist()) == ([2 * T, 0], [2, 0])
    assert state["lag_max"].tolist() == [1, 0], "the second had been read before the first was applied"
    two.close()


def test_what_a_dead_worker_left_is_cleared_once_by_whichever_game_applies_first(lstm):
    lstm.begin()
    state = lstm.state | {"g": np.full((2, lstm._compiled.flat.size), 7.0, np.float32)}  # of each worker
    heir = games.Games(lstm._compiled, 0, 1)
    first, second = heir.learners
    heir.read(state)
    heir.compute()
    first.settle(state, asynchrony.STALE)
    assert (state["g"][0] == 7.0).all(), "nothing is applied yet"
    second.settle(state)
    after = state["g"][0].copy()
    assert after.max() < 1.0
    first.settle(state)
    assert (state["g"][0] >= after * 0.98).all(), "what the second had added stays"
    assert (state["g"][1] == 7.0).all(), "another worker's"
    heir.close()


def test_games_that_decide_together_go_as_they_would_alone(lstm):
    """The bits of a product depend on its rows; actions and episodes of these seeds do not."""
    lstm.begin()
    both, apart = games.Games(lstm._compiled, 0, 0), games.Games(lstm._compiled, 0, 0)
    assert both._together
    apart._together = None
    ended = 0
    for _ in range(25):
        found, alone = [], []
        for one, to in ((both, found), (apart, alone)):
            one.read(lstm.state)
            to.extend(one.compute())
        assert [segment.finished for segment in found] == [segment.finished for segment in alone]
        ended += sum(len(segment.finished) for segment in found)
        for ours, theirs in zip(both.learners, apart.learners, strict=True):
            a, b = (one._letter.rollout for one in (ours, theirs))
            np.testing.assert_array_equal(a.transitions.action, b.transitions.action)
            for x, y in zip(jax.tree.leaves((a, ours.out)), jax.tree.leaves((b, theirs.out)), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    assert ended > 2
    for one in (both, apart):
        one.close()


def test_the_first_of_several_games_is_the_only_one_of_a_worker(lstm):
    alone = sequence(network={"lstm": 4}, games=1)
    mine, others = alone._games(0, 0).learners, lstm._games(0, 0).learners
    seeds = [one._letter.key[:2].tolist() + one.segments.key.tolist() for one in (*mine, *others)]
    assert seeds[0] == seeds[1]
    assert seeds[1] != seeds[2]
    assert [len(mine), len(others)] == [1, 2]
    alone.close()


def test_a_record_is_done_with_a_read_for_all_games_of_a_worker(lstm):
    record = asynchrony.Record(
        worker=np.repeat([0, 1, 0, 1], 2).astype(np.int16),
        incarnation=np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int32),  # worker 0's second ticket of the third turn
        read=np.array([0, 0, 0, 0, 2, 5, 4, 4], np.int64),
        steps=np.full(8, T, np.int32),
        flag=np.zeros(8, np.int8),
    )
    lstm.begin()
    done = list(lstm.run(record))
    assert [one.ticket for one in done] == list(range(1, 9))
    assert lstm.state["steps"].tolist() == [4 * T, 4 * T]
    first = lstm.params()
    lstm.begin()
    assert len(list(lstm.run(record))) == 8
    assert tree.sha256(lstm.params()) == tree.sha256(first)


def test_every_game_explores_by_its_own_draw():
    steps = sequence("async_q")
    two = [steps._games(worker, 0) for worker in range(2)]
    assert [int(one._letter.rest.stream) for games in two for one in games.learners] == [0, 1, 2, 3]
    assert two[0].learners[0]._letter.rest.epsilon_end.shape == (4,)
    assert two[0]._together is None
    steps.close()


@pytest.mark.parametrize(
    ("typed", "story"),
    [
        (["--runtime.segment", "paper"], "segments end at different steps; give runtime.segment=fixed"),
        (["--runtime.max-lag", 3, "--runtime.on-stale", "block"], "give runtime.on_stale=drop"),
        (["--runtime.games", 17], "runtime.games"),
    ],
)
def test_what_several_games_cannot_is_refused(typed, story, capsys, tmp_path):
    words = ("--env", "CartPole-v1", "--runtime.games", 2, *typed)
    ended = faults.call(capsys, "train", "a3c", *words, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n"), story in ended.err) == (2, 1, True), ended.err
    assert not (tmp_path / "run").exists()


def test_a_run_of_several_games_counts_every_step_and_is_replayed_and_resumed(tmp_path, capsys):
    out = tmp_path / "run"
    words = ("--env", "CartPole-v1", "--workers", 2, "--runtime.games", 2, "--replayable", "--network.hidden", 8)
    words += ("--network.lstm", 4, "--algorithm.rollout-length", T, "--algorithm.normalise-observations")
    summary = faults.train(capsys, out, "a3c", *words, "--steps", 600)
    record = asynchrony.read(out).record
    assert record.steps.sum() == summary["env_steps"] == T * summary["updates"]
    for worker in range(2):  # games of one worker read at once
        read = record.read[record.worker == worker].reshape(-1, 2)
        assert (read[:, 0] == read[:, 1]).all()
    replayed = faults.call(capsys, "replay", out, "--json").json
    assert (replayed["equal"], replayed["params_sha256"]) == (True, summary["params_sha256"])
    lengths = [int(line.split(",")[2]) for line in (out / "episodes.csv").read_text().splitlines()[1:]]
    assert 0 < sum(lengths) <= summary["env_steps"]
    resumed = faults.call(capsys, "resume", out, "--steps", 900, "--eval-episodes", 0, "--quiet", "--json").json
    assert resumed["env_steps"] >= 900
    made = run_folder.unedited(out, run_folder.read_config(out))
    assert made.configs["runtime"].games == 2
    again = faults.call(capsys, "replay", out, "--json").json
    assert (again["equal"], again["params_sha256"]) == (True, resumed["params_sha256"])
