"""The policy of a finished run as its compressor packs it, on observations that the policy itself comes to see."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from etils import epy

from shoal import experiment
from shoal.core import errors, seeds, types

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal.compress import _payload
    from shoal.networks import compact
    from shoal.runs import evaluation

OBSERVATIONS = 2048  # as many as an actor's publisher looks at
STUDY_S = 60.0  # seconds that a student learns at most
STUDIES = 400  # steps of learning, at most


class Measured(NamedTuple):
    """Mean returns of both policies on the same seeds; None where a simulator paid what is not finite."""

    full: float | None
    compressed: float | None
    episodes: int


def pack(
    built: experiment.Built, made: experiment.Experiment, policy: types.Policy, say: Callable[[str], None]
) -> types.Packed:
    """A policy packed.

    Args:
        built: Its run's parts.
        made: Its run.
        policy: NumPy leaves.
        say: Told what takes a while.

    Raises:
        Refused: The run's compressor leaves the policy as it is, or cannot be used with it.
        Unfit: What came out is not finite.
    """
    compressor = built.parts.compressor
    if compressor is None or made.compressor == "identity":
        raise errors.Refused(
            f"--compressed is for runs with a compressor, and this one was trained with {made.compressor}, which "
            "leaves the policy as it is; leave it out"
        )
    if compressor.refuses:
        raise errors.Refused(f"--compressor {made.compressor}: {compressor.refuses}")
    obs = np.zeros((0, *built.parts.spec.observation.shape), built.parts.spec.observation.dtype)
    if compressor.needs_obs:
        say(f"collecting {OBSERVATIONS} observations")
        obs = observations(built.parts, policy, made.seed, OBSERVATIONS)
    memory = compressor.init(policy, seeds.key(made.seed, "compress", "init"))
    if compressor.study is not None:
        memory = _taught(compressor, memory, policy, obs, made.seed, say)
    return compressor.compress(memory, policy, obs, seeds.key(made.seed, "compress", "export"))[1]


def _taught(
    compressor: types.Compressor,
    memory: types.Memory,
    policy: types.Policy,
    obs: types.Obs,
    seed: int,
    say: Callable[[str], None],
) -> types.Memory:
    """What a student has learned after a while."""
    assert compressor.study is not None
    began = time.monotonic()
    told: types.Metrics = {}
    say("teaching the student")
    for i in range(STUDIES):
        memory, told = compressor.study(memory, policy, obs, seeds.key(seed, "compress", "study", i))
        if time.monotonic() - began > STUDY_S:
            break
    say("the student: " + ", ".join(f"{name} {float(value):.4g}" for name, value in told.items()))
    return memory


def observations(parts: types.Parts, policy: types.Policy, seed: int, count: int) -> np.ndarray:
    """What the policy sees when it acts as in training, ``[count, *obs]``."""
    act, key, carry = jax.jit(parts.agent.act), seeds.key(seed, "compress", "acting"), parts.agent.about.carry
    rows = []
    with contextlib.closing(parts.environment.host()) as env:
        obs = env.reset(seeds.derive(seed, "compress", "environment"))
        for i in range(count):
            rows.append(np.array(obs))
            action, _, carry = act(policy, carry, obs, jax.random.fold_in(key, i))
            obs, outcome = env.step(np.asarray(action))
            if outcome.discount == 0 or outcome.truncated:
                carry = parts.agent.about.carry
    return np.stack(rows)


def network(packed: types.Packed) -> compact.Compact:
    """The network in a packed policy.

    Raises:
        ValueError: It is damaged.
    """
    _payload.check(packed)
    return _payload.Room(packed.payload).network


def measure(
    built: experiment.Built,
    made: experiment.Experiment,
    policy: types.Policy,
    packed: types.Packed,
    episodes: int,
    say: Callable[[str], None],
) -> Measured:
    """Play the same episodes with the policy and with what was packed of it; greedily."""

    def mean(packed: types.Packed | None) -> float | None:
        played = evaluation.evaluate(
            built.parts,
            policy,
            episodes,
            made.seed,
            streams=evaluation.streams(made),
            say=say,
            packed=packed,
            simulators=True,
        )
        found = played.summary()["eval_return_mean"]
        return None if found is None else float(found)

    return Measured(mean(None), mean(packed), episodes)
