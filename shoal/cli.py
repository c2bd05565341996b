"""The command line. Help and every error in the arguments come without importing JAX.

Options are dataclass fields read by tyro; a preset's own parts become option groups (``--algorithm.entropy-cost``).
``--json`` prints one object last on stdout; everything for people goes to stderr. Exit codes: `shoal.errors`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from etils import epy

from shoal import __version__, arguments, environments, errors, options, presets, registry
from shoal.verbs import compare, output, replay

with epy.lazy_imports():
    import tyro

    from shoal import check_env, evaluation, experiment, export, log, report, training
    from shoal.verbs import atari

USAGE = """\
usage: shoal VERB ...

  train PRESET      train a preset               shoal train a3c --env CartPole-v1 --workers 2 --until solved
  resume RUN        continue an interrupted run  shoal resume runs/a3c-CartPole-v1-0-...
  eval RUN          play episodes with the trained policy
  report RUN...     one HTML page about one or more runs
  replay RUN        repeat a run of several workers in its recorded order, to the same bits
  compare PRESET... train presets at equal steps, draw one figure   shoal compare a2c ppo dqn --seeds 5
  export RUN        write the policy as an ONNX file
  check-env ID      what an agent will see of an environment, and whether it keeps its promises
  list [KIND]       presets, envs, algorithms, compressors, correctors, runtimes
  bench NAME        run a benchmark of the checkout

`shoal VERB --help` tells the options of a verb, `shoal train PRESET --help` those of a preset's parts.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; the process's own when None.

    Returns:
        The exit code.
    """
    typed = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(typed)
    except errors.ShoalError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("shoal: left at once; what was saved before is intact", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _dispatch(typed: list[str]) -> int:
    if not typed or typed[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if typed else 2
    if typed[0] in ("-V", "--version", "version"):
        print(f"shoal {__version__}")
        return 0
    verb, rest = typed[0], typed[1:]
    if verb not in VERBS:
        raise errors.unknown("command", verb, VERBS, "`shoal --help` lists them.")
    if verb not in KEEPING:
        return VERBS[verb](rest)
    with experiment.keep_programs():  # nobody has changed code in memory: the process is ours
        return VERBS[verb](rest)


# ================================================================================================ train


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a preset; `shoal train PRESET --help` adds the options of its parts."""

    preset: tyro.conf.Positional[str]
    """One of `shoal list presets`."""
    env: str | None = None
    """Environment id: CartPole-v1, module:Env-v0, gymnax:ID or probe:NAME."""
    steps: int | None = None
    """Environment steps in all."""
    seed: int = 0
    """Seed of everything random."""
    seeds: int | None = None
    """Train so many seeds, from --seed on, in one program (runtimes on_device and host)."""
    workers: int | None = None
    """Worker processes (short for --runtime.workers, or --runtime.bundles of a parameter server)."""
    replayable: bool = False
    """Record the order of the workers' updates, for `shoal replay` (short for --runtime.replayable)."""
    runtime: str | None = None
    """How to run: one of `shoal list runtimes`; the preset and the environment decide when not given."""
    corrector: str | None = None
    """How off-policy experience is corrected: one of `shoal list correctors`."""
    until: str | None = None
    """Stop early at this mean return of the last 100 episodes; "solved" takes the environment's own number."""
    out: Path | None = None
    """The run folder; must not exist. Default: runs/PRESET-ENV-SEED-TIME (of several seeds: FIRSTtoLAST)."""
    episodes: int | None = None
    """Stop after so many training episodes (of each seed), or at --steps if that comes first."""
    eval_episodes: int = 20
    """Episodes of the evaluation at the end; 0 for none."""
    quiet: bool = False
    """Show nothing while training."""
    json: bool = False
    """Print the summary as one JSON object."""


