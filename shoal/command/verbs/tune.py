"""`shoal tune PRESET --budget STEPS`: search settings of a preset, and keep the best as a settings file."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from etils import epy

from shoal import experiment
from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors
from shoal.experiment import filed, populating, presets

with epy.lazy_imports():
    import tyro

    from shoal.runs import tuning


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """Search settings of a preset; `shoal tune PRESET --help` adds the options of its parts, which hold for all trials.

    A stopped search goes on with the same command and --out, or with `shoal resume FOLDER`.
    """

    preset: tyro.conf.Positional[str]
    """One of `shoal list presets`."""
    env: str | None = None
    """Environment id; the preset's own when not given."""
    budget: int | None = None
    """Environment steps of all trials together; those of the confirmation come on top."""
    method: Literal["pbt", "random", "tpe", "halving"] = "pbt"
    """pbt: a population in one program, no extra needed; random, tpe, halving: trials in turn or
    beside each other, with Optuna."""
    prior: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to search, once for each setting, e.g. algorithm.entropy_cost=log_uniform(1e-4,1e-1); uniform, log_uniform,
    integer(1,5) or choice(32,64). Default: the usual ones of the preset's rule (docs/tune.md)."""
    trials: int | None = None
    """Of random, tpe and halving: how many; the budget decides when not given."""
    trial_steps: int | None = None
    """Environment steps of a whole trial; the budget and the preset decide when not given."""
    members: int | None = None
    """Of pbt: how many; 8 when not given."""
    finalists: int | None = None
    """The best so many are trained on four further seeds each before one is the winner, within the budget; 0: the best
    score wins; the budget decides when not given."""
    confirm: int = 3
    """Train the winner and the preset's own settings anew on so many seeds, from 0 on; 0 for none."""
    eval_episodes: int = 20
    """Greedy episodes of each evaluation that scores a trial."""
    parallel: int = 1
    """Of random, tpe and halving: trials beside each other, a process and a core each."""
    seed: int = 0
    """Of the search; trials have the seeds 1000, 1001, ..."""
    settings: Path | None = None
    """A settings file to begin with, for all trials."""
    runtime: str | None = None
    """How to run the trials; the preset and the environment decide when not given."""
    corrector: str | None = None
    """How off-policy experience is corrected: one of `shoal list correctors`."""
    compressor: str | None = None
    """How the policy is made smaller for those who act: one of `shoal list compressors`."""
    out: Path | None = None
    """The tune folder; a search that is there goes on. Default: a new one in --runs, named by preset and time."""
    runs: Path = Path("runs")
    """Where the folder is made when --out is not given."""
    quiet: bool = False
    """Show nothing while searching."""
    json: bool = False
    """Print the summary as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``tune``.

    Returns:
        The exit code: 0, 75 if a signal ended it, 3 if no trial came to a score.

    Raises:
        Refused: In one line, before anything is made.
    """
    since = output.process_start()
    first = arguments.peek(typed)
    if first is None:
        if {"-h", "--help"} & set(typed):
            arguments.parse(TuneOptions, "tune", ["--help"])
        raise errors.Refused("give a preset, e.g. `shoal tune ppo --budget 1e6`; `shoal list presets` describes them")
    request = _chosen(first, typed)
    given = arguments.parse(_options(request), f"tune {first}", [first, *arguments.without_first(typed, first)])
    if given.members is not None and arguments.typed(typed, "--runtime.members"):
        presets.one_value("--members", given.members, "--runtime.members", given.runtime_config.members)
    if given.method == "pbt" and arguments.typed(typed, "--runtime.prior"):
        raise errors.Refused("--runtime.prior: what a search changes is given by --prior, once for each setting")
    if given.budget is None:
        raise errors.Refused("give the environment steps of all trials together, e.g. --budget 1e6")
    wanted = tuning.Wanted(
        method=given.method, budget=given.budget, priors=given.prior, trials=given.trials,
        trial_steps=given.trial_steps, members=given.members, finalists=given.finalists, confirm=given.confirm,
        eval_episodes=given.eval_episodes, seed=given.seed, parallel=given.parallel,
    )  # fmt: skip
    request = request._replace(configs={kind: getattr(given, f"{kind}_config") for kind in experiment.kinds()})
    command = shlex.join(["shoal", "tune", *typed])
    asked = tuning.Asked(quiet=given.quiet, say=output.say, since=since)
    made = tuning.begin(request, wanted, given.out, given.runs, command, asked)
    return _ended(made, quiet=given.quiet, as_json=given.json)


def is_one(folder: Path) -> bool:
    """Whether `shoal resume` was given a tune folder."""
    return tuning.is_one(folder)


def resume(folder: Path, since: float, *, quiet: bool, as_json: bool) -> int:
    """`shoal resume FOLDER` of a search; returns the exit code."""
    made = tuning.resume(folder, tuning.Asked(quiet=quiet, say=output.say, since=since))
    return _ended(made, quiet=quiet, as_json=as_json)


def _ended(made: tuning.Tuned, *, quiet: bool, as_json: bool) -> int:
    if not quiet:
        output.say("\n".join(tuning.lines(made.summary, made.folder)))
    if as_json:
        output.print_json(made.summary)
    return {"interrupted": 75, "failed": 3}.get(made.summary["status"], 0)


def _chosen(preset: str, typed: list[str]) -> presets.Request:
    """The parts that were typed, which decide what options there are; and what a settings file says of them."""
    chosen: dict[str, Any] = {kind: arguments.value(typed, f"--{kind}") for kind in ("env", *filed.CHOICES)}
    if arguments.value(typed, "--method") in (None, "pbt"):
        chosen["runtime"] = chosen["runtime"] or populating.RUNTIME
    request, file = presets.Request(preset=preset, **chosen), arguments.value(typed, "--settings")
    return request if file is None else filed.over(request, filed.read(file, preset))


def _options(request: presets.Request) -> type:
    """`TuneOptions` with a group of options for each of the preset's parts, defaults as the preset has them."""
    fields = []
    for kind in experiment.kinds():
        usual = kind == "runtime" and request.runtime == populating.RUNTIME
        config = populating.usual(request) if usual else presets.config(request, kind)
        annotation: Any = Annotated[type(config), tyro.conf.arg(name=kind)]
        fields.append((f"{kind}_config", annotation, dataclasses.field(default=config, metadata={"flag": kind})))
    made = dataclasses.make_dataclass("TuneOptions", fields, bases=(TuneOptions,), frozen=True)
    made.__doc__ = f"{presets.find(request.preset).summary}: search its settings.\n\n{TuneOptions.__doc__}"
    return made
