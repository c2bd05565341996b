"""Several presets on one environment, at equal environment steps: trained one after the other, drawn in one figure.

The comparison's folder holds ``config.json`` with every experiment as data, ``<preset>/seed-<s>/`` for each (ordinary
run folders; the preset's folder is a group's where its seeds share a program), ``summary.json``, ``comparison.png``,
``comparison.svg`` and ``report.html``. What is finished there is never trained again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import experiment, log
from shoal.core import errors, files
from shoal.experiment import budget, presets
from shoal.runs import checkpoint, group, run_folder
from shoal.runs.session import hearing

with epy.lazy_imports():
    from shoal.report import comparison as drawing
    from shoal.runs import training


class Comparison(NamedTuple):
    """A finished (or interrupted) comparison."""

    folder: Path
    summary: dict[str, Any]


class Asked(NamedTuple):
    """How a comparison is to be run."""

    console: Callable[[], log.Console]  # makes what a person sees of one training
    say: Callable[[str], None]  # one line for a person, between two trainings
    eval_episodes: int
    since: float  # ``time.time()`` when the command began


class _Unit(NamedTuple):
    """What is trained at a time: all seeds of a preset in one program, or one seed."""

    path: Path  # a group's folder, or a run folder
    made: experiment.Experiment  # of the first seed
    seeds: int  # 0: an ordinary run


class _Stopped(Exception):
    """A signal came between two trainings."""


def begin(
    requests: Sequence[presets.Request], seeds: int, out: Path | None, runs: Path, command: str, asked: Asked
) -> Comparison:
    """Compare presets.

    Args:
        requests: One a preset; all name one environment, and the first seed. Without steps, all get the largest number
            that one of them would have.
        seeds: Seeds of each.
        out: The comparison's folder; must not exist. None: ``<runs>/compare-<env>-<first>to<last>-<time>``.
        runs: See `out`.
        command: How it was asked for, for the report.
        asked: How to run it.

    Returns:
        The comparison; its status is ``interrupted`` if a signal ended it, ``failed`` if a seed's training did.

    Raises:
        Refused: The requests, the folder, or not enough memory for one of them; nothing was created.
        GaveUp: A crash loop of one of them; what is finished is kept, and `resume` goes on.
    """
    _check(requests, seeds)
    made, solved_at = _resolved(requests)
    steps = max(one.steps for one in made)
    made = [dataclasses.replace(one, steps=steps) for one in made]
    listed = list(range(made[0].seed, made[0].seed + seeds))
    folder = run_folder.free(out or runs / _name(made[0].env, listed), exact=bool(out))
    _check_memory(made, seeds)
    data = {one.preset: one.to_json() for one in made}
    config = {
        "schema": experiment.SCHEMA,
        "comparison": list(data),
        "env": made[0].env,
        "seeds": listed,
        "steps": steps,
        "solved_at": solved_at,
        "members": data,
        "members_sha256": _digest(data),
        "command": command,
        "versions": run_folder.versions(),
        "machine": run_folder.machine(),
    }
    with run_folder.making(folder, exact=bool(out)) as folder:
        run_folder.write_json(folder / "config.json", config)
    return _run(folder, config, asked)


def is_one(folder: Path) -> bool:
    """Whether a folder is a comparison's; False also for what is no folder."""
    try:
        return "comparison" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def resume(folder: Path, asked: Asked) -> Comparison:
    """Go on with a comparison: unfinished trainings from their newest good checkpoint, then those not yet begun.

    Raises:
        Refused: It is complete, in use, or its ``config.json`` was edited.
        NoCheckpoint: Every checkpoint of an unfinished training is damaged.
    """
    config = run_folder.read_config(folder)
    if config.get("members_sha256") != _digest(config.get("members", {})):
        raise errors.Refused(f"{folder}/config.json was edited since the comparison began; restore it, or begin anew")
    if run_folder.status(folder) == "completed":
        raise errors.Refused(f"{folder} is complete: nothing is left to do; `shoal compare` begins a new comparison")
    return _run(folder, config, asked)


# ------------------------------------------------------------------------------------------ before anything starts