def _train(typed: list[str]) -> int:
    since = output.process_start()
    first = arguments.peek(typed)
    if first is None:
        if {"-h", "--help"} & set(typed):
            arguments.parse(TrainOptions, "train", ["--help"])
        raise errors.Refused("give a preset, e.g. `shoal train a3c`; `shoal list presets` describes them")
    request = presets.Request(
        first, env=arguments.value(typed, "--env"), runtime=arguments.value(typed, "--runtime"),
        corrector=arguments.value(typed, "--corrector"),
    )  # fmt: skip
    cls = _with_parts(request)
    given = arguments.parse(cls, f"train {first}", [first, *arguments.without_first(typed, first)])
    configs = {kind: getattr(given, f"{kind}_config") for kind in experiment.kinds()}
    for name, value in ((presets.workers(request), given.workers), ("replayable", given.replayable or None)):
        if value is None:
            continue
        if not hasattr(configs["runtime"], name):
            raise errors.Refused(_lacking(request, value, configs))
        configs["runtime"] = dataclasses.replace(configs["runtime"], **{name: value})
    if given.eval_episodes < 0:
        raise errors.Refused(f"--eval-episodes {given.eval_episodes} is negative; 0 turns the evaluation off")
    request = request._replace(
        steps=given.steps, seed=given.seed, until=given.until, episodes=given.episodes, configs=configs
    )
    asked: dict[str, Any] = {
        "console": log.pick(given.quiet),
        "eval_episodes": given.eval_episodes,
        "since": since,
        "command": shlex.join(["shoal", "train", *typed]),
    }
    if given.seeds is None:
        return _ended(training.train(request, given.out, **asked), given.json, given.quiet)
    return _ended(training.train_seeds(request, given.seeds, given.out, **asked), given.json, given.quiet)


def _lacking(request: presets.Request, value: int | bool, configs: dict[str, Any]) -> str:
    """What is said of --replayable (True) or --workers where the runtime lacks it, with the runtimes that would do."""
    parts = presets.parts(request)
    lacks = ("--replayable", "does not record updates"), (f"--workers {value}", "has no workers")
    shown, reason = lacks[value is not True]

    def would_do(other: str) -> bool:
        field = "replayable" if value is True else presets.workers(request._replace(runtime=other))
        has = field in experiment.config_class("runtime", other).__dataclass_fields__  # type: ignore[attr-defined]
        return has and experiment.serves(other, parts["algorithm"], configs)

    others = " or ".join(filter(would_do, registry.names("runtime")))
    instead = f", or use --runtime {others}" if others else ""
    return f"{shown}: the {parts['runtime']} runtime {reason}; leave it out{instead}"


def _with_parts(request: presets.Request) -> type:
    """`TrainOptions` with a group of options for each of the preset's parts, defaults as the preset has them."""
    fields = []
    for kind in experiment.kinds():
        config = presets.config(request, kind)
        annotation: Any = Annotated[type(config), tyro.conf.arg(name=kind)]
        fields.append((f"{kind}_config", annotation, dataclasses.field(default=config, metadata={"flag": kind})))
    made = dataclasses.make_dataclass("TrainOptions", fields, bases=(TrainOptions,), frozen=True)
    preset = presets.find(request.preset)
    made.__doc__ = f"{request.preset}: {preset.summary}.\n\nSource: {preset.source}."
    return made


def _ended(run: training.Run | training.Group, as_json: bool, quiet: bool) -> int:
    from shoal.report import closing

    if not quiet:
        tell = closing.group if isinstance(run, training.Group) else closing.text
        output.say(tell(run.summary, run.folder))
    if as_json:
        output.print_json(run.summary)
    return 75 if run.summary["status"] == "interrupted" else 0


