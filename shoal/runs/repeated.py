"""A population done again: from its seed, with the recorded exchanges, up to its newest checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import environments, experiment
from shoal.core import errors, tree, types
from shoal.runs import checkpoint, origin
from shoal.runtimes.population import lineage, repeating

with epy.lazy_imports():
    import jax

SAY_EVERY = 10.0  # seconds


class Repeated(NamedTuple):
    """What came of it."""

    equal: bool
    tickets: int  # exchanges done again
    updates: int  # of every member
    compared: int
    first_difference: int | None  # updates at the first event that came out otherwise, or at the end
    params_sha256: str
    expected_sha256: str
    seconds: float


def again(folder: Path, made: experiment.Experiment, say: Callable[[str], None]) -> Repeated:
    """Do it.

    Args:
        folder: The run folder.
        made: Its experiment.
        say: Told what is going on.

    Raises:
        Refused: There is no lineage, or nothing to compare with.
    """
    if made.earlier and made.anneal is None and made.configs["optimiser"].anneal:
        raise errors.Refused(
            f"{folder} went on with --reanneal, so its first life had other learning rates than config.json says; "
            "train anew with all its steps to have a run that can be replayed"
        )
    if not environments.pure_jax(made.env):
        raise errors.Refused(
            f"{folder} cannot be replayed: {made.env} is stepped in Python, and what a simulator does once more is not "
            "known; only populations whose environment is compiled (gymnax:, brax:, ...) are"
        )
    events = lineage.read(folder)
    experiment.prepare(made.runtime, made.algorithm, made.configs)
    opened = environments.open(made.env, made.configs["environment"])
    built = experiment.build(made, opened)
    if (start := origin.read(folder, made, built.parts.agent, say)) is not None:
        built = experiment.build(made, opened, start)
    parts, runtime = built.parts, _repeats(built.runtime)
    try:
        kept = checkpoint.newest(folder / "checkpoints", runtime.like(parts, made.seed), say, set_aside=False)
    except errors.NoCheckpoint as problem:
        raise errors.Refused(f"{folder} has no checkpoint to compare with ({problem}); let it train on") from None
    expected = tree.sha256(jax.device_get(runtime.policy(parts, made.seed, kept.tree)).params)
    watch = _Watch(int(kept.meta["env_steps"]), say)
    began = time.monotonic()
    given = repeating.Again([event for event in events if event.update <= _updates(kept)], kept.tree.standing)
    result = runtime.repeat(parts, made.seed, made.steps, watch, given)
    found = tree.sha256(result.policy.params)
    now: Any = result.final.artefacts[lineage.FILE]
    apart = repeating.difference(given.events, now.events())
    if apart is None and found != expected:
        apart = result.final.updates
    return Repeated(
        equal=apart is None,
        tickets=len(lineage.rounds(now.events())),
        updates=result.final.updates,
        compared=1,
        first_difference=apart,
        params_sha256=found,
        expected_sha256=expected,
        seconds=time.monotonic() - began,
    )


def _repeats(runtime: Any) -> types.Repeats:
    """A runtime whose ways say that it `repeats`."""
    made: types.Repeats = runtime
    return made


def _updates(kept: checkpoint.Loaded) -> int:
    return int(kept.meta["updates"])


class _Watch:
    """The observer: ends it where the checkpoint was made."""

    def __init__(self, env_steps: int, say: Callable[[str], None]) -> None:
        self._until, self._say, self._said = env_steps, say, time.monotonic()

    def __call__(self, progress: types.Progress) -> bool:
        if progress.stage is not None:
            return True
        if time.monotonic() - self._said > SAY_EVERY:
            self._said = time.monotonic()
            self._say(f"step {progress.env_steps:,} of {self._until:,}")
        return progress.env_steps < self._until

    def fault(self, kind: str, message: str) -> None:
        """See `types.Observer`."""
        self._say(f"{kind}: {message}")
