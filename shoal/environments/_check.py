"""What `shoal check-env ID` finds: what the agent will see, and whether the environment keeps its promises.

Random actions are taken twice from the same seed. Whatever the environment raises is a finding, not a crash; only an
environment that cannot be opened is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epy

from shoal import environments
from shoal.core import registry, types
from shoal.environments import _walk

with epy.lazy_imports():
    import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

ON_DEVICE = "on_device"  # the runtime that compiles the environment too

OWN_RANDOMNESS = "draw all randomness from self.np_random, which super().reset(seed=seed) seeds"


class Finding(NamedTuple):
    """One broken promise."""

    what: str
    remedy: str


class Findings(NamedTuple):
    """Everything `check` found out."""

    spec: types.EnvSpec
    steps: int  # random actions taken
    episodes: int  # that ended among them
    terminated: int
    truncated: int
    return_mean: float | None  # of the ended episodes; None without any, or where it is not finite
    length_mean: float | None  # steps
    steps_per_s: float | None  # one environment on the host, adapter included; None if it raised
    deterministic: bool | None  # same seed, same actions: same observations and rewards; None if it raised
    seed_matters: bool  # another seed begins with another observation
    runtimes: tuple[str, ...]  # that can train on it
    problems: tuple[Finding, ...]
    remarks: tuple[str, ...]  # worth knowing; nothing to mend

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite bound becomes None."""
        action = self.spec.action
        bounds = {name: [_finite(x) for x in getattr(action, name)] for name in ("low", "high")}
        spec = self.spec._asdict() | {
            "observation": self.spec.observation._asdict(),
            "action": action._asdict() | bounds,
            "notes": list(self.spec.notes),
            "shown": list(self.spec.shown),
        }
        problems = [problem._asdict() for problem in self.problems]
        lists = {"runtimes": list(self.runtimes), "problems": problems, "remarks": list(self.remarks)}
        return {"env": self.spec.id, "ok": self.ok, **self._asdict(), "spec": spec, **lists}


def check(env_id: str, config: environments.Config, steps: int = 2000, seed: int = 0) -> Findings:
    """Look at one environment.

    Args:
        env_id: As for `environments.open`.
        config: How it is shown to the agent.
        steps: Random actions to take, twice.
        seed: Of the environment and the actions.

    Raises:
        Refused: The environment cannot be opened.
    """
    opened = environments.open(env_id, config)
    walk, again = (_walk.walk(opened, steps, seed) for _ in range(2))
    audit = environments.adapter(env_id).audit(env_id, config, steps)  # what the simulator library itself says
    foreign = (Finding(line, "its library asks for this") for line in audit.problems)
    problems = [*_problems(opened.spec, walk, again), *foreign]
    lengths, returns = _walk.episodes(walk)
    cut = sum(bool(outcome.truncated) for outcome in walk.outcomes)
    others = (_walk.walk(opened, 0, seed + other).first for other in range(1, 8))
    seed_matters = any(not np.array_equal(walk.first, first) for first in others)
    return Findings(
        spec=opened.spec,
        steps=len(walk.outcomes),
        episodes=len(lengths),
        terminated=len(lengths) - cut,
        truncated=cut,
        return_mean=_finite(float(np.mean(returns))) if returns else None,
        length_mean=float(np.mean(lengths)) if lengths else None,
        steps_per_s=_speed(walk),
        deterministic=None if walk.raised else _walk.same(walk, again),
        seed_matters=seed_matters,
        runtimes=tuple(name for name in registry.names("runtime") if opened.device or name != ON_DEVICE),
        problems=tuple(problems),
        remarks=(*_remarks(opened.spec, lengths, seed_matters), *audit.remarks),
    )


def first(opened: environments.Opened) -> Finding | None:
    """What one reset and one step show to be wrong, in the words of `check`; None where nothing is.

    Numbers that are not finite are left to training, which keeps them out. An environment that is compiled is not
    looked at: its shapes are checked when it is.

    Args:
        opened: The environment.
    """
    if opened.device is not None:
        return None
    walk = _walk.walk(opened, 1, seed=0)
    return next(_raised(walk), None) or _wrong_shape(opened.spec, walk)


def repeats(opened: environments.Opened, steps: int = 300) -> bool:
    """Whether the same seed and actions give the same twice; what is compiled from keys always does.

    Args:
        opened: The environment.
        steps: Random actions to take, twice.
    """
    if opened.device is not None:
        return True
    walk, again = (_walk.walk(opened, steps, seed=0) for _ in range(2))
    return not walk.raised and _walk.same(walk, again)