def _check(requests: Sequence[presets.Request], seeds: int) -> None:
    if seeds < 1:
        raise errors.Refused(f"--seeds {seeds} is not a number of seeds; give at least 1")
    names = [request.preset for request in requests]
    for name in names:
        presets.find(name)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise errors.Refused(f"{twice} is named twice; name each preset once")
    if len(names) < 2:
        raise errors.Refused(
            f"a comparison needs two presets or more, but only {names[0]} was named; add e.g. "
            f"{next(name for name in presets.PRESETS if name not in names)}, or use `shoal train` for one"
        )


def _resolved(requests: Sequence[presets.Request]) -> tuple[list[experiment.Experiment], float | None]:
    """Every request checked, and the return at which their environment is solved, if it says so."""
    for request in requests:  # before the first array is made, as when a comparison is resumed
        configs = {kind: request.configs.get(kind, presets.config(request, kind)) for kind in experiment.kinds()}
        names = presets.parts(request)
        experiment.prepare(names["runtime"], names["algorithm"], configs, len(requests))
    found, refused = [], []
    for request in requests:
        try:
            found.append(presets.resolve(request, len(requests)))
        except errors.Refused as reason:
            refused.append((request, reason))
    for request, error in refused:
        fitting = [name for name in presets.PRESETS if _fits(request._replace(preset=name))]
        if request.preset in fitting or not fitting:
            raise error  # a setting, or the environment itself
        raise errors.Refused(
            f"{request.preset} does not fit {request.env}: {str(error).rstrip('.')}; presets that do: "
            f"{', '.join(fitting)}"
        )
    experiment.check_environment(found[0][1])
    return [made for made, _ in found], found[0][1].spec.solved_at


def _fits(request: presets.Request) -> bool:
    """Whether a preset as it comes learns in the environment at all."""
    try:
        presets.resolve(request._replace(configs={}, settings={}, steps=None, until=None))
    except errors.Refused:
        return False
    return True


def _check_memory(made: Sequence[experiment.Experiment], seeds: int) -> None:
    experiment.cache()
    for one in made:
        training.crowd(one, seeds if _together(one) else 1)
        agent = experiment.build(one, experiment.open_environment(one)).parts.agent
        needed = budget.need(agent, experiment.traits(one.algorithm, one.configs["algorithm"]).capacity)
        training.checked(one, agent, needed, seeds if _together(one) else 1)


def _together(made: experiment.Experiment) -> bool:
    return experiment.ways(made.runtime).seeds


def _name(env: str, seeds: Sequence[int]) -> str:
    name = f"compare-{env}-{seeds[0]}to{seeds[-1]}-{time.strftime('%Y%m%d-%H%M%S')}"
    return name.replace("/", "_").replace(":", "_")


def _digest(members: Any) -> str:
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ training


def _run(folder: Path, config: Mapping[str, Any], asked: Asked) -> Comparison:
    experiments = [experiment.from_json(data) for data in config["members"].values()]
    units = list(_units(folder, experiments, config["seeds"]))
    for made in experiments:  # all of them, so that a resumed comparison chooses the threads of the first life
        experiment.prepare(made.runtime, made.algorithm, made.configs, len(config["members"]))
    with checkpoint.lock(folder):
        watch = _Watch(units, config["steps"], asked)
        stopped_by = None
        try:
            with _interruptible():
                for at, unit in enumerate(units):
                    if stopped_by is None and run_folder.status(unit.path) != "completed":
                        stopped_by = _train(unit, watch, at, asked)
        except _Stopped as signalled:
            stopped_by = str(signalled)
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            said = {"status": status, "error": f"{type(error).__name__}: {error}"}
            run_folder.conclude(folder, drawing.summary(folder) | said, [], asked.say)
            raise
        return Comparison(folder=folder, summary=_end(folder, stopped_by, asked.say))


def _units(folder: Path, made: Sequence[experiment.Experiment], seeds: Sequence[int]) -> Iterator[_Unit]:
    for one in made:
        if _together(one):
            yield _Unit(path=folder / one.preset, made=one, seeds=len(seeds))
        else:
            for seed in seeds:
                place = group.seed_folder(folder / one.preset, seed)
                yield _Unit(path=place, made=dataclasses.replace(one, seed=seed), seeds=0)


