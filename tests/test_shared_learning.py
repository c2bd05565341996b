"""What hogwild workers share besides the parameters: target network, optimiser statistics, who explores how.

Workers are driven here inside one process, in the order a test wants, on experience it gives them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, seeds, tree, types
from shoal.experiment import presets
from shoal.formulas import optimise
from shoal.runtimes import hogwild
from shoal.runtimes.experience import segments
from shoal.runtimes.hogwild import parent, process
from tests import faults

T, PERIOD, UPDATES = 5, 35, 40
SETTINGS: dict[str, dict[str, Any]] = {
    "algorithm": {"rollout_length": T, "target_period": PERIOD, "epsilon_steps": 100},
    "optimiser": {"learning_rate": 1e-2, "epsilon": 1e-3, "max_norm": 0.5},
    "network": {"hidden": (8,)},
}


def rollouts(count: int = UPDATES, seed: int = 0) -> list[types.Rollout]:
    """Segments ``[T, 1]`` of nobody in CartPole."""
    rng = np.random.default_rng(seed)

    def one() -> types.Rollout:
        shape = (T, 1)
        over = rng.random(shape) < 0.1
        seen = [rng.normal(size=(*shape, 4)).astype(np.float32) for _ in range(2)]
        action, reward = rng.integers(0, 2, shape).astype(np.int32), rng.normal(size=shape).astype(np.float32)
        cut = ~over & (rng.random(shape) < 0.1)
        return types.Rollout(
            types.Transition(seen[0], action, reward, np.where(over, 0.0, 1.0).astype(np.float32), cut, seen[1], ()), ()
        )

    return [one() for _ in range(count)]


class Played:
    """Segments that were made before."""

    def __init__(self, room: types.Rollout, given: list[types.Rollout]) -> None:
        self._room, self._given = room, iter(given)

    def collect(self, policy: Any) -> segments.Segment:
        del policy
        jax.tree.map(lambda room, leaf: np.copyto(room, leaf, casting="unsafe"), self._room, next(self._given))
        return segments.Segment((), [], T, 0.0, 0.0)


ALONE: Any = SimpleNamespace(stopped=False, gone=lambda: False)  # the parent of a worker that is this process's


class Team(NamedTuple):
    run: Any  # hogwild's side of the parent
    workers: list[Any]  # `process.ActorLearner`

    @property
    def block(self) -> Any:
        return self.run._block


def built(runtime: str, settings: dict[str, Any], **config: Any) -> experiment.Built:
    experiment.cache()
    kinds = {kind: {**SETTINGS.get(kind, {}), **settings.get(kind, {})} for kind in (*SETTINGS, *settings)}
    request = presets.Request("async_q", "CartPole-v1", 500, runtime=runtime, settings={**kinds, "runtime": config})
    return experiment.build(presets.resolve(request)[0])


def team(count: int, saved: Any = None, statistics: str = "shared", **settings: Any) -> Team:
    parts = built("hogwild", settings, workers=count, statistics=statistics).parts
    run = parent.Run(hogwild.Config(workers=count, statistics=statistics), parts, 0, 10**6, None, None)
    run.restore(saved)
    jobs = [run.job(i, 0)._replace(rebuild=lambda: parts) for i in range(count)]
    workers = [process.ActorLearner(job, ALONE) for job in jobs]
    for i, learner in enumerate(worker.games.learners[0] for worker in workers):
        learner.segments.close()
        learner.segments = Played(learner._letter.rollout, rollouts(seed=i))
    return Team(run, workers)


@pytest.mark.parametrize("target", ["one_step", "sarsa", "n_step"])
def test_one_worker_learns_what_one_environment_does(target):
    """Host holds target and statistics in its state and copies by its own count; here both are shared memory."""
    algorithm = {**SETTINGS["algorithm"], "target": target}
    here = built("host", {"algorithm": algorithm}, environments=1).parts.agent
    state, there = here.init(seeds.key(0, "init")), team(1, algorithm=algorithm)
    update, flat = jax.jit(here.update), tree.flattener(state.params)
    annealed = there.workers[0].games.learners[0]._letter.rest.optimiser.hyper
    assert annealed.anneal_steps == state.optimiser.hyper.anneal_steps
    copies = 0
    for rollout in rollouts():
        before = state.target.params
        state, _ = update(state, rollout, seeds.key(1))
        there.workers[0].turn()
        copies += not np.array_equal(flat.flatten(before), flat.flatten(state.target.params))
        np.testing.assert_allclose(there.block["theta"], flat.flatten(state.params), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(there.block["target"], flat.flatten(state.target.params), rtol=1e-4, atol=1e-6)
    assert copies == there.block["copies"][0] == T * UPDATES // PERIOD
    first = here.init(seeds.key(0, "init")).params
    assert not np.allclose(there.block["theta"], flat.flatten(first), rtol=1e-2)


def test_whichever_worker_passes_a_multiple_copies_the_target():
    both = team(2)
    block, copier = both.block, []
    for i in range(2 * 16):
        before, worker = block["target"].copy(), i % 2
        both.workers[worker].turn()
        passed = T * (i + 1) // PERIOD
        assert block["copies"][0] == passed
        if passed > T * i // PERIOD:
            copier.append(worker)
            np.testing.assert_array_equal(block["target"], block["theta"])
        else:
            np.testing.assert_array_equal(block["target"], before)
        np.testing.assert_array_equal(
            both.workers[worker].games.learners[0]._letter.target, before
        )  # learned from, whoever copied it
    assert set(copier) == {0, 1}


@pytest.mark.parametrize(("rule", "statistics"), [("rmsprop", "shared"), ("rmsprop", "worker"), ("momentum", "worker")])
def test_statistics_are_everybodys_or_ones_own(rule, statistics):
    both = team(2, statistics=statistics, optimiser={**SETTINGS["optimiser"], "rule": rule})
    g = both.block["g"]
    both.workers[0].turn()
    first = g.copy()
    assert np.any(first)
    both.workers[1].turn()
    if statistics == "shared":
        assert g.shape == both.block["theta"].shape
        assert np.any(g != first)
        return
    assert g.shape == (2, *both.block["theta"].shape)
    np.testing.assert_array_equal(g[0], first[0])
    assert not np.any(first[1])
    assert np.any(g[1])
    assert (g[1] < 0).any() == (rule == "momentum")
    theta, own = both.block["theta"].copy(), g[1].copy()
    both.workers[1].turn()
    gradient = both.workers[1].games.learners[0].out[: len(theta)]
    hyper = both.workers[1].games.learners[0]._letter.rest.optimiser.hyper
    eta = optimise.rate(hyper, 2 * T)
    if rule == "momentum":
        wanted = hyper.decay * own + (1 - hyper.decay) * gradient
        step = eta * wanted
    else:
        wanted = hyper.decay * own + (1 - hyper.decay) * gradient**2
        step = eta * gradient / np.sqrt(wanted + hyper.epsilon)
    np.testing.assert_allclose(g[1], wanted, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(both.block["theta"], theta - step, rtol=1e-5, atol=1e-6)


def test_workers_explore_by_their_own_draw_and_the_steps_of_all():
    both = team(3, algorithm={**SETTINGS["algorithm"], "epsilon_ends": (0.0, 0.2, 0.6), "epsilon_weights": (1, 1, 1)})
    ends = np.asarray(both.run._state.epsilon_end)
    assert len(set(ends.tolist())) > 1, "this seed tells them apart"
    for i, worker in enumerate(both.workers):
        worker.turn()
        assert int(worker.games.learners[0]._letter.rest.stream) == i
        done = T * (i + 1) / 100  # of all
        assert worker.report()[1]["epsilon"] == pytest.approx(1 + done * (ends[i] - 1), rel=1e-5)


def test_a_resumed_run_has_everything_back():
    """Target, every worker's statistics, counters; schedules go on from the steps of all; who explores how stays."""
    momentum = {"statistics": "worker", "optimiser": {**SETTINGS["optimiser"], "rule": "momentum"}}
    before = team(2, **momentum)
    for _ in range(9):
        for worker in before.workers:
            worker.turn()
    saved = before.run.save()
    after = team(2, saved, **momentum)
    for name in ("theta", "g", "target", "copies", "steps", "updates"):
        np.testing.assert_array_equal(after.block[name], before.block[name])
    assert np.any(after.block["target"] != after.block["theta"])
    assert after.block["copies"][0] == 90 // PERIOD
    for old, new in zip(before.workers, after.workers, strict=True):
        np.testing.assert_array_equal(
            old.games.learners[0]._letter.rest.epsilon_end, new.games.learners[0]._letter.rest.epsilon_end
        )
        assert list(old.games.learners[0]._letter.key[:2]) != list(new.games.learners[0]._letter.key[:2]), (
            "random numbers are not used twice"
        )
    target = after.block["target"].copy()
    after.workers[0].turn()
    ends = np.asarray(before.run._state.epsilon_end)
    assert after.workers[0].report()[1]["epsilon"] == pytest.approx(1 + 0.95 * (ends[0] - 1), rel=1e-4)
    np.testing.assert_array_equal(after.block["target"], target)  # step 95: 70 was passed before, 105 is not yet
    for worker in (1, 0):
        after.workers[worker].turn()
    assert after.block["copies"][0] == 3
    policy = after.run.policy()
    assert policy.exploration.training.tolist() == pytest.approx(ends.tolist(), rel=1e-5)


