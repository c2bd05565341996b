"""What a compressor remembers, a student above all, goes on after a resume and after a death; nothing is pickled."""

from __future__ import annotations

import copy
import time

import jax
import numpy as np
import pytest

from shoal import experiment
from shoal.core import errors, tree
from shoal.runs import checkpoint
from shoal.runtimes.actor_learner import learner, publisher, teacher
from shoal.runtimes.crew import turns
from tests.conformance.test_runtimes import Observer
from tests.test_actor_learner import STEPS, built, stepped
from tests.test_compress import agent_for, packing, policy_for, seen

KINDS = {
    "prune": {"share": 0.5},
    "low_rank": {"share": 0.25},
    "distil": {},
    "quantise": {},
    "chain": {"members": ("prune", "distil", "quantise")},
    "chain of low_rank": {"members": ("low_rank", "quantise")},
    "chain on a student": {"members": ("distil", "low_rank", "quantise")},
}


@pytest.fixture(scope="module", autouse=True)
def cached():
    experiment.cache()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_all_there_is_and_its_shapes_are_known_beforehand(kind):
    agent = agent_for(hidden=(32, 32))
    compressor, obs = packing(kind.split()[0], agent, **KINDS[kind]), seen(agent)
    before = teacher.remembered(agent, compressor)
    memory = compressor.init(policy_for(agent), jax.random.key(0))
    for i in range(3):
        policy, keys = policy_for(agent, i), [jax.random.key(2 * i), jax.random.key(2 * i + 1)]
        if compressor.study is not None:
            memory, _ = compressor.study(memory, policy, obs, keys[0])
        memory, _ = compressor.compress(memory, policy, obs, keys[1])
    kept = copy.deepcopy(compressor.kept(memory))
    shapes = [{path: tree.describe(leaf) for path, leaf in tree.paths(one).items()} for one in (before, kept)]
    assert shapes[0] == shapes[1]
    other = compressor.init(policy_for(agent, 9), jax.random.key(9))
    policy, key, sent = policy_for(agent, 4), jax.random.key(4), []
    for one in (memory, compressor.resumed(other, kept)):
        taught = compressor.study(one, policy, obs, key)[0] if compressor.study is not None else one
        sent.append(compressor.compress(taught, policy, obs, key)[1].payload)
    assert sent[0] == sent[1]


def run_of(saved, steps, compressor="distil"):
    steady = {"optimiser": {"anneal": False}}
    made, there = built("a2c", environments=4, lockstep=True, compressor=compressor, more=steady)
    return learner.Run(made.configs["runtime"], there.parts, 0, steps, Observer(), saved), there


def trained(saved=None, steps=STEPS):
    """The end of a run, and its checkpoint tree."""
    run, _ = run_of(saved, steps)
    result = run.train(time.monotonic(), turns.Turns)
    return result, result.final.save()


def student(saved):
    (kept,) = saved[1]["memory"]
    return kept


def test_a_resumed_run_goes_on_with_its_student_and_in_lock_step_with_the_same_bits(tmp_path):
    (first, saved), (_, again) = trained(), trained()
    assert tree.sha256(saved) == tree.sha256(again), "the same run twice, students included"
    assert saved[1]["remembers"] == 1
    assert student(saved)["steps"] == 8 * first.final.updates, "once for each policy, before it is sent"

    _, there = run_of(None, STEPS)
    checkpoint.save(tmp_path, STEPS, saved, {})
    loaded = checkpoint.newest(tmp_path, there.runtime.like(there.parts, 0), print).tree
    assert tree.sha256(loaded) == tree.sha256(saved)

    ends = [trained(copy.deepcopy(loaded), 2 * STEPS) for _ in range(2)]
    assert tree.sha256(ends[0][1]) == tree.sha256(ends[1][1])
    assert student(ends[0][1])["steps"] == 2 * student(saved)["steps"]
    forgotten = copy.deepcopy(loaded)
    forgotten[1]["remembers"] = np.int64(0)
    anew, after = trained(forgotten, 2 * STEPS)
    assert student(after)["steps"] == student(saved)["steps"]
    assert tree.sha256(anew.policy.params) != tree.sha256(ends[0][0].policy.params), "another acted"


def test_a_checkpoint_from_before_memories_were_kept_is_read(tmp_path):
    run, there = run_of(None, STEPS)
    state, counters = run.save()
    older = {name: value for name, value in counters.items() if name not in ("memory", "remembers")}
    checkpoint.save(tmp_path, 0, (state, older), {})
    like = there.runtime.like(there.parts, 0)
    loaded = checkpoint.newest(tmp_path, like, print).tree
    assert loaded[1]["remembers"] == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(loaded[1]["memory"]))
    result, saved = trained(loaded)
    assert student(saved)["steps"] == 8 * result.final.updates


def test_other_leaves_that_are_lacking_are_refused_as_before(tmp_path):
    _, there = run_of(None, STEPS)
    run, _ = run_of(None, STEPS)
    state, counters = run.save()
    del counters["control"]
    checkpoint.save(tmp_path, 0, (state, counters), {})
    with pytest.raises(errors.NoCheckpoint, match=r"lacks leaf .*control"):
        checkpoint.newest(tmp_path, there.runtime.like(there.parts, 0), print)


def test_in_the_place_of_a_compressor_that_died_another_goes_on_with_its_student():
    made, there = built("a2c", engine="numpy", environments=2, compressor="distil")
    run = learner.Run(made.configs["runtime"], there.parts, 0, STEPS, Observer(), None)
    team, (_, presses) = stepped(run)
    with team:
        run.shared.teacher.show(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
        run.shared.teacher.give(run.policy(), 1)
        for _ in range(4):
            assert presses.turn()
        steps = presses._memory[0].steps
        assert steps == 24
        place = next(place for place in team._places if place.worker is presses)
        other = publisher.Publisher(run.jobs.publisher(0, 1), place)
        assert other._memory[0].steps == steps
        jax.tree.map(np.testing.assert_array_equal, other._memory[0].optimiser, presses._memory[0].optimiser)
        assert run.save()[1]["memory"][0]["steps"] == steps


def test_a_memory_that_was_being_written_when_its_process_died_is_not_read():
    run, _ = run_of(None, STEPS)
    both = run.shared.teacher
    kept, there = both.memory()
    assert not there
    full = jax.tree.map(lambda leaf: np.full_like(leaf, 3), kept)
    both.keep(full, 1)
    rooms = both._memory
    rooms[0][1] = 7  # half of the next, which goes to the other place
    again, there = both.memory()
    assert there
    assert tree.sha256(again) == tree.sha256(full)
