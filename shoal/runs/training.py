"""Train, resume, evaluate: what the command line and `shoal.train` both call."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import environments, experiment, log
from shoal.core import errors, files, registry, seeds, tree, types
from shoal.experiment import budget, counting, extending, presets, scheduled, starting
from shoal.runs import checkpoint, group, longer, origin, parties, run_folder, session
from shoal.runtimes.crew import spawning, threads

with epy.lazy_imports():
    import jax

    from shoal.runs import evaluation, playing

EVAL_EPISODES = 20
Builder = Callable[[experiment.Experiment, environments.Opened, types.Tree | None], experiment.Built]


@dataclasses.dataclass(repr=False, eq=False)
class Run:
    """A finished (or interrupted) run, and its policy in one's own hands."""

    folder: Path
    experiment: experiment.Experiment
    policy: types.Policy | None  # None: it was ended before its first step, or before it went on
    summary: dict[str, Any]

    def act(self, obs: Any) -> Any:
        """The greedy action for one observation, both as the environment gives and takes them (`playing.Player`)."""
        return self.player.act(obs)

    def act_many(self, obs: Sequence[Any]) -> list[Any]:
        """The actions for observations of as many environments (`playing.Player`)."""
        return self.player.act_many(obs)

    def reset(self, over: Sequence[bool] | None = None) -> None:
        """A new episode begins, in all environments or where `over` is true: a recurrent policy forgets."""
        self.player.reset(over)

    @functools.cached_property
    def player(self) -> playing.Player:
        """Acts greedily; made when it is first asked for."""
        return playing.player(self.experiment, self._learned())

    def __repr__(self) -> str:
        made, told = self.experiment, self.summary
        mean = told.get("return_mean")
        reached = "" if mean is None else f", mean return {mean:.4g}"
        return (
            f"Run of {made.preset} on {made.env} (seed {made.seed}, {made.runtime}): {told.get('status', 'unknown')} "
            f"after {told.get('env_steps', 0):,} steps{reached}\n"
            f"  folder {self.folder}\n"
            "  act(obs), act_many(obs), reset(), evaluate(episodes), summary, policy"
        )

    def evaluate(self, episodes: int = EVAL_EPISODES, seed: int | None = None) -> evaluation.Evaluation:
        """Play whole episodes with the frozen, greedy policy."""
        built, made = experiment.build(self.experiment), self.experiment
        chosen = made.seed if seed is None else seed
        return evaluation.evaluate(built.parts, self._learned(), episodes, chosen, streams=evaluation.streams(made))

    def _learned(self) -> types.Policy:
        if self.policy is None:
            raise errors.Refused(
                f"{self.folder} was ended before its first step, so there is no policy; "
                f"`shoal resume {files.typed(self.folder)}` "
                "goes on, `shoal.load` has what was saved before"
            )
        return self.policy


class Group(NamedTuple):
    """Several seeds that were trained in one program."""

    folder: Path
    runs: tuple[Run, ...]  # one a seed
    summary: dict[str, Any]

    def __repr__(self) -> str:
        return "\n".join([f"Group of {len(self.runs)} runs in {self.folder}", *(repr(run) for run in self.runs)])


class _Ready(NamedTuple):
    """A request that was found good; nothing is created yet."""

    members: list[experiment.Experiment]  # one a seed; only the seed differs
    folder: Path
    built: experiment.Built
    needed: budget.Need
    notes: tuple[str, ...]  # on the replay memory, the number of worker processes, and where nothing is tuned
    command: str
    start: types.Tree | None  # as `starting.kept`


