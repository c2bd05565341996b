"""What comes out of a memory is what went in: stacks, successors and returns, told by a loop over the same stream."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from shoal.algorithms import _memory
from shoal.core import errors, tree, types

GAMMA = 0.9
ROWS, COLUMNS = 4, 3  # of an image
LENGTHS = ((3, "ends"), (7, "cut"), (1, "ends"), (5, "ends"), (2, "cut"), (1, "cut"), (9, "ends"))


def image_spec(stack, channels=1, shape=(ROWS, COLUMNS)):
    observation = types.ObservationSpec((*shape, channels * stack), "uint8", True, stack)
    return types.EnvSpec("test:spec", observation, types.ActionSpec(True, 5, (), (), ()), None, None, False)


def vector_spec():
    observation = types.ObservationSpec((2,), "float32", False)
    action = types.ActionSpec(False, 0, (2,), (-1.0,) * 2, (1.0,) * 2)
    return types.EnvSpec("test:spec", observation, action, None, None, False)


class Stream(NamedTuple):
    """One stream of experience as a simulator gives it; leaves ``[T, ...]``."""

    steps: types.Transition
    names: Any  # [T] a number for each step, which its reward repeats


def frame(number, channels):
    """A picture that tells its number, as no other step's does."""
    picture = np.full((ROWS, COLUMNS, channels), number % 256, np.uint8)
    picture[0, 0] = number // 256
    return picture


def told_by(obs):
    """The number of an observation: of its newest frame, or the vector's first entry."""
    return float(obs[0]) if obs.ndim == 1 else 256.0 * obs[0, 0, -1] + obs[1, 1, -1]


def stream(total, *, spec, first=0):
    """Episodes of `LENGTHS`, over and over, from the `first` on; an episode begins with its first frame repeated."""
    seen, rows, number, episode = spec.observation, [], 1000 * first, first
    channels = seen.shape[-1] // seen.stack if seen.image else 0

    def show(number):
        return frame(number, channels) if seen.image else np.array([number, -number], np.float32)

    while len(rows) < total:
        length, ending = LENGTHS[episode % len(LENGTHS)]
        now = np.concatenate([show(number)] * seen.stack, axis=-1) if seen.image else show(number)
        for t in range(length):
            following = show(number + 1)
            if seen.image:
                following = np.concatenate([now[..., channels:], following], axis=-1)
            over = t == length - 1
            action = np.int32(number % 5) if spec.action.discrete else np.array([number % 5, 0.5], np.float32)
            ended, cut = over and ending == "ends", over and ending == "cut"
            rows.append((now, action, np.float32(number), np.float32(not ended), np.bool_(cut), following))
            now, number = following, number + 1
        number, episode = number + 1, episode + 1  # the last successor belongs to no step
    steps = [np.stack(leaf) for leaf in zip(*rows[:total], strict=True)]
    return Stream(types.Transition(*steps, ()), steps[2])


def together(streams):
    """``[T, B]`` transitions."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves, axis=1)), *(each.steps for each in streams))


@functools.cache
def compiled(plan, spec):
    """A memory's functions, compiled: one by one, their operations are a hundred small programs."""
    return types.Replay(*map(jax.jit, _memory.build(plan, spec)))


def filled(spec, plan, total, *, pieces):
    """(memory's functions, its content, the streams) after `total` steps of every stream in rollouts of `pieces`."""
    memory = compiled(plan, spec)
    streams = [stream(total, spec=spec, first=b) for b in range(plan.streams)]
    steps, content = together(streams), memory.init()
    for begin in range(0, total, pieces):
        content = memory.add(content, jax.tree.map(lambda leaf, b=begin: leaf[b : b + pieces], steps))
    return memory, content, streams


def truth(steps, t, n_step, *, frames):
    """(reward, discount of what follows, successor, weight) of the transition that begins at t, by a loop."""
    reward, worth, taken, successor = 0.0, 1.0, 0, None
    for k in range(t, t + n_step):
        if frames and steps.truncated[k]:  # its successor is not kept: bootstrap from what was seen before it
            successor = steps.obs[k]
            break
        reward += worth * steps.reward[k]
        worth *= GAMMA * steps.discount[k]
        taken += 1
        successor = steps.next_obs[k]
        if steps.discount[k] == 0 or steps.truncated[k]:
            break
    return reward, worth, successor, float(taken > 0)


def plan(capacity=48, batch=400, n_step=1, streams=1, prioritised=False):
    return _memory.Plan(capacity, batch, n_step, streams, prioritised)