def lines(findings: Findings) -> list[str]:
    """The findings for people, a line each."""
    spec, seen = findings.spec, findings.spec.observation
    kind = "image" if seen.image else "vector"
    shown = [
        f"{spec.id}: {'keeps its promises' if findings.ok else f'{len(findings.problems)} problem(s)'}",
        f"  sees      {kind} {list(seen.shape)} {seen.dtype}{_bytes_line(seen)}",
        f"  does      {_action_line(spec.action)}",
        f"  limit     {spec.time_limit or 'no time limit'}{' steps' if spec.time_limit else ''}",
        f"  solved    {'no threshold known' if spec.solved_at is None else f'at a return of {spec.solved_at:g}'}",
        f"  episodes  {findings.episodes} in {findings.steps} random actions: "
        f"{findings.terminated} terminated, {findings.truncated} truncated",
    ]
    if findings.return_mean is not None:
        shown.append(f"  return    {findings.return_mean:.3g} in {findings.length_mean:.1f} steps, on average")
    if findings.steps_per_s:
        shown.append(f"  speed     {findings.steps_per_s:,.0f} steps/s, one environment on the host")
    shown.append(f"  runtimes  {', '.join(findings.runtimes) or 'none installed'}")
    shown += [f"  note      {note}" for note in (*spec.notes, *findings.remarks)]
    shown += [f"  PROBLEM   {problem.what}; {problem.remedy}" for problem in findings.problems]
    return shown


# ------------------------------------------------------------------------------------------------ judging


def _problems(spec: types.EnvSpec, walk: _walk.Walk, again: _walk.Walk) -> Iterator[Finding]:
    if walk.raised:
        yield from _raised(walk)
        return
    if wrong := _wrong_shape(spec, walk) or _not_finite(walk):
        yield wrong
    rewards = np.array([outcome.reward for outcome in walk.outcomes])
    if not np.isfinite(rewards).all():
        yield Finding(f"the reward of step {_first(~np.isfinite(rewards))} is not finite", "return finite rewards")
    if not np.array_equal(walk.first, again.first):
        yield Finding("the same seed began with different observations", OWN_RANDOMNESS)
    elif not _walk.same(walk, again):
        yield Finding("the same seed and actions gave different observations or rewards", OWN_RANDOMNESS)
    if _shows_reset(walk):
        remedy = "the last observation must be the episode's own: do not reset inside step"
        yield Finding("the last observation of every episode is the first of the next", remedy)


def _raised(walk: _walk.Walk) -> Iterator[Finding]:
    if walk.raised:
        where = f"step {len(walk.outcomes) + 1}" if walk.begun else "the first reset"
        yield Finding(f"{where} raised {walk.raised}", "mend the environment")


def _seen(walk: _walk.Walk) -> Iterator[tuple[int, np.ndarray]]:
    """Every observation, with the step it belongs to; what a reset within the walk showed is left out."""
    yield from enumerate([walk.first, *(outcome.next_obs for outcome in walk.outcomes)])


def _wrong_shape(spec: types.EnvSpec, walk: _walk.Walk) -> Finding | None:
    """The first observation that is not what the spec says."""
    shape, dtype = spec.observation.shape, spec.observation.dtype
    for step, obs in _seen(walk):
        if obs.shape != shape or obs.dtype != dtype:
            given = f"{obs.dtype}{list(obs.shape)}, declared is {dtype}{list(shape)}"
            return Finding(f"the observation of step {step} is {given}", "return what observation_space declares")
    return None


def _not_finite(walk: _walk.Walk) -> Finding | None:
    """The first observation that is not finite."""
    wrong = next((step for step, obs in _seen(walk) if not np.isfinite(obs).all()), None)
    return (
        None
        if wrong is None
        else Finding(f"the observation of step {wrong} is not finite", "return finite observations")
    )


def _shows_reset(walk: _walk.Walk) -> bool:
    """Whether every end shows the next episode's first observation although observations change within episodes."""
    pairs = list(zip(walk.obs, walk.outcomes, strict=True))
    ends = [(obs, outcome) for obs, outcome in pairs if _walk.over(outcome)]
    moves = any(not np.array_equal(obs, walk.first) for obs, _ in pairs)
    return moves and len(ends) > 1 and all(np.array_equal(obs, outcome.next_obs) for obs, outcome in ends)


def _remarks(spec: types.EnvSpec, lengths: list[int], seed_matters: bool) -> Iterator[str]:
    if not seed_matters:
        yield "every seed begins with the same observation"
    if not lengths:
        advice = "" if spec.time_limit else ", and there is no time limit: give one, or training may never see an end"
        yield f"no episode ended within the steps taken{advice}"


def _speed(walk: _walk.Walk) -> float | None:
    timed = len(walk.outcomes) - 1  # the first step compiles
    return None if walk.raised or timed < 1 else timed / walk.seconds


def _first(wrong: np.ndarray) -> int:
    return int(np.argmax(wrong)) + 1


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _bytes_line(seen: types.ObservationSpec) -> str:
    """What networks do to bytes that are not those of every picture."""
    if not seen.low or (seen.low, seen.high, seen.image) == ((0.0,), (255.0,), True):
        return ""
    return f", bytes from {min(seen.low):g} to {max(seen.high):g} brought to [0, 1]"


def _action_line(spec: types.ActionSpec) -> str:
    if spec.sizes:
        kinds = " and ".join(f"{spec.sizes.count(n)} of {n}" for n in dict.fromkeys(spec.sizes))
        return f"{len(spec.sizes)} choices at once: {kinds}"
    if spec.discrete:
        return f"one of {spec.n} choices"
    return f"vector {list(spec.shape)} from {min(spec.low):g} to {max(spec.high):g}"