def test_a_rule_without_a_target_shares_none():
    parts = experiment.build(presets.resolve(presets.Request("a3c", "CartPole-v1", 500))[0]).parts
    run = parent.Run(hogwild.Config(workers=2), parts, 0, 500, None, None)
    assert run._block["target"].size == 0
    assert run._block["g"].ndim == 1


@pytest.mark.parametrize(
    ("typed", "story"),
    [
        (("--optimiser.rule", "momentum"), "add --runtime.statistics worker"),
        (("--optimiser.rule", "optax:adamw"), "offers rmsprop, momentum, adagrad, adam"),
    ],
)
def test_an_optimiser_that_cannot_be_shared_is_refused(typed, story, capsys, tmp_path):
    ended = faults.call(capsys, "train", "async_q", *typed, "--steps", 100, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert story in ended.err
    with pytest.raises(errors.Refused, match="momentum"):
        hogwild.check(hogwild.Config(), _asking("momentum"), None)


def _asking(rule: str) -> Any:
    class Asked:
        configs = {"optimiser": optimise.Config(rule=rule)}  # noqa: RUF012

    return Asked


def test_bytes_travel_among_words():
    """Sarsa's pending observation may be an image."""
    from shoal.runtimes.crew import packing

    rng = np.random.default_rng(0)
    like = {
        "image": np.zeros((3, 5, 2), np.uint8), "number": np.float32(0), "flag": np.zeros(3, bool),
        "none": np.zeros(0, np.uint8),
    }  # fmt: skip
    words, views, unpack = packing.make(like)
    assert len(words) == packing.size(like) == 8 + 1 + 3
    views["image"][:] = rng.integers(0, 256, (3, 5, 2))
    views["number"][...], views["flag"][1] = -2.5, 1
    read = jax.jit(unpack)(words)
    np.testing.assert_array_equal(read["image"], views["image"])
    assert (read["image"].dtype, float(read["number"]), read["flag"].tolist()) == (np.uint8, -2.5, [False, True, False])
    np.testing.assert_array_equal(jax.jit(packing.pack)(read), words)