def train(
    request: presets.Request,
    out: str | Path | None = None,
    *,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
    command: str | None = None,
    builder: Builder | None = None,
) -> Run:
    """Train a preset.

    Args:
        request: What to train.
        out: The run folder; must not exist. None: ``runs/<preset>-<env>-<seed>-<time>``.
        console: What a person sees; None picks by where stderr goes.
        eval_episodes: Episodes of the evaluation at the end; 0 for none.
        since: ``time.time()`` when the command began.
        command: How the run was asked for, for the report.
        builder: Makes the parts, in place of `experiment.build`; they compute the same.

    Raises:
        Refused: The request or the folder, or it needs more memory than there is; nothing was created.
        GaveUp: A crash loop; the folder tells what happened.
    """
    since, console = since or time.time(), console or log.pick()
    ready = _ready(request, 1, out, eval_episodes, command, builder=builder)
    with session.Heard(console.note) as heard:
        with run_folder.making(ready.folder, exact=bool(out)) as folder:
            run_folder.write_config(folder, ready.members[0], ready.command)
            if ready.start is not None:
                origin.write(folder, ready.start)
        for note in ready.notes:
            console.note(note)
        asked = _asked(console, eval_episodes, since, ready.needed, heard)
        return _run(folder, ready.members[0], ready.built, asked, resuming=False)