CASES = [  # (kind, stack, channels, n_step, streams, steps added, of rollouts)
    ("images", 4, 1, 1, 1, 40, 8),  # not full
    ("images", 4, 1, 1, 1, 131, 1),  # the ring has gone round twice, one step at a time
    ("images", 4, 1, 3, 2, 120, 5),
    ("images", 3, 2, 2, 3, 96, 16),  # colour, as many steps at once as there is room for
    ("images", 1, 3, 2, 2, 70, 7),  # no stack
    ("vectors", 1, 0, 1, 2, 60, 4),
    ("vectors", 1, 0, 4, 3, 64, 8),
    ("vectors", 1, 0, 2, 1, 20, 20),
]


@pytest.mark.parametrize(("kind", "stack", "channels", "n_step", "streams", "total", "pieces"), CASES)
@pytest.mark.parametrize("prioritised", [False, True], ids=["uniform", "prioritised"])
def test_what_is_sampled_is_what_happened(kind, stack, channels, n_step, streams, total, pieces, prioritised):
    frames = kind == "images"
    spec = image_spec(stack, channels) if frames else vector_spec()
    memory, content, told = filled(
        spec, plan(n_step=n_step, streams=streams, prioritised=prioritised), total, pieces=pieces
    )
    priorities = _memory.Priorities(jnp.float32(0.6), jnp.float32(0.0))
    begun = {float(name): (b, t) for b, each in enumerate(told) for t, name in enumerate(each.names)}
    seen, cut, ended = set(), 0, 0
    for key in jax.random.split(jax.random.key(0), 4):
        drawn = jax.tree.map(np.asarray, memory.sample(content, jnp.float32(GAMMA), priorities, key))
        for i in range(len(drawn.reward)):
            b, t = begun[told_by(drawn.obs[i])]
            seen.add((b, t))
            steps = told[b].steps
            reward, worth, successor, weight = truth(steps, t, n_step, frames=frames)
            np.testing.assert_allclose(drawn.reward[i], reward, rtol=1e-5)
            np.testing.assert_allclose(drawn.discount[i], worth, rtol=1e-5)
            np.testing.assert_array_equal(drawn.obs[i], steps.obs[t])
            np.testing.assert_array_equal(drawn.action[i], steps.action[t])
            assert drawn.weight[i] == weight
            if worth > 0:  # else nothing is bootstrapped
                np.testing.assert_array_equal(drawn.next_obs[i], successor)
            cut += steps.truncated[t]
            ended += steps.discount[t] == 0
    assert cut, "a step cut by a time limit was drawn"
    assert ended, "and one that terminated"
    held = min(total, 48 // streams)
    before, after = (stack - 1, n_step) if frames else (0, n_step - 1)
    inside = {(b, t) for b in range(streams) for t in range(total - held + before, total - after)}
    assert seen == inside, "everything kept whole is drawn, and nothing else"


def test_frames_are_kept_once():
    for capacity, streams in ((1000, 1), (4096, 8)):
        spec = image_spec(4, shape=(84, 84))
        memory = _memory.build(plan(capacity=capacity, streams=streams), spec)
        bytes = tree.bytes(jax.eval_shape(memory.init))
        assert 0 <= bytes - capacity * 84 * 84 <= capacity * 16 + 64, "one frame and a few numbers a step"
    whole = tree.bytes(jax.eval_shape(_memory.build(plan(capacity=1000), vector_spec()).init))
    assert 0 <= whole - 1000 * (2 * 8 + 8 + 4 + 4 + 1) <= 64, "of vectors, the true successor too"


@pytest.mark.parametrize("prioritised", [False, True])
def test_the_bytes_told_are_those_allocated(prioritised):
    memory = compiled(plan(capacity=300, streams=3, prioritised=prioritised), image_spec(4))
    content = memory.init()
    assert tree.bytes(jax.eval_shape(memory.init)) == sum(leaf.nbytes for leaf in jax.tree.leaves(content))
    assert tree.bytes(content) == tree.bytes(content)


GROWTH = """
import jax, jax.numpy as jnp, numpy as np, sys
from shoal.algorithms import _memory as replay
from shoal.core import tree, types
spec = types.EnvSpec("test:atari", types.ObservationSpec((84, 84, 4), "uint8", True, 4),
                     types.ActionSpec(True, 6, (), (), ()), None, None, False)
from shoal import algorithms, networks
from shoal.core import registry
from shoal.formulas import optimise
module, none = registry.load("algorithm", "dqn"), registry.load("corrector", "none")
given = algorithms.Ingredients(spec, networks.Config(torso="mlp", hidden=()), optimise.local(optimise.Config(), 10),
                               none.build(none.Config()), 1)
agent = module.build(module.Config(capacity=100_000, learning_starts=10**6), given)
told = tree.bytes(jax.eval_shape(agent.init, jax.random.key(0)).memory)
memory = replay.build(replay.Plan(100_000, 32, 1, 1, False), spec)
T = 200
def rollout():
    obs = np.full((T, 1, 84, 84, 4), 7, np.uint8)
    flags = np.zeros((T, 1), bool)
    zeros = np.zeros((T, 1), np.float32)
    return types.Transition(obs, np.zeros((T, 1), np.int32), zeros, zeros + 1, flags, obs, ())
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
given, small = rollout(), replay.build(replay.Plan(1000, 32, 1, 1, False), spec)
jax.block_until_ready(jax.jit(small.add, donate_argnums=0)(small.init(), given))  # what a call takes besides
start = jax.jit(memory.init).lower().compile()
add = jax.jit(memory.add, donate_argnums=0).lower(jax.eval_shape(memory.init), given).compile()
before = resident()
content = start()
for _ in range(100_000 // T):
    content = jax.block_until_ready(add(content, given))  # one at a time: calls under way hold what they were given
print(told, resident() - before)
"""


def test_a_memory_of_a_hundred_thousand_pictures_grows_as_was_told():
    """In a process of its own; what was told before anything is made, and what the process has grown by."""
    ran = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    told, grown = map(int, ran.stdout.split())
    assert told == pytest.approx(100_000 * 84 * 84, rel=0.01)
    assert grown == pytest.approx(told, rel=0.1)


def test_uniform_means_uniform():
    memory, content, _ = filled(vector_spec(), plan(capacity=40, streams=2, batch=20_000), 50, pieces=10)
    drawn = memory.sample(content, jnp.float32(GAMMA), (), jax.random.key(1))
    names, counts = np.unique(np.asarray(drawn.obs)[:, 0], return_counts=True)
    assert len(names) == 40
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(drawn.weight, 1.0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.4), (1.0, 1.0), (0.0, 0.7)])
def test_priorities_decide_how_often_and_weights_make_up_for_it(alpha, beta):
    memory, content, _ = filled(vector_spec(), plan(capacity=16, prioritised=True, batch=16_000), 16, pieces=4)
    priorities = _memory.Priorities(jnp.float32(alpha), jnp.float32(beta))
    first = memory.sample(content, jnp.float32(GAMMA), priorities, jax.random.key(0))
    np.testing.assert_allclose(first.weight, 1.0, rtol=1e-5)
    assert len(np.unique(first.index)) == 16, "all have the same chance before anything is known"
    error = np.linspace(-3.0, 4.0, 16).astype(np.float32)
    content = memory.reprioritise(content, jnp.arange(16), jnp.asarray(error), priorities)
    drawn = memory.sample(content, jnp.float32(GAMMA), priorities, jax.random.key(1))
    chance = (np.abs(error.astype(np.float64)) + 1e-6) ** alpha
    chance /= chance.sum()
    counts = np.bincount(np.asarray(drawn.index), minlength=16)
    np.testing.assert_allclose(counts / 16_000, chance, atol=0.002)  # stratified: closer than independent draws
    weight = (16 * chance) ** -beta
    index = np.asarray(drawn.index)
    np.testing.assert_allclose(drawn.weight, weight[index] / weight[index].max(), rtol=1e-4)
    assert drawn.weight.max() == 1.0