# ================================================================================================ the other verbs


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Continue an interrupted run from its newest good checkpoint."""

    run: tyro.conf.Positional[Path]
    """The run folder; of several seeds, or of a comparison, the folder that holds theirs."""
    eval_episodes: int = 20
    """Episodes of the evaluation at the end; 0 for none."""
    quiet: bool = False
    """Show nothing while training."""
    json: bool = False
    """Print the summary as one JSON object."""


def _resume(typed: list[str]) -> int:
    since = output.process_start()
    given = arguments.parse(ResumeOptions, "resume", typed)
    if compare.is_one(given.run):
        return compare.resume(given.run, given.eval_episodes, since, quiet=given.quiet, as_json=given.json)
    run = training.resume(given.run, console=log.pick(given.quiet), eval_episodes=given.eval_episodes, since=since)
    return _ended(run, given.json, given.quiet)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes with the trained policy, frozen and greedy."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    episodes: int = 100
    """How many."""
    seed: int = 0
    """Seed of the episodes."""
    sample: bool = False
    """Sample actions as in training instead of taking the most probable one."""
    json: bool = False
    """Print the result as one JSON object."""


def _eval(typed: list[str]) -> int:
    given = arguments.parse(EvalOptions, "eval", typed)
    if given.episodes < 1:
        raise errors.Refused(f"--episodes {given.episodes}, but at least 1 is needed")
    if given.seed < 0:
        raise errors.Refused(f"--seed {given.seed} is negative; give 0 or more")
    built, made, policy = training.load(given.run, output.say)
    played = evaluation.evaluate(built.parts, policy, given.episodes, given.seed, greedy=not given.sample)
    returns = [value if math.isfinite(value) else None for value in played.returns]
    result = {"run": str(given.run), "preset": made.preset, "env": made.env, "seed": given.seed,
              "greedy": not given.sample, **played.summary(), "returns": returns,
              "lengths": played.lengths}  # fmt: skip
    mean, spread = result["eval_return_mean"], result["eval_return_std"]
    told = "not measured (the simulator paid NaN)" if mean is None else f"{mean:.2f} ± {spread:.2f}"
    output.say(f"{made.preset} on {made.env}: return {told} over {given.episodes} episodes")
    if given.json:
        output.print_json(result)
    return 0


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """One self-contained HTML page about one or more runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of several seeds; runs that differ only in their seed are aggregated, others compared."""
    out: Path | None = None
    """The file; default: report.html in the run folder, or in the current one for several runs."""
    atari: bool = False
    """Instead of the page: human-normalised Atari scores beside A3C's and Gorila's; of no run, the published means."""
    random: tuple[str, ...] = ()
    """With --atari: GAME=SCORE, random scores to use instead of those listed, e.g. video_pinball=0."""
    json: bool = False
    """Print the path (the scores, with --atari) as one JSON object."""


def _report(typed: list[str]) -> int:
    given = arguments.parse(ReportOptions, "report", typed)
    if given.atari:
        if given.out:
            raise errors.Refused("--atari prints a table and makes no page; leave --out out")
        return atari.run(given.runs, given.random, as_json=given.json)
    if given.random:
        raise errors.Refused("--random is for the scores that --atari shows; give --atari too")
    if not given.runs:
        raise errors.Refused("give one or more run folders, e.g. `shoal report runs/*`")
    out = given.out or ((given.runs[0] if len(given.runs) == 1 else Path()) / "report.html")
    path = report.write(list(given.runs), out)
    output.say(f"report: {path}")
    if given.json:
        output.print_json({"report": str(path), "runs": [str(run) for run in given.runs]})
    return 0


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write the policy, its normaliser included, as a file other programs run; it acts as `shoal eval` does."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    format: str = "onnx"
    """The only format: onnx."""
    out: Path | None = None
    """The file; default: policy.onnx in the run folder."""
    json: bool = False
    """Print the path as one JSON object."""


def _export(typed: list[str]) -> int:
    given = arguments.parse(ExportOptions, "export", typed)
    if given.format != "onnx":
        raise errors.unknown("format", given.format, ["onnx"])
    built, made, policy = training.load(given.run, output.say)
    path = given.out or given.run / "policy.onnx"
    agent = built.parts.agent
    about = {"preset": made.preset, "env": made.env, "shoal": __version__}
    model = export.onnx_model(agent.network.spec, policy, agent.head, built.parts.spec.action, about)
    size = export.write(path, model)
    output.say(f"policy: {path} ({size / 1024:.1f} kB)")
    if given.json:
        output.print_json({"policy": str(path), "bytes": size})
    return 0


@dataclasses.dataclass(frozen=True)
class CheckEnvOptions:
    """What an agent will see of an environment, and whether it keeps its promises."""

    id: tyro.conf.Positional[str]
    """Environment id."""
    steps: int = 2000
    """Random actions to take."""
    environment: environments.Config = dataclasses.field(default=environments.Config())
    """How it is shown to the agent."""
    json: bool = False
    """Print the findings as one JSON object."""


def _check_env(typed: list[str]) -> int:
    env_id = arguments.peek(typed)
    config = environments.config_class(env_id)() if env_id else environments.Config()
    fields = [("environment", type(config), dataclasses.field(default=config))]  # the adapter's own settings
    made = dataclasses.make_dataclass("CheckEnvOptions", fields, bases=(CheckEnvOptions,), frozen=True)
    made.__doc__ = CheckEnvOptions.__doc__
    given = arguments.parse(made, "check-env", typed)
    options.check(given.environment, "environment")
    if given.steps < 1:
        raise errors.Refused(f"--steps {given.steps}, but at least 1 is needed")
    found = check_env.check(given.id, given.environment, given.steps)
    if given.json:
        output.print_json(found.to_json())
    else:
        print("\n".join(check_env.lines(found)))
    return 0 if found.ok else 2


KINDS = ("presets", "envs", "algorithms", "compressors", "correctors", "runtimes")


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """What there is to choose from."""

    kind: tyro.conf.Positional[str] = "presets"
    """presets, envs, algorithms, compressors, correctors or runtimes."""
    json: bool = False
    """Print as one JSON object."""


def _list(typed: list[str]) -> int:
    given = arguments.parse(ListOptions, "list", typed)
    if given.kind not in KINDS:
        raise errors.unknown("kind", given.kind, KINDS)
    found = {"presets": _presets, "envs": _envs}.get(given.kind, lambda: _parts(given.kind))()
    if given.json:
        output.print_json({given.kind: found})
        return 0
    width = max(map(len, found), default=0)
    for name, about in found.items():
        print(f"{name:<{width}}  {about}".rstrip())
    return 0


def _presets() -> dict[str, str]:
    return {name: f"{preset.summary} [{preset.source}]" for name, preset in presets.PRESETS.items()}


def _envs() -> dict[str, str]:
    return dict.fromkeys(environments.names(), "")


def _parts(kind: str) -> dict[str, str]:
    """The files of a part folder with the first line of each one's docstring; nothing is imported."""
    import ast

    found = {}
    for name in registry.names(kind[:-1]):
        path = Path(__file__).parent / registry.KINDS[kind[:-1]] / f"{name}.py"
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[name] = text.splitlines()[0] if text else ""
    return found


def _bench(typed: list[str]) -> int:
    """Run ``benchmarks/NAME.py`` of the checkout in a process of its own."""
    import subprocess

    folder = next((f for f in (Path("benchmarks"), Path(__file__).parents[1] / "benchmarks") if f.is_dir()), None)
    if folder is None:
        raise errors.Refused("benchmarks belong to a checkout of Shoal, and there is none here; run from one")
    names = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_") and p.stem != "table")
    if not typed or typed[0] in ("-h", "--help"):
        print(f"usage: shoal bench NAME [--json FILE] [--quick]\n\n  {', '.join(names)}")
        return 0 if typed else 2
    if typed[0] not in names:
        raise errors.unknown("benchmark", typed[0], names)
    script = folder / f"{typed[0]}.py"
    return subprocess.call([sys.executable, str(script), *typed[1:]])


KEEPING = ("train", "resume", "compare")  # lowered programs, see `programs`
VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "eval": _eval,
    "report": _report,
    "compare": compare.run,
    "replay": replay.run,
    "export": _export,
    "check-env": _check_env,
    "list": _list,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main())
