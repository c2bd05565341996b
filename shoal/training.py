"""Train, resume, evaluate: what the command line and `shoal.train` both call."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import (
    checkpoint,
    environments,
    errors,
    experiment,
    log,
    many,
    memory,
    presets,
    registry,
    run_folder,
    session,
    types,
)

with epy.lazy_imports():
    import jax

    from shoal import evaluation, report

EVAL_EPISODES = 20


class Run(NamedTuple):
    """A finished (or interrupted) run."""

    folder: Path
    experiment: experiment.Experiment
    policy: types.Policy
    summary: dict[str, Any]

    def evaluate(self, episodes: int = EVAL_EPISODES, seed: int | None = None) -> evaluation.Evaluation:
        """Play whole episodes with the frozen, greedy policy."""
        built = experiment.build(self.experiment)
        return evaluation.evaluate(built.parts, self.policy, episodes, self.experiment.seed if seed is None else seed)


class Group(NamedTuple):
    """Several seeds that were trained in one program."""

    folder: Path
    runs: tuple[Run, ...]  # one a seed
    summary: dict[str, Any]


class _Ready(NamedTuple):
    """A request that was found good; nothing is created yet."""

    members: list[experiment.Experiment]  # one a seed; only the seed differs
    folder: Path
    built: experiment.Built
    needed: memory.Need
    note: str | None  # on the replay memory
    command: str


def train(
    request: presets.Request,
    out: str | Path | None = None,
    *,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
    command: str | None = None,
) -> Run:
    """Train a preset.

    Args:
        request: What to train.
        out: The run folder; must not exist. None: ``runs/<preset>-<env>-<seed>-<time>``.
        console: What a person sees; None picks by where stderr goes.
        eval_episodes: Episodes of the evaluation at the end; 0 for none.
        since: ``time.time()`` when the command began.
        command: How the run was asked for, for the report.

    Raises:
        Refused: The request or the folder, or it needs more memory than there is; nothing was created.
        GaveUp: A crash loop; the folder tells what happened.
    """
    since, console = since or time.time(), console or log.pick()
    ready = _ready(request, 1, out, eval_episodes, command)
    run_folder.make(ready.folder)
    run_folder.write_config(ready.folder, ready.members[0], ready.command)
    if ready.note:
        console.note(ready.note)
    asked = many.Asked(console, eval_episodes, since, ready.needed.replay)
    return _run(ready.folder, ready.members[0], ready.built, asked, resuming=False)


def train_seeds(
    request: presets.Request,
    seeds: int,
    out: str | Path | None = None,
    *,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
    command: str | None = None,
) -> Group:
    """Train a preset with several seeds in one program.

    Args:
        request: What to train; its seed is the first.
        seeds: How many.
        out: The group's folder; must not exist. None: ``runs/<preset>-<env>-<first>to<last>-<time>``.
        console: As in `train`, and the others too.
        eval_episodes: Of each seed.
        since: As in `train`.
        command: As in `train`.

    Raises:
        Refused: As in `train`, or the runtime cannot run several seeds; nothing was created.
    """
    since, console = since or time.time(), console or log.pick()
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise errors.Refused(f"--seeds {seeds!r} is not a number of seeds; give at least 1, or leave it out")
    ready = _ready(request, seeds, out, eval_episodes, command, together=True)
    run_folder.make(ready.folder)
    listed = {"seeds": [made.seed for made in ready.members]}
    run_folder.write_config(ready.folder, ready.members[0], ready.command, listed)
    for made in ready.members:
        place = many.seed_folder(ready.folder, made.seed)
        run_folder.make(place)
        run_folder.write_config(place, made, ready.command)
    if ready.note:
        console.note(ready.note)
    asked = many.Asked(console, eval_episodes, since, ready.needed.replay)
    return _run_many(ready.folder, ready.members, ready.built, asked, resuming=False)


def resume(
    folder: str | Path,
    *,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
) -> Run | Group:
    """Continue an interrupted run, or group of seeds, from its newest good checkpoint.

    Raises:
        Refused: Not a run folder, one in use, or a run that is complete.
        NoCheckpoint: None is usable.
    """
    since, folder, console = since or time.time(), Path(folder), console or log.pick()
    _check(eval_episodes)
    config = run_folder.read_config(folder)
    _refuse_comparison(folder, config)
    made = run_folder.unedited(folder, config)
    if run_folder.status(folder) == "completed":
        raise errors.Refused(f"{folder} is complete: nothing is left to do; `shoal train` begins a new run")
    listed = _seeds(folder, config)
    experiment.prepare_seeds(made.runtime, len(listed))
    experiment.prepare(made.runtime, made.configs)
    opened = environments.open(made.env, made.configs["environment"])
    experiment.validate(made, opened)
    built = _build(made, opened)
    needed = _need(made, built)
    members = [dataclasses.replace(made, seed=seed) for seed in listed]
    if note := checked(made, built.parts.agent, needed, len(members)):
        console.note(note)
    asked = many.Asked(console, eval_episodes, since, needed.replay)
    if "seeds" not in config:
        return _run(folder, made, built, asked, resuming=True)
    return _run_many(folder, members, built, asked, resuming=True)


def _ready(
    request: presets.Request,
    seeds: int,
    out: str | Path | None,
    eval_episodes: int,
    command: str | None,
    *,
    together: bool = False,
) -> _Ready:
    """Everything that can be refused, refused."""
    _check(eval_episodes)
    experiment.prepare_seeds(presets.parts(request)["runtime"], seeds)
    made, opened = presets.resolve(request)
    members = [dataclasses.replace(made, seed=made.seed + more) for more in range(seeds)]
    if together:
        experiment.validate(members[-1], opened)
        if not getattr(registry.load("runtime", made.runtime), "SEEDS", False):
            raise errors.Refused(
                f"--seeds needs a runtime that takes several seeds in one program (on_device, host), but {made.env} is "
                f"to run under {made.runtime}; give --runtime host, or run the seeds one by one, with --seed"
            )
    folder = run_folder.free(run_folder.named(made, [one.seed for one in members], out))
    built = _build(made, opened)
    needed = _need(made, built)
    note = checked(made, built.parts.agent, needed, seeds)
    return _Ready(members, folder, built, needed, note, command or _command())


def _check(eval_episodes: int) -> None:
    if eval_episodes < 0:
        raise errors.Refused(f"eval_episodes={eval_episodes} is negative; 0 turns the evaluation off")
    session.save_every()


def _build(made: experiment.Experiment, opened: environments.Opened) -> experiment.Built:
    experiment.cache()
    return experiment.build(made, opened)


def _need(made: experiment.Experiment, built: experiment.Built) -> memory.Need:
    capacity = getattr(made.configs["algorithm"], "capacity", None)
    return memory.Need(**built.shelf.remembered("need", lambda: memory.need(built.parts.agent, capacity)._asdict()))


def checked(made: experiment.Experiment, agent: types.Agent, needed: memory.Need, seeds: int) -> str | None:
    """See `memory.check`; where workers hold a learner each, it is they who are counted.

    Args:
        made: What is to be trained.
        agent: Whose learner.
        needed: By one learner.
        seeds: That share a program.
    """
    memory.check_batch(agent.sums, made.steps)
    runtime = registry.load("runtime", made.runtime)
    if not getattr(runtime, "HOLDS_MEMORY", False):
        return memory.check(needed, seeds)
    what = runtime.WORKERS
    # Two: the worker's own, and what it leaves for a checkpoint. Before it has its own there is the one that is loaded.
    return memory.check(needed, getattr(made.configs["runtime"], what), what, copies=2, apart=True)


def _seeds(folder: Path, config: dict[str, Any]) -> list[int]:
    """The seeds of a group; of an ordinary run, its one."""
    seeds = config.get("seeds", [config["seed"]])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise errors.Refused(f"{folder}/config.json was edited: its seeds are no list of numbers; restore it")
    return seeds


def _refuse_comparison(folder: Path, config: dict[str, Any]) -> None:
    if "comparison" in config:
        raise errors.Refused(
            f"{folder} holds a comparison; give the folder of one of its runs, {folder}/PRESET/seed-S, or go on with "
            f"all by `shoal resume {folder}`"
        )


def _command() -> str:
    return f"python {shlex.join(sys.argv)}"


def _run(
    folder: Path, made: experiment.Experiment, built: experiment.Built, asked: many.Asked, *, resuming: bool
) -> Run:
    with checkpoint.lock(folder):
        checkpoint.remove_stale(folder / "checkpoints")
        saved = run_folder.newest(folder, made, built, asked.console.note) if resuming else None
        kept = session.Session(folder, made, asked.console, asked.since, saved, replay=asked.replay)
        kept.listen()
        began = time.time() - asked.since
        try:
            if saved and kept.over:
                result = run_folder.as_saved(built, made, saved)  # killed after its goal was met: nothing to learn
            else:
                tree = [saved.tree if saved else None]
                saved = None  # the runtime's alone: a replay memory in it is freed once it was copied
                result = built.runtime.run(built.parts, made.seed, made.steps, made.goal, kept, tree.pop())
            kept.finish(result)
            if kept.gave_up:
                raise errors.GaveUp(kept.gave_up)
            summary = kept.summary("interrupted" if kept.stopped_by else "completed", result, began)
            if asked.eval_episodes and not kept.stopped_by:
                summary |= kept.evaluated(built, result.policy, asked.eval_episodes)
            run_folder.write_json(folder / "summary.json", summary)
            report.write([folder], folder / "report.html")
            return Run(folder, made, result.policy, summary)
        except BaseException as error:
            failed = kept.summary("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", None, began)
            run_folder.write_json(folder / "summary.json", failed | {"error": f"{type(error).__name__}: {error}"})
            if isinstance(error, errors.GaveUp):
                report.write([folder], folder / "report.html")
            raise
        finally:
            kept.close()


def _run_many(
    folder: Path, members: list[experiment.Experiment], built: experiment.Built, asked: many.Asked, *, resuming: bool
) -> Group:
    ended = many.run(folder, members, built, asked, resuming=resuming)
    if lost := [run for run in ended.summaries if run["status"] == "failed"]:
        seeds = ", ".join(str(run["seed"]) for run in lost)
        raise errors.GaveUp(f"seeds {seeds}: {lost[0]['error']}; the others are complete in {folder}")
    folders = [many.seed_folder(folder, made.seed) for made in members]
    runs = tuple(Run(*one) for one in zip(folders, members, ended.policies, ended.summaries, strict=True))
    return Group(folder, runs, ended.summary)


def load(
    folder: str | Path, say: Callable[[str], None]
) -> tuple[experiment.Built, experiment.Experiment, types.Policy]:
    """The parts and the newest policy of a run folder, which is left as it is.

    Args:
        folder: The run folder.
        say: Told of a damaged checkpoint that was passed over.

    Raises:
        Refused: Not a run folder.
        NoCheckpoint: None is usable.
    """
    folder = Path(folder)
    config = run_folder.read_config(folder)
    _refuse_comparison(folder, config)
    if "seeds" in config:
        first = many.seed_folder(folder, _seeds(folder, config)[0])
        raise errors.Refused(f"{folder} holds the runs of several seeds; give the folder of one, e.g. {first}")
    made = experiment.from_json(config)
    experiment.cache()
    built = experiment.build(made)
    like = built.runtime.like(built.parts, made.seed)
    saved = checkpoint.newest(folder / "checkpoints", like, say, set_aside=False)
    return built, made, jax.device_get(built.runtime.policy(built.parts, made.seed, saved.tree))