def _train(unit: _Unit, watch: _Watch, at: int, asked: Asked) -> str | None:
    """Train one unit from where it is; the signal that ended it early, if one did."""
    made, since = unit.made, asked.since if watch.first(at) else time.time()
    given: dict[str, Any] = {"console": watch.console(at), "eval_episodes": asked.eval_episodes, "since": since}
    request = presets.Request(
        preset=made.preset, env=made.env, steps=made.steps, seed=made.seed, runtime=made.runtime,
        corrector=made.corrector, compressor=made.compressor, configs=made.configs,
    )  # fmt: skip
    if unit.path.exists() and not _saved(unit):
        shutil.rmtree(unit.path)  # it was killed before it saved anything
    if unit.path.exists():
        asked.say(f"{watch.title(at)}: goes on")
        run: training.Run | training.Group = training.resume(unit.path, **given)
    else:
        asked.say(f"{watch.title(at)}: {made.steps:,} steps {'a seed ' if unit.seeds > 1 else ''}on {made.env}")
        run = (
            training.train_seeds(request, unit.seeds, unit.path, **given)
            if unit.seeds
            else training.train(request, unit.path, **given)
        )
    watch.done(at)
    return run.summary["stopped_by"] if run.summary["status"] == "interrupted" else None


def _saved(unit: _Unit) -> bool:
    """Whether there is anything to go on from."""
    places = [group.seed_folder(unit.path, unit.made.seed + more) for more in range(unit.seeds)] or [unit.path]
    return any(checkpoint.folders(place / "checkpoints") for place in places)


def _end(folder: Path, stopped_by: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    summary = drawing.summary(folder) | {"stopped_by": stopped_by}
    if any(row["runs"] for row in summary["presets"].values()):
        try:
            summary |= drawing.write(folder, summary)
        except OSError as error:
            say(f"warning: the comparison's figure and page could not be written ({files.reason(error)})")
    run_folder.conclude(folder, summary, [], say)
    return summary


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Between two trainings a signal ends the comparison; during one, the training hears it and saves first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the program that called us
        return

    def stop(number: int, _: Any) -> None:
        raise _Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in hearing.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------ progress


class _Watch:
    """Knows how far the whole comparison is, and tells every console so."""

    def __init__(self, units: Sequence[_Unit], steps: int, asked: Asked) -> None:
        self._units, self._asked = units, asked
        self._sizes = [steps * max(unit.seeds, 1) for unit in units]  # environment steps
        self._waiting = {at for at, unit in enumerate(units) if run_folder.status(unit.path) != "completed"}
        self._first = min(self._waiting, default=0)
        self._taken = 0  # environment steps of the units that this life has finished
        self._began = time.monotonic()
        self._from = 0  # environment steps the unit under way had when this life began

    def first(self, at: int) -> bool:
        """Whether it is the first that this life trains."""
        return at == self._first

    def title(self, at: int) -> str:
        """Which preset this is, of how many; and the seeds."""
        unit, names = self._units[at], list(dict.fromkeys(unit.made.preset for unit in self._units))
        seed = unit.made.seed
        last = seed + max(unit.seeds, 1) - 1
        which = f"seed {seed}" if last == seed else f"seeds {seed} to {last}"
        return f"[{names.index(unit.made.preset) + 1} of {len(names)}] {unit.made.preset}, {which}"

    def console(self, at: int) -> log.Console:
        """What a person sees of one unit, with the time left for all."""
        self._from = -1
        return _Console(self._asked.console(), lambda status: self._whole(at, status))

    def done(self, at: int) -> None:
        """A unit has ended."""
        self._taken += self._sizes[at] - max(self._from, 0)
        self._waiting.discard(at)

    def _whole(self, at: int, status: log.Status) -> log.Status:
        """The unit's status with the time left for all; the units to come are thought as fast as those so far."""
        if self._from < 0:
            self._from = status.step
        taken = self._taken + status.step - self._from
        rest = sum(self._sizes[other] for other in self._waiting if other != at)
        left = status.eta_s
        if left is not None and rest:
            left = left + rest * (time.monotonic() - self._began) / taken if taken else None
        return status._replace(eta_s=left)


class _Console:
    """A `log.Console` that changes every status it is shown."""

    def __init__(self, console: log.Console, change: Callable[[log.Status], log.Status]) -> None:
        self._console, self._change = console, change
        self.note, self.fault, self.close = console.note, console.fault, console.close

    def show(self, status: log.Status) -> None:
        """Changed, to the console."""
        self._console.show(self._change(status))