def test_new_experience_is_not_passed_over():
    memory, content, _ = filled(vector_spec(), plan(capacity=16, prioritised=True, batch=640), 8, pieces=4)
    priorities = _memory.Priorities(jnp.float32(1.0), jnp.float32(0.4))
    content = memory.reprioritise(content, jnp.arange(8), jnp.full(8, 1e-3), priorities)
    more = together([stream(12, spec=vector_spec())])
    content = memory.add(content, jax.tree.map(lambda leaf: leaf[8:], more))
    drawn = memory.sample(content, jnp.float32(GAMMA), priorities, jax.random.key(0))
    assert (np.asarray(drawn.index) >= 8).mean() > 0.9


def test_an_error_that_is_not_finite_spoils_nothing_and_is_not_drawn_again():
    memory, content, _ = filled(vector_spec(), plan(capacity=16, prioritised=True, batch=640), 16, pieces=4)
    priorities = _memory.Priorities(jnp.float32(0.6), jnp.float32(0.4))
    bad = jnp.array([jnp.nan, 1.0, jnp.inf, 0.5])
    content = memory.reprioritise(content, jnp.arange(4), bad, priorities)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(content))
    drawn = memory.sample(content, jnp.float32(GAMMA), priorities, jax.random.key(0))
    assert set(np.asarray(drawn.index).tolist()) == set(range(16)) - {0, 2}
    assert np.isfinite(drawn.weight).all()


