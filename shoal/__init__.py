"""Shoal trains deep-RL agents that learn together: one agent definition, every way of training together, one command.

    import shoal

    run = shoal.train("a3c", env="CartPole-v1", workers=2, until="solved")
    print(run.summary["return_mean"], run.evaluate().returns)

`train`, `resume` and `load` are all a script needs; the parts are modules of this package (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from shoal.runs.training import Group, Run

    Environment = str | type | Callable[..., Any] | None

__version__ = "0.1.0"
__all__ = ["__version__", "load", "resume", "train"]


@overload
def train(preset: str, env: Environment = None, *, seeds: None = None, **given: Any) -> Run: ...
@overload
def train(preset: str, env: Environment = None, *, seeds: int, **given: Any) -> Group: ...
def train(
    preset: str,
    env: Environment = None,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    steps: int | None = None,
    seed: int = 0,
    seeds: int | None = None,
    workers: int | None = None,
    members: int | None = None,
    parties: int | str | Path | Sequence[Mapping[str, Any]] | None = None,
    runtime: str | Mapping[str, Any] | None = None,
    corrector: str | Mapping[str, Any] | None = None,
    compressor: str | Mapping[str, Any] | None = None,
    until: float | str | None = None,
    episodes: int | None = None,
    start: str | Path | None = None,
    settings_file: str | Path | None = None,
    from_schedule: str | Path | None = None,
    evaluate_every: int | None = None,
    evaluate_episodes: int | None = None,
    out: str | Path | None = None,
    eval_episodes: int = 20,
    quiet: bool = False,
    **parts: Mapping[str, Any],
) -> Run | Group:
    """Train a preset and return the run; with `seeds`, the group of runs.

    Args:
        preset: A name of `shoal list presets`.
        env: An environment id, or a class or function that makes one (found by other processes if it is at the top of
            a module); the preset's own when None.
        env_kwargs: Keyword arguments of its constructor; short for ``environment={"kwargs": ...}``.
        steps: Environment steps; the preset's tuned number when None.
        seed: Seed of everything random.
        seeds: Train so many seeds, from `seed` on, in one program; runtimes on_device, host,
            population and federated.
        workers: Worker processes, for runtimes that have them.
        members: Of a population.
        parties: Owners that train together: how many, or a parties file, or its tables as mappings (``name``, ``env``,
            and settings of ``environment``, ``network`` and ``optimiser``).
        runtime: Overrides the preset's runtime: a name, or settings (``{"name": "host", "environments": 16}``; the
            name may be left out).
        corrector: Likewise, one of `shoal list correctors`.
        compressor: Likewise, one of `shoal list compressors`.
        until: Stop early at this mean return of the last 100 episodes; ``"solved"`` takes the environment's own.
        episodes: Stop after so many training episodes, of each seed; or at `steps`, if that comes first.
        start: A run whose policy, with its statistics of observations, this one starts from; shapes must be the same.
        settings_file: Settings as `shoal tune` writes them (best.json); the other arguments win over it.
        from_schedule: A population's run: one agent alone follows the schedule of hyperparameters that won there, for
            as many steps as a member had if `steps` is None.
        evaluate_every: Also evaluate while it trains, every so many environment steps; the best policy is kept.
        evaluate_episodes: Episodes of each of these evaluations; 10 when None.
        out: The run folder; a new one under ``runs/`` when None.
        eval_episodes: Episodes of the evaluation at the end.
        quiet: Show nothing on stderr.
        **parts: Settings by kind of part, e.g. ``algorithm={"entropy_cost": 0.0}``.

    Raises:
        shoal.core.errors.Refused: The request cannot be carried out; nothing was created.
        shoal.core.errors.GaveUp: The run could not be kept going.
    """
    from shoal import log
    from shoal.core import errors, importing
    from shoal.experiment import filed, presets
    from shoal.experiment import parties as owners
    from shoal.runs import training

    settings: dict[str, Mapping[str, Any]] = dict(parts)
    names: dict[str, Any] = {}
    for kind, given in (("runtime", runtime), ("corrector", corrector), ("compressor", compressor)):
        if not (given is None or isinstance(given, str | Mapping)):
            raise errors.Refused(f"{kind}={given!r} is neither a name nor settings; give e.g. {kind}={{'name': ...}}")
        named = {"name": given} if given is None or isinstance(given, str) else dict(given)
        names[kind] = named.pop("name", None)
        settings[kind] = named
    if env_kwargs is not None:
        environment = settings.get("environment", {})
        if "kwargs" in environment:
            presets.one_value("env_kwargs", env_kwargs, "environment.kwargs", environment["kwargs"])
        settings["environment"] = {"kwargs": env_kwargs, **environment}
    if env is not None and not isinstance(env, str):
        env = importing.name_of(env)
    request = presets.Request(
        preset=preset, env=env, steps=steps, seed=seed, **names, until=until, episodes=episodes, start=start,
        settings=settings, from_schedule=from_schedule,
        evaluate_every=evaluate_every, evaluate_episodes=evaluate_episodes,
    )  # fmt: skip
    if parties is not None and not isinstance(parties, int):
        request = owners.over(request, parties)
    if settings_file is not None:
        request = filed.over(request, filed.read(settings_file, preset))
    counts = {"workers": workers, "members": members, "parties": parties if isinstance(parties, int) else None}
    for name, (short, value) in presets.shortened(request, counts).items():
        presets.one_value(short, value, f"runtime.{name}", settings["runtime"].get(name, value))
        settings["runtime"] = {**settings["runtime"], name: value}
    if seeds is None:
        return training.train(request, out, console=log.pick(quiet), eval_episodes=eval_episodes)
    return training.train_seeds(request, seeds, out, console=log.pick(quiet), eval_episodes=eval_episodes)


def resume(folder: str | Path, *, steps: int | None = None, reanneal: bool = False, quiet: bool = False) -> Run | Group:
    """Continue an interrupted run, or group of seeds; with `steps` a complete one too (see `runs.training.resume`)."""
    from shoal import log
    from shoal.runs import training

    return training.resume(folder, steps=steps, reanneal=reanneal, console=log.pick(quiet))


def load(folder: str | Path, *, best: bool = False) -> Run:
    """A run as its folder holds it, with the newest policy, or the best of those evaluated while it trained.

    Raises:
        shoal.core.errors.Refused: Not a run folder, or one that keeps no best policy.
        shoal.core.errors.NoCheckpoint: None is usable.
    """
    import json
    import sys

    from shoal.runs import training

    _, made, policy = training.load(folder, lambda text: print(text, file=sys.stderr), best=best)
    try:
        summary = json.loads((Path(folder) / "summary.json").read_text())
    except (OSError, ValueError):
        summary = {}
    return training.Run(folder=Path(folder), experiment=made, policy=policy, summary=summary)
