"""Shoal trains deep-RL agents that learn together: one agent definition, every way of training together, one command.

    import shoal

    run = shoal.train("a3c", env="CartPole-v1", workers=2, until="solved")
    print(run.summary["return_mean"], run.evaluate().returns)

`train`, `resume` and `load` are all a script needs; the parts are modules of this package (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from shoal.training import Group, Run

__version__ = "0.1.0"
__all__ = ["__version__", "load", "resume", "train"]


@overload
def train(preset: str, env: str | None = None, *, seeds: None = None, **given: Any) -> Run: ...
@overload
def train(preset: str, env: str | None = None, *, seeds: int, **given: Any) -> Group: ...
def train(
    preset: str,
    env: str | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    seeds: int | None = None,
    workers: int | None = None,
    runtime: str | Mapping[str, Any] | None = None,
    corrector: str | Mapping[str, Any] | None = None,
    until: float | str | None = None,
    episodes: int | None = None,
    out: str | Path | None = None,
    eval_episodes: int = 20,
    quiet: bool = False,
    **parts: Mapping[str, Any],
) -> Run | Group:
    """Train a preset and return the run; with `seeds`, the group of runs.

    Args:
        preset: A name of `shoal list presets`.
        env: An environment id; the preset's own when None.
        steps: Environment steps; the preset's tuned number when None.
        seed: Seed of everything random.
        seeds: Train so many seeds, from `seed` on, in one program; runtimes on_device and host.
        workers: Worker processes, for runtimes that have them.
        runtime: Overrides the preset's runtime: a name, or settings (``{"name": "host", "environments": 16}``; the
            name may be left out).
        corrector: Likewise, one of `shoal list correctors`.
        until: Stop early at this mean return of the last 100 episodes; ``"solved"`` takes the environment's own.
        episodes: Stop after so many training episodes, of each seed; or at `steps`, if that comes first.
        out: The run folder; a new one under ``runs/`` when None.
        eval_episodes: Episodes of the evaluation at the end.
        quiet: Show nothing on stderr.
        **parts: Settings by kind of part, e.g. ``algorithm={"entropy_cost": 0.0}``.

    Raises:
        shoal.errors.Refused: The request cannot be carried out; nothing was created.
        shoal.errors.GaveUp: The run could not be kept going.
    """
    from shoal import log, presets, training

    settings: dict[str, Mapping[str, Any]] = dict(parts)
    names: dict[str, Any] = {}
    for kind, given in (("runtime", runtime), ("corrector", corrector)):
        named = {"name": given} if given is None or isinstance(given, str) else dict(given)
        names[kind] = named.pop("name", None)
        settings[kind] = named
    request = presets.Request(preset, env, steps, seed, **names, until=until, episodes=episodes, settings=settings)
    if workers is not None:
        settings["runtime"] = {presets.workers(request): workers, **settings["runtime"]}
    if seeds is None:
        return training.train(request, out, console=log.pick(quiet), eval_episodes=eval_episodes)
    return training.train_seeds(request, seeds, out, console=log.pick(quiet), eval_episodes=eval_episodes)


def resume(folder: str | Path, *, quiet: bool = False) -> Run | Group:
    """Continue an interrupted run, or group of seeds, from its newest good checkpoint (see `shoal.training.resume`)."""
    from shoal import log, training

    return training.resume(folder, console=log.pick(quiet))


def load(folder: str | Path) -> Run:
    """A run as its folder holds it, with the newest policy.

    Raises:
        shoal.errors.Refused: Not a run folder.
        shoal.errors.NoCheckpoint: None is usable.
    """
    import json
    import sys

    from shoal import training

    _, made, policy = training.load(folder, lambda text: print(text, file=sys.stderr))
    try:
        summary = json.loads((Path(folder) / "summary.json").read_text())
    except (OSError, ValueError):
        summary = {}
    return training.Run(Path(folder), made, policy, summary)
