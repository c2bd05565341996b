"""What `shoal check-env ID` finds: what the agent will see, and whether the environment keeps its promises.

Random actions are taken twice from the same seed. Whatever the environment raises is a finding, not a crash; only an
environment that cannot be opened is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epy

from shoal import environments, registry, types
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
    audit = _audit(env_id, config, steps)
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


def lines(findings: Findings) -> list[str]:
    """The findings for people, a line each."""
    spec, seen = findings.spec, findings.spec.observation
    kind = "image" if seen.image else "vector"
    shown = [
        f"{spec.id}: {'keeps its promises' if findings.ok else f'{len(findings.problems)} problem(s)'}",
        f"  sees      {kind} {list(seen.shape)} {seen.dtype}",
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


def _audit(env_id: str, config: environments.Config, steps: int) -> environments.Audit:
    """What the simulator library itself says, where it has a checker."""
    adapter = registry.load("environment", environments.split(env_id)[0])
    audit = getattr(adapter, "audit", None)
    return audit(env_id, config, steps) if audit else environments.Audit((), ())


def _problems(spec: types.EnvSpec, walk: _walk.Walk, again: _walk.Walk) -> Iterator[Finding]:
    if walk.raised:
        yield Finding(f"step {len(walk.outcomes) + 1} raised {walk.raised}", "mend the environment")
        return
    yield from _wrong_arrays(spec, walk)
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


def _wrong_arrays(spec: types.EnvSpec, walk: _walk.Walk) -> Iterator[Finding]:
    """The first observation that is not what the spec says."""
    shape, dtype = spec.observation.shape, spec.observation.dtype
    for step, obs in enumerate([walk.first, *(outcome.next_obs for outcome in walk.outcomes)]):
        if obs.shape != shape or obs.dtype != dtype:
            given = f"{obs.dtype}{list(obs.shape)}, declared is {dtype}{list(shape)}"
            yield Finding(f"the observation of step {step} is {given}", "return what observation_space declares")
            return
        if not np.isfinite(obs).all():
            yield Finding(f"the observation of step {step} is not finite", "return finite observations")
            return


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


def _action_line(spec: types.ActionSpec) -> str:
    if spec.discrete:
        return f"one of {spec.n} choices"
    return f"vector {list(spec.shape)} from {min(spec.low):g} to {max(spec.high):g}"