def train_seeds(
    request: presets.Request,
    seeds: int,
    out: str | Path | None = None,
    *,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
    command: str | None = None,
    builder: Builder | None = None,
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
        builder: As in `train`.

    Raises:
        Refused: As in `train`, or the runtime cannot run several seeds; nothing was created.
    """
    since, console = since or time.time(), console or log.pick()
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise errors.Refused(f"--seeds {seeds!r} is not a number of seeds; give at least 1, or leave it out")
    budget.check_files(seeds)
    ready = _ready(request, seeds, out, eval_episodes, command, together=True, builder=builder)
    listed = {"seeds": [made.seed for made in ready.members]}
    with session.Heard(console.note) as heard:
        with run_folder.making(ready.folder, exact=bool(out)) as folder:
            run_folder.write_config(folder, ready.members[0], ready.command, listed)
            if ready.start is not None:
                origin.write(folder, ready.start)
            for made in ready.members:
                place = group.seed_folder(folder, made.seed)
                place.mkdir()
                run_folder.write_config(place, made, ready.command)
                if ready.start is not None:
                    origin.write(place, ready.start)
        for note in ready.notes:
            console.note(note)
        asked = _asked(console, eval_episodes, since, ready.needed, heard)
        return _run_many(folder, ready.members, ready.built, asked, resuming=False)


def resume(
    folder: str | Path,
    *,
    steps: int | None = None,
    reanneal: bool = False,
    console: log.Console | None = None,
    eval_episodes: int = EVAL_EPISODES,
    since: float | None = None,
    builder: Builder | None = None,
) -> Run | Group:
    """Continue an interrupted run, or group of seeds, from its newest good checkpoint; anew where none was ever saved.

    Args:
        folder: The run folder.
        steps: Environment steps in all, more than were asked for before: also a complete run goes on.
        reanneal: Then lower the learning rate over all of them; else its schedule ends where it ended.
        console: As in `train`, and the others too.
        eval_episodes: As in `train`.
        since: As in `train`.
        builder: As in `train`.

    Raises:
        Refused: Not a run folder, one in use, or a run that is complete and has no more steps to do.
        NoCheckpoint: All are damaged.
    """
    since, folder, console = since or time.time(), Path(folder), console or log.pick()
    _check(eval_episodes)
    config = run_folder.read_config(folder)
    _refuse_comparison(folder, config)
    made = run_folder.unedited(folder, config)
    if reanneal and steps is None:
        raise errors.Refused("--reanneal is for a run that goes on to more steps; give --steps as well")
    if steps is not None:
        taken = run_folder.taken(folder, made)
        made = extending.longer(folder, made, steps, taken=taken, reanneal=reanneal)
    elif run_folder.status(folder) == "completed":
        raise errors.Refused(
            f"{folder} is complete: nothing is left to do; `shoal resume {files.typed(folder)} --steps N` goes on to "
            "more steps, `shoal train` begins a new run"
        )
    listed = _seeds(folder, config)
    experiment.prepare_seeds(made.runtime, len(listed))
    experiment.prepare(made.runtime, made.algorithm, made.configs, len(listed))
    opened = experiment.open_environment(made)
    experiment.validate(made, opened)
    experiment.check_environment(opened)
    build = builder or _build
    built = build(made, opened, None)
    if (start := origin.read(folder, made, built.parts.agent, console.note)) is not None:
        built = build(made, opened, start)
    needed = _need(made, built)
    members = [dataclasses.replace(made, seed=seed) for seed in listed]
    for note in (apart(made), crowd(made, len(members)), checked(made, built.parts.agent, needed, len(members))):
        if note:
            console.note(note)
    with session.Heard(console.note) as heard:
        if steps is not None:
            longer.write(folder, config, made, listed)
            console.note(extending.told(made))
        asked = _asked(console, eval_episodes, since, needed, heard)
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
    builder: Builder | None = None,
) -> _Ready:
    """Everything that can be refused, refused."""
    _check(eval_episodes)
    experiment.prepare_seeds(presets.parts(request)["runtime"], seeds)
    made, opened = presets.resolve(request, seeds)
    start = _start(request.start)
    if start is not None:
        starting.check(experiment.build(made, opened).parts.agent, start, str(request.start))
        made = dataclasses.replace(made, start=tree.sha256(start))
    members = [dataclasses.replace(made, seed=made.seed + more) for more in range(seeds)]
    lone, crowded = apart(made), crowd(made, seeds)
    if together:
        experiment.validate(members[-1], opened)
        if not experiment.ways(made.runtime).seeds:
            several = ", ".join(name for name in registry.names("runtime") if experiment.ways(name).seeds)
            raise errors.Refused(
                f"--seeds needs a runtime that takes several seeds in one program ({several}), but {made.env} is "
                f"to run under {made.runtime}; give --runtime host, or run the seeds one by one, with --seed"
            )
    experiment.check_environment(opened)
    folder = run_folder.free(run_folder.named(made, [one.seed for one in members], out), exact=bool(out))
    built = (builder or _build)(made, opened, start)
    needed = _need(made, built)
    followed, doubted = scheduled.told(made.schedule), presets.doubts(request, made, opened.spec)
    notes = (
        presets.caution(made.preset),
        lone,
        crowded,
        checked(made, built.parts.agent, needed, seeds),
        presets.note(request),
        doubted,
        followed,
    )
    return _Ready(
        members=members, folder=folder, built=built, needed=needed, notes=tuple(filter(None, notes)),
        command=command or _command(), start=start,
    )  # fmt: skip


def _start(source: str | Path | None) -> types.Tree | None:
    """The policy of another run, to start from."""
    if source is None:
        return None
    _, _, policy = load(source, lambda text: print(text, file=sys.stderr))
    return starting.kept(policy)


def _asked(
    console: log.Console, eval_episodes: int, since: float, needed: budget.Need, heard: session.Heard
) -> group.Asked:
    return group.Asked(console=console, eval_episodes=eval_episodes, since=since, replay=needed.replay, heard=heard)


def _check(eval_episodes: int) -> None:
    if eval_episodes < 0:
        raise errors.Refused(f"eval_episodes={eval_episodes} is negative; 0 turns the evaluation off")
    session.save_every()


def _build(
    made: experiment.Experiment, opened: environments.Opened, start: types.Tree | None = None
) -> experiment.Built:
    experiment.cache()
    return experiment.build(made, opened, start)


def _need(made: experiment.Experiment, built: experiment.Built) -> budget.Need:
    capacity = experiment.traits(made.algorithm, made.configs["algorithm"]).capacity
    return budget.Need(**built.shelf.remembered("need", lambda: budget.need(built.parts.agent, capacity)._asdict()))


def checked(made: experiment.Experiment, agent: types.Agent, needed: budget.Need, seeds: int) -> str | None:
    """See `budget.check`; where workers hold a learner each, it is they who are counted. And gradient steps are.

    Args:
        made: What is to be trained.
        agent: Whose learner.
        needed: By one learner.
        seeds: That share a program.
    """
    budget.check_batch(agent.about.sums, made.steps)
    how = experiment.ways(made.runtime, made.configs["runtime"])
    gradients = experiment.traits(made.algorithm, made.configs["algorithm"]).gradients
    counting.check_gradients(made.steps, agent.about.rollout_length * how.streams, gradients)
    experiment.check_shares(made.steps, made.algorithm, made.runtime, made.configs)
    if how.parties:
        held = budget.check(needed, how.parties, "parties", option="--parties")
        return f"{how.parties} parties, {-(-made.steps // how.parties):,} steps each; {held}"
    if how.members > 1:  # several seeds are trained one after the other
        held = budget.check(needed, how.members, "members", copies=budget.kept_twice(), option="--members")
        share = f"{how.members} members, {-(-made.steps // how.members):,} steps each"
        return f"{share}; {held}"
    if not how.holds_memory:
        return budget.check(needed, seeds)
    # Two: the worker's own, and what it leaves for a checkpoint. Before it has its own there is the one that is loaded.
    return budget.check(needed, how.learners, how.workers or "workers", copies=2, apart=True)


def apart(made: experiment.Experiment) -> str | None:
    """Refuse workers that could not start or could not open the environment.

    Args:
        made: What is to be trained.

    Returns:
        A line where the runtime does without; None where nothing is in the way.

    Raises:
        Refused: It cannot do without them.
    """
    how = experiment.ways(made.runtime, made.configs["runtime"])
    if not (how.processes or how.measures) or (how.compiles and experiment.compiled(made)):
        return None
    reason = spawning.hindrance() or experiment.elsewhere(made)
    if reason and how.processes:
        raise errors.Refused(f"the {made.runtime} runtime starts worker processes, but {reason}")
    return f"simulators are stepped in this process: {reason}" if reason else None


def crowd(made: experiment.Experiment, seeds: int) -> str | None:
    """See `budget.check_processes`.

    Args:
        made: What is to be trained.
        seeds: That share a program; each has worker processes of its own.
    """
    how = experiment.ways(made.runtime, made.configs["runtime"])
    count = experiment.processes(made)
    return budget.check_processes(count * seeds, how.process_mb, threads.cores()) if count else None


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
            f"all by `shoal resume {files.typed(folder)}`"
        )


def _command() -> str:
    return f"python {shlex.join(sys.argv)}"


def _run(
    folder: Path, made: experiment.Experiment, built: experiment.Built, asked: group.Asked, *, resuming: bool
) -> Run:
    with checkpoint.lock(folder):
        for place in (folder, folder / "checkpoints"):
            checkpoint.remove_stale(place)
        saved = run_folder.going_on(folder, made, built, asked.console.note) if resuming else None
        shared = session.Program(judge=session.Judge(built, session.Still()), heard=asked.heard)
        kept = session.Session(folder, made, asked.console, asked.since, saved, replay=asked.replay, shared=shared)
        began = time.time() - asked.since
        try:
            if saved and kept.over:
                result = run_folder.as_saved(built, made, saved)  # killed after its goal was met: nothing to learn
            else:
                held = [saved.tree if saved else None]
                saved = None  # the runtime's alone: a replay memory in it is freed once it was copied
                result = built.runtime.run(built.parts, made.seed, made.steps, made.goal, kept, held.pop())
            kept.finish(result)
            if kept.failed:
                raise errors.GaveUp(kept.failed)
            summary = kept.summary("interrupted" if kept.stopped_by else "completed", result, began)
            if asked.eval_episodes and not kept.stopped_by:
                summary |= kept.evaluated(built, result, asked.eval_episodes)
                found = kept.compared(built, result, asked.eval_episodes, summary["eval_return_mean"])
                summary |= {"compression": {**summary.get("compression", {}), **found}} if found else {}
            run_folder.conclude(folder, summary, [folder], asked.console.note)
            return Run(folder=folder, experiment=made, policy=result.policy, summary=summary)
        except errors.NotBegun:
            summary = kept.summary("interrupted", None, began)
            run_folder.conclude(folder, summary, [folder], asked.console.note)
            return Run(folder=folder, experiment=made, policy=None, summary=summary)
        except BaseException as error:
            if resuming and isinstance(error, errors.Refused):
                raise  # e.g. an artefact is lost: nothing was done, and the folder can be mended
            failed = kept.summary("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", None, began)
            failed |= {"error": f"{type(error).__name__}: {error}"}
            told = [folder] if isinstance(error, errors.GaveUp) else []
            run_folder.conclude(folder, failed, told, asked.console.note)
            raise
        finally:
            kept.close()


def _run_many(
    folder: Path, members: list[experiment.Experiment], built: experiment.Built, asked: group.Asked, *, resuming: bool
) -> Group:
    ended = group.run(folder, members, built, asked, resuming=resuming)
    if lost := [run for run in ended.summaries if run["status"] == "failed"]:
        seeds = ", ".join(str(run["seed"]) for run in lost)
        raise errors.GaveUp(f"seeds {seeds}: {lost[0]['error']}; the others are complete in {folder}")
    folders = [group.seed_folder(folder, made.seed) for made in members]
    runs = tuple(
        Run(folder=place, experiment=made, policy=policy, summary=summary)
        for place, made, policy, summary in zip(folders, members, ended.policies, ended.summaries, strict=True)
    )
    return Group(folder=folder, runs=runs, summary=ended.summary)


def load(
    folder: str | Path, say: Callable[[str], None], *, best: bool = False, party: str | None = None
) -> tuple[experiment.Built, experiment.Experiment, types.Policy]:
    """The parts and the newest policy of a run folder, which is left as it is.

    Args:
        folder: The run folder.
        say: Told of a damaged checkpoint that was passed over.
        best: Instead of the newest, the best policy of those evaluated while it trained.
        party: Of parties that train together, whose: the parts are then its own. None: the first one's.

    Raises:
        Refused: Not a run folder, one that keeps no best policy, or there is no such party.
        NoCheckpoint: None is usable.
    """
    folder = Path(folder)
    config = run_folder.read_config(folder)
    _refuse_comparison(folder, config)
    if "seeds" in config:
        first = group.seed_folder(folder, _seeds(folder, config)[0])
        raise errors.Refused(f"{folder} holds the runs of several seeds; give the folder of one, e.g. {first}")
    made = experiment.from_json(config)
    experiment.cache()
    built = experiment.build(made)
    at = None if party is None else parties.number(built.parts, party)
    if best and at is not None:
        raise errors.Refused("--best keeps the first party's policy; leave --best or --party out")
    if best:
        return built, made, _best(folder, built.parts.agent)
    like = built.runtime.like(built.parts, made.seed)
    saved = checkpoint.newest(folder / "checkpoints", like, say, set_aside=False)
    if at is not None:
        every = run_folder.policies(built, made, saved)
        return built._replace(parts=parties.own(built.parts, at)), made, every[at]
    return built, made, jax.device_get(built.runtime.policy(built.parts, made.seed, saved.tree))


def load_all(
    folder: str | Path, say: Callable[[str], None]
) -> tuple[experiment.Built, experiment.Experiment, tuple[types.Policy, ...]]:
    """The parts and the newest policy of every party of a run folder; of other runs there is one, or none."""
    config = run_folder.read_config(Path(folder))
    if "seeds" in config or "comparison" in config:
        return (*load(folder, say)[:2], ())
    made = experiment.from_json(config)
    if not experiment.ways(made.runtime, made.configs["runtime"]).parties:
        built, made, policy = load(folder, say)
        return built, made, (policy,)
    experiment.cache()
    built = experiment.build(made)
    like = built.runtime.like(built.parts, made.seed)
    saved = checkpoint.newest(Path(folder) / "checkpoints", like, say, set_aside=False)
    return built, made, run_folder.policies(built, made, saved)


def _best(folder: Path, agent: types.Agent) -> types.Policy:
    """The policy of ``checkpoints/best/``.

    Raises:
        Refused: There is none.
        NoCheckpoint: It is damaged.
    """
    like = jax.eval_shape(lambda: agent.snapshot(agent.init(seeds.key(0))))
    found = checkpoint.best(folder / "checkpoints", like)
    if found is None:
        raise errors.Refused(
            f"{folder} keeps no best policy: it was trained without --evaluate-every, or nothing was evaluated yet; "
            "leave --best out to take the newest"
        )
    return found.tree
