"""`shoal compare PRESET PRESET ...`: several presets on one environment, at equal steps, in one figure."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from etils import epy

from shoal import experiment
from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors
from shoal.experiment import presets

with epy.lazy_imports():
    import tyro

    from shoal import log
    from shoal.runs import comparison


CHOSEN = ("runtime", "corrector", "compressor")  # for all presets


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Train several presets at equal environment steps, one after the other, and draw one figure.

    Settings of parts that all named presets have are options too (`--algorithm.discount 0.99`): `shoal compare a2c ppo
    --help` lists them. A stopped comparison goes on with `shoal resume FOLDER`.
    """

    presets: tyro.conf.Positional[tuple[str, ...]]
    """Two or more of `shoal list presets`, before the options."""
    env: str | None = None
    """Environment id; may be left out where all presets come with the same."""
    seeds: int = 5
    """Seeds of each preset, from --seed on; one program where the runtime can, else one after the other."""
    seed: int = 0
    """The first seed."""
    steps: int | None = None
    """Environment steps of each seed, the same for all; default: the most that one of the presets is tuned for."""
    runtime: str | None = None
    """How to run all of them; the presets and the environment decide when not given."""
    corrector: str | None = None
    """How off-policy experience is corrected, by all of them: one of `shoal list correctors`."""
    compressor: str | None = None
    """How the policy of each is made smaller for those who act: one of `shoal list compressors`."""
    out: Path | None = None
    """The comparison's folder; must not exist. Default: a new one in --runs, named by environment, seeds and time."""
    runs: Path = Path("runs")
    """Where the folder is made when --out is not given."""
    eval_episodes: int = 20
    """Episodes of the evaluation at the end of each seed; 0 for none."""
    quiet: bool = False
    """Show nothing while training."""
    json: bool = False
    """Print the summary as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``compare``.

    Returns:
        The exit code: 0, 75 if a signal ended it, 3 if a training failed.

    Raises:
        Refused: In one line, before anything is made.
    """
    since = output.process_start()
    names = arguments.leading(typed)
    if not names:
        if {"-h", "--help"} & set(typed):
            arguments.parse(CompareOptions, "compare", ["--help"])
        raise errors.Refused(
            "name two presets or more, before the options, e.g. `shoal compare a2c ppo`; `shoal list presets` "
            "describes them"
        )
    requests = _requests(names, typed)
    rest = typed[: typed.index(names[0])] + typed[typed.index(names[0]) + len(names) :]
    _refuse_unshared(requests, rest)
    asked = []
    for request in requests:
        given = arguments.parse(_options(requests, request), f"compare {' '.join(names)}", [*names, *rest])
        configs = {kind: _replaced(request, kind, getattr(given, f"{kind}_config")) for kind in experiment.kinds()}
        asked.append(request._replace(steps=given.steps, seed=given.seed, configs=configs))
    command = shlex.join(["shoal", "compare", *typed])
    how = _asked(given.eval_episodes, since, given.quiet)
    compared = comparison.begin(asked, given.seeds, given.out, given.runs, command, how)
    return _ended(compared, quiet=given.quiet, as_json=given.json)


def is_one(folder: Path) -> bool:
    """Whether `shoal resume` was given a comparison."""
    return comparison.is_one(folder)


def resume(folder: Path, eval_episodes: int, since: float, *, quiet: bool, as_json: bool) -> int:
    """`shoal resume FOLDER` of a comparison; returns the exit code."""
    compared = comparison.resume(folder, _asked(eval_episodes, since, quiet))
    return _ended(compared, quiet=quiet, as_json=as_json)


def _asked(eval_episodes: int, since: float, quiet: bool) -> comparison.Asked:
    if eval_episodes < 0:
        raise errors.Refused(f"--eval-episodes {eval_episodes} is negative; 0 turns the evaluation off")
    say = (lambda _: None) if quiet else output.say
    return comparison.Asked(
        console=functools.partial(log.pick, quiet), say=say, eval_episodes=eval_episodes, since=since
    )


def _ended(compared: comparison.Comparison, *, quiet: bool, as_json: bool) -> int:
    from shoal.report import closing

    if not quiet:
        output.say(closing.comparison(compared.summary, compared.folder))
    if as_json:
        output.print_json(compared.summary)
    return {"interrupted": 75, "failed": 3}.get(compared.summary["status"], 0)


# ================================================================================================ settings of all


def _requests(names: Sequence[str], typed: list[str]) -> list[presets.Request]:
    """One a preset, with the environment they share."""
    own = {name: presets.find(name).env for name in names}  # an unknown name is told first
    env = arguments.value(typed, "--env") or own[names[0]]
    if arguments.value(typed, "--env") is None and len(set(own.values())) > 1:
        told = ", ".join(f"{name} {of}" for name, of in own.items())
        raise errors.Refused(f"the presets come with different environments ({told}); give one with --env")
    chosen: dict[str, Any] = {
        kind: arguments.value(typed, f"--{kind}") for kind in ("runtime", "corrector", "compressor")
    }
    return [presets.Request(preset=name, env=env, **chosen) for name in names]


def _options(requests: Sequence[presets.Request], of: presets.Request) -> type:
    """`CompareOptions` with the settings that all presets have, at the defaults of one of them."""
    fields = []
    for kind in experiment.kinds():
        default = _shared(requests, kind)(**_values(requests, kind, of))
        annotation: Any = Annotated[type(default), tyro.conf.arg(name=kind)]
        fields.append((f"{kind}_config", annotation, dataclasses.field(default=default, metadata={"flag": kind})))
    made = dataclasses.make_dataclass("CompareOptions", fields, bases=(CompareOptions,), frozen=True)
    made.__doc__ = CompareOptions.__doc__
    return made


def _shared(requests: Sequence[presets.Request], kind: str) -> type:
    configs = [presets.config(request, kind) for request in requests]
    return arguments.shared([type(config) for config in configs], configs[0])


def _values(requests: Sequence[presets.Request], kind: str, of: presets.Request) -> Mapping[str, Any]:
    config = presets.config(of, kind)
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(_shared(requests, kind))}


def _replaced(request: presets.Request, kind: str, shared: Any) -> Any:
    """A preset's config with the shared settings as they were typed."""
    values = {field.name: getattr(shared, field.name) for field in dataclasses.fields(shared)}
    return dataclasses.replace(presets.config(request, kind), **values)


def _refuse_unshared(requests: Sequence[presets.Request], typed: Sequence[str]) -> None:
    """A setting that only some of the presets have is refused by the names of those that lack it."""
    own = {request.preset: _flags([request]) for request in requests}
    shared = _flags(requests)
    for word in typed:
        flag = word.partition("=")[0].replace("_", "-")
        flag = flag.replace(".no-", ".") if flag not in shared else flag
        having = [name for name, flags in own.items() if flag in flags]
        if flag not in shared and having:
            lacking = [name for name in own if name not in having]
            rest = f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} not"
            told = rest if lacking else "it stands for different things"
            raise errors.Refused(
                f"{word}: {', '.join(having)} {'has' if len(having) == 1 else 'have'} such a setting, {told}; a "
                "comparison sets what all its presets have"
            )


def _flags(requests: Sequence[presets.Request]) -> set[str]:
    return arguments.flags(_options(requests, requests[0])) - arguments.flags(CompareOptions)