def test_a_place_that_holds_nothing_weighs_nothing_and_stays_empty():
    """What rounding at the edge of the tree may lead to."""
    memory, content, _ = filled(vector_spec(), plan(capacity=16, prioritised=True, batch=8), 12, pieces=4)
    priorities = _memory.Priorities(jnp.float32(0.6), jnp.float32(0.4))
    nodes = content.sum_tree_state.nodes
    empty = content.replace(sum_tree_state=content.sum_tree_state.replace(nodes=nodes.at[0].set(nodes[0] * 2.0)))
    drawn = memory.sample(empty, jnp.float32(GAMMA), priorities, jax.random.key(0))
    outside = np.asarray(drawn.index) >= 12
    assert outside.any()
    np.testing.assert_array_equal(np.asarray(drawn.weight)[outside], 0.0)
    assert (np.asarray(drawn.weight)[~outside] > 0.5).all(), "and takes no weight from the others"
    after = memory.reprioritise(empty, drawn.index, jnp.ones(8), priorities)
    np.testing.assert_array_equal(after.sum_tree_state.nodes[-4:], 0.0)


def test_no_sample_before_there_is_a_whole_sequence():
    memory = compiled(plan(n_step=3, batch=4), image_spec(4))
    content, told = memory.init(), stream(20, spec=image_spec(4))
    for t in range(10):
        assert bool(memory.filled(content)) == (t >= 3 + 3 + 1)
        content = memory.add(content, jax.tree.map(lambda leaf, t=t: jnp.asarray(leaf[t : t + 1, None]), told.steps))


@pytest.mark.parametrize(
    ("spec", "given", "needed"),
    [
        (vector_spec(), plan(capacity=7, streams=4), 8),
        (vector_spec(), plan(capacity=23, streams=4, n_step=5), 24),
        (image_spec(4), plan(capacity=11, streams=2), 12),
        (vector_spec(), _memory.Plan(63, 4, 1, 4, False, rollout_length=16), 64),
    ],
)
def test_a_memory_too_small_is_refused_with_what_is_needed(spec, given, needed):
    with pytest.raises(errors.Refused, match=f"capacity={given.capacity} leaves .* give at least {needed}"):
        _memory.build(given, spec)
    assert _memory.build(given._replace(capacity=needed), spec)


def test_a_step_that_weighs_nothing_gets_no_priority():
    """A cut step of pictures is never learned from: it must not be drawn for its error for ever."""
    memory, content, _ = filled(image_spec(4), plan(capacity=48, batch=64, prioritised=True), 40, pieces=8)
    priorities = _memory.Priorities(jnp.float32(1.0), jnp.float32(0.0))

    def learn(learner, drawn, key):
        del key
        return learner, jnp.full(64, 5.0), {"weight": drawn.weight.mean()}

    practice = types.Practice(
        plan=None,
        prepare=None,
        ready=lambda state: jnp.asarray(True),  # noqa: ARG005
        drawing=lambda state: (jnp.float32(GAMMA), priorities),  # noqa: ARG005
        learn=learn,
        updates=3,
    )
    _, after, _ = _memory.practise(practice, memory, (), content, jax.random.key(0))
    drawn = memory.sample(after, jnp.float32(GAMMA), priorities, jax.random.key(9))
    assert (np.asarray(drawn.weight) > 0).all()


@pytest.mark.parametrize("spec", [vector_spec(), image_spec(2)], ids=["vectors", "frames"])
@pytest.mark.parametrize("going_on", [True, False], ids=["mid-episode", "at an end"])
def test_a_stream_that_breaks_off_is_cut_at_its_newest_step(spec, going_on):
    """A resume whose simulators begin anew: no return joins the step before it to the one after."""
    total = 6 if going_on else 3  # the first episode of `LENGTHS` ends with its third step
    memory, state, _ = filled(spec, plan(), total, pieces=total)
    before, cut = state.experience, memory.cut(state)
    ended = np.asarray(cut.experience.truncated)
    assert ended[0, total - 1] == going_on, "an end that is real stays one"
    assert (np.delete(ended[0], total - 1) == np.delete(np.asarray(before.truncated)[0], total - 1)).all()
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), cut.experience._replace(truncated=()), before._replace(truncated=()))
    )
