"""`shoal train PRESET`: its own options, and a group of them for each of the preset's parts."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

from etils import epy

from shoal import experiment
from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors, registry
from shoal.experiment import filed, parties, presets

with epy.lazy_imports():
    import tyro

    from shoal import log
    from shoal.runs import training


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
    """Train so many seeds, from --seed on, in one program (runtimes on_device, host, population, federated)."""
    workers: int | None = None
    """Worker processes (short for --runtime.workers, or --runtime.bundles of a parameter server)."""
    members: int | None = None
    """Members of a population (short for --runtime.members)."""
    parties: int | None = None
    """Owners that train together (short for --runtime.parties); the steps are divided between them."""
    parties_file: Path | None = None
    """Owners of your own, in TOML: a table [[party]] each: name, env, settings of environment, network, optimiser."""
    replayable: bool = False
    """Record the order of the workers' updates, for `shoal replay` (short for --runtime.replayable)."""
    runtime: str | None = None
    """How to run: one of `shoal list runtimes`; the preset and the environment decide when not given."""
    corrector: str | None = None
    """How off-policy experience is corrected: one of `shoal list correctors`."""
    compressor: str | None = None
    """How the policy is made smaller for those who act: one of `shoal list compressors`."""
    settings: Path | None = None
    """A settings file, e.g. the best.json of `shoal tune`; what is typed beside it wins over it."""
    until: str | None = None
    """Stop early at this mean return of the last 100 episodes; "solved" takes the environment's own number."""
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = dataclasses.field(
        default=None, metadata={"flag": "from"}
    )
    """A run whose policy, with its statistics of observations, this one starts from; shapes must be the same."""
    from_schedule: Path | None = None
    """A population's run: one agent alone is trained with the schedule of hyperparameters that won there."""
    out: Path | None = None
    """The run folder; must not exist. Default: runs/PRESET-ENV-SEED-TIME (of several seeds: FIRSTtoLAST)."""
    episodes: int | None = None
    """Stop after so many training episodes (of each seed), or at --steps if that comes first."""
    evaluate_every: int | None = None
    """Also evaluate while it trains, every so many environment steps; the best policy is kept (`eval --best`)."""
    evaluate_episodes: int | None = None
    """Episodes of each of these evaluations; 10 if not given."""
    eval_episodes: int = 20
    """Episodes of the evaluation at the end; 0 for none."""
    quiet: bool = False
    """Show nothing while training."""
    json: bool = False
    """Print the summary as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``train``.

    Returns:
        The exit code: 0, 75 if a signal ended it.

    Raises:
        Refused: In one line, before anything is made.
    """
    since = output.process_start()
    first = arguments.peek(typed)
    if first is None:
        if {"-h", "--help"} & set(typed):
            arguments.parse(TrainOptions, "train", ["--help"])
        raise errors.Refused("give a preset, e.g. `shoal train a3c`; `shoal list presets` describes them")
    request = chosen(first, typed)
    given = arguments.parse(options(request), f"train {first}", [first, *arguments.without_first(typed, first)])
    request = asked_for(request, given, typed)
    asked: dict[str, Any] = {
        "console": log.pick(given.quiet),
        "eval_episodes": given.eval_episodes,
        "since": since,
        "command": shlex.join(["shoal", "train", *typed]),
    }
    made = (
        training.train(request, given.out, **asked)
        if given.seeds is None
        else training.train_seeds(request, given.seeds, given.out, **asked)
    )
    return output.ended(made, as_json=given.json, quiet=given.quiet)


def asked_for(request: presets.Request, given: TrainOptions, typed: list[str]) -> presets.Request:
    """What the options come to.

    Args:
        request: The parts that were chosen.
        given: All options.
        typed: As they were typed: a setting at its default may have been asked for, too.

    Raises:
        Refused: One that the runtime lacks, a wrong number, or two values of one setting.
    """
    configs = _configs(request, given, typed)
    if given.eval_episodes < 0:
        raise errors.Refused(f"--eval-episodes {given.eval_episodes} is negative; 0 turns the evaluation off")
    return request._replace(
        steps=given.steps, seed=given.seed, until=given.until, episodes=given.episodes, start=given.start,
        configs=configs, from_schedule=given.from_schedule,
        evaluate_every=given.evaluate_every, evaluate_episodes=given.evaluate_episodes,
    )  # fmt: skip


def chosen(preset: str, typed: list[str]) -> presets.Request:
    """The parts that were typed, which decide what options there are; and what a settings file says of them.

    Args:
        preset: Its name.
        typed: What stands after ``train``.
    """
    request = presets.Request(
        preset=preset,
        env=arguments.value(typed, "--env"),
        runtime=arguments.value(typed, "--runtime"),
        corrector=arguments.value(typed, "--corrector"),
        compressor=arguments.value(typed, "--compressor"),
    )
    if (owners := arguments.value(typed, "--parties-file")) is not None:
        request = parties.over(request, owners)
    file = arguments.value(typed, "--settings")
    return request if file is None else filed.over(request, filed.read(file, preset))


def options(request: presets.Request) -> type:
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


def _configs(request: presets.Request, given: TrainOptions, typed: list[str]) -> dict[str, Any]:
    """The settings of every part, short options included."""
    configs = {kind: getattr(given, f"{kind}_config") for kind in experiment.kinds()}
    for name, (short, value) in presets.shortened(request, vars(given)).items():
        if not hasattr(configs["runtime"], name):
            raise errors.Refused(_lacking(request, name, value, configs))
        flag = f"--runtime.{name.replace('_', '-')}"
        if arguments.typed(typed, flag):
            presets.one_value(f"--{short}", value, flag, getattr(configs["runtime"], name))
        configs["runtime"] = dataclasses.replace(configs["runtime"], **{name: value})
    return configs


def _lacking(request: presets.Request, name: str, value: int | bool, configs: dict[str, Any]) -> str:
    """What is said of a short option where the runtime lacks it, with the runtimes that would do."""
    parts = presets.parts(request)
    lacks = {"replayable": ("--replayable", "does not record updates")}
    lacks |= {one: (f"--{one} {value}", "has none") for one in ("members", "parties")}
    shown, reason = lacks.get(name, (f"--workers {value}", "has no workers"))

    def would_do(other: str) -> bool:
        field = name if name in lacks else presets.workers(request._replace(runtime=other))
        has = field in experiment.config_class("runtime", other).__dataclass_fields__  # type: ignore[attr-defined]
        return has and experiment.serves(other, parts["algorithm"], configs)

    others = " or ".join(filter(would_do, registry.names("runtime")))
    instead = f", or use --runtime {others}" if others else ""
    return f"{shown}: the {parts['runtime']} runtime {reason}; leave it out{instead}"
