"""The one wiring file: an experiment as data, checked, and built into the parts a runtime receives.

experiment = algorithm x network x environment x corrector x compressor x runtime. An `Experiment` is what
`config.json` holds and what a worker process is sent; `build` makes the same parts from it anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms, environments, networks
from shoal.core import compilation, errors, options, programs, registry, types
from shoal.experiment import correcting, counting, parties, scheduled, starting
from shoal.formulas import optimise
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    import multiprocessing

    from shoal.environments import _check
    from shoal.formulas import splitting, streams
    from shoal.runtimes.actor_learner import precision

SCHEMA = 2  # of config.json; the older ones are read, and mean what they meant (`_as_recorded`)
OUTSIDE = (
    "seed",
    "goal",
    "preset",
    "earlier",
    "evaluate_every",
    "evaluate_episodes",
)  # of an experiment, what no program depends on
NAMED = ("algorithm", "corrector", "compressor", "runtime")  # parts that are a choice among files


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides what a run computes."""

    preset: str
    env: str
    steps: int  # environment steps in all
    seed: int
    goal: types.Goal | None
    algorithm: str
    corrector: str
    compressor: str
    runtime: str
    configs: Mapping[str, Any]  # kind -> its config; the kinds of `kinds()`
    episodes: int | None = None  # training episodes after which the run ends, if before its steps; None: steps alone
    schema: int = SCHEMA  # of the config.json it is from
    anneal: int | None = None  # environment steps over which the learning rate is lowered; None: over all
    start: str | None = None  # digest of the policy it starts from (`starting`); None: from nothing
    schedule: scheduled.Schedule = ()  # that its learner's numbers follow; (): none
    evaluate_every: int | None = None  # environment steps between two evaluations while it trains; None: there are none
    evaluate_episodes: int | None = None  # of each of them; None likewise
    parties: tuple[parties.Owner, ...] = ()  # who trains together, from a file; (): the runtime and the environment say
    earlier: tuple[Mapping[str, Any], ...] = ()  # what it was asked for before it was to go on (`runs.extending`)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in ``config.json``."""
        parts = {}
        for kind in kinds():
            name = {"name": getattr(self, kind)} if kind in NAMED else {}
            parts[kind] = {**name, **options.plain(self.configs[kind])}
        return {
            "schema": self.schema,
            "preset": self.preset,
            "env": self.env,
            "steps": self.steps,
            "seed": self.seed,
            "goal": self.goal._asdict() if self.goal else None,
            "parts": parts,
            # Left out where there is none, so that digests of older runs stay what they were.
            **({"episodes": self.episodes} if self.episodes is not None else {}),
            **({"anneal": self.anneal} if self.anneal is not None else {}),
            **({"start": self.start} if self.start is not None else {}),
            **({"schedule": scheduled.plain(self.schedule)} if self.schedule else {}),
            **({"evaluate_every": self.evaluate_every} if self.evaluate_every is not None else {}),
            **({"evaluate_episodes": self.evaluate_episodes} if self.evaluate_episodes is not None else {}),
            **({"parties": parties.to_json(self.parties)} if self.parties else {}),
            **({"earlier": [dict(one) for one in self.earlier]} if self.earlier else {}),
        }


def kinds() -> tuple[str, ...]:
    """The kinds of parts, in the order they are shown."""
    return ("environment", "algorithm", "network", "optimiser", "corrector", "compressor", "runtime")


def config_class(kind: str, name: str) -> type:
    """The config dataclass of a part.

    Args:
        kind: One of `kinds`.
        name: The choice, for kinds that have one; of an environment, its id.

    Raises:
        Refused: No such choice.
    """
    if kind == "environment":
        return environments.config_class(name)
    fixed = {"network": networks.Config, "optimiser": optimise.Config}
    return fixed[kind] if kind in fixed else registry.load(kind, name).Config


def from_json(data: Mapping[str, Any]) -> Experiment:
    """The experiment of a ``config.json``.

    Raises:
        Refused: A key that is unknown or missing, a wrong value, or a newer schema.
    """
    try:
        if int(data["schema"]) > SCHEMA:
            raise errors.Refused(
                f"config.json has schema {data['schema']}, this Shoal reads up to {SCHEMA}; install a newer one"
            )
        parts = {kind: dict(data["parts"].get(kind, {})) for kind in kinds()}
        names = {kind: parts[kind].pop("name") for kind in NAMED}
        classes = {"environment": data["env"], **names}
        configs: dict[str, Any] = {k: options.build(config_class(k, classes.get(k, "")), parts[k], k) for k in kinds()}
        goal = types.Goal(**data["goal"]) if data["goal"] else None
        return Experiment(
            preset=data["preset"], env=data["env"], steps=data["steps"], seed=data["seed"], goal=goal, **names,
            configs=configs, episodes=data.get("episodes"), schema=int(data["schema"]), anneal=data.get("anneal"),
            start=data.get("start"), schedule=scheduled.made(data.get("schedule", ())),
            evaluate_every=data.get("evaluate_every"), evaluate_episodes=data.get("evaluate_episodes"),
            earlier=tuple(data.get("earlier", ())), parties=parties.from_json(data.get("parties", ())),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.Refused(f"config.json is not one of Shoal's ({type(error).__name__}: {error})") from None


class Built(NamedTuple):
    """An experiment ready to run."""

    parts: types.Parts
    runtime: types.Runtime
    shelf: programs.Shelf  # `parts.programs`


def validate(experiment: Experiment, opened: environments.Opened) -> None:
    """Refuse what cannot work, before anything is created or any process starts.

    Raises:
        Refused: Says what was given, what is allowed and what to do.
    """
    optional = ("episodes", "evaluate_every", "evaluate_episodes")
    for name in ("steps", "seed", *optional):
        value = getattr(experiment, name)
        if name in optional and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise errors.Refused(f"{name}={value!r} is not a whole number; give one, e.g. {name}=100000")
    if experiment.steps < 1:
        raise errors.Refused(f"steps={experiment.steps}, but at least 1 environment step is needed")
    counting.check_steps(experiment.steps)
    if experiment.episodes is not None and experiment.episodes < 1:
        raise errors.Refused(f"episodes={experiment.episodes}, but at least 1 is needed; leave it out to run by steps")
    _check_evaluations(experiment)
    if not 0 <= experiment.seed < 2**63:
        raise errors.Refused(f"seed={experiment.seed} is out of range; it must be between 0 and 2^63 - 1")
    for kind in kinds():
        options.check(experiment.configs[kind], kind)
    optimise.check(experiment.configs["optimiser"])
    _check_pace(experiment)
    how = ways(experiment.runtime, experiment.configs["runtime"])
    lead = parties.lead(experiment, how)
    if not experiment.parties:  # what is wrong with all of them is nobody's in particular
        _check_algorithm(lead, opened.spec)
    _check_parties(experiment, how)
    registry.load("runtime", experiment.runtime).check(experiment.configs["runtime"], experiment, opened)
    _check_compressor(lead, opened)
    if how.fits is not None:
        how.fits(_agent(lead, opened.spec, how))
    if how.records and not _check.repeats(opened):
        raise errors.Refused(
            f"--replayable on {experiment.env}: the same seed and actions do not give the same observations and "
            f"rewards, so nothing could be repeated; `shoal check-env {experiment.env}` tells more"
        )


def _check_parties(experiment: Experiment, how: types.Ways) -> None:
    """Hold each kind of party against the rule and against each other; nothing where there are none."""
    if not how.parties:
        if experiment.parties:
            sharing = [name for name in registry.names("runtime") if ways(name).parties]
            raise errors.Refused(
                f"--parties-file: the {experiment.runtime} runtime trains no parties; use --runtime "
                f"{' or '.join(sharing)}, or leave it out"
            )
        return
    agents, kinds = [], parties.kinds(experiment, how)
    for name, made in kinds:
        try:
            opened = environments.open(made.env, made.configs["environment"])
            _check_algorithm(made, opened.spec)
            check_environment(opened)
        except errors.Refused as problem:
            raise errors.Refused(f"party {name}: {problem}") if len(kinds) > 1 else problem from None
        agents.append((name, _agent(made, opened.spec, how), opened.spec))
    parties.check(agents, experiment.configs["runtime"].exchange)


def open_environment(experiment: Experiment) -> environments.Opened:
    """The environment of a run; where parties have one each, the one that stands for all (`types.Parts`).

    Raises:
        Refused: As `environments.open`.
    """
    lead = parties.lead(experiment, ways(experiment.runtime, experiment.configs["runtime"]))
    try:
        return environments.open(lead.env, lead.configs["environment"])
    except errors.Refused as problem:
        if not experiment.parties:
            raise
        raise errors.Refused(f"party {experiment.parties[0].name}: {problem}") from None


def compiled(experiment: Experiment) -> bool:
    """Whether all environments of a run are pure JAX; opens nothing."""
    return all(map(environments.pure_jax, _ids(experiment)))


def processes(experiment: Experiment) -> int:
    """Worker processes that a run starts, for each seed; none where its environments are compiled with the learner."""
    how = ways(experiment.runtime, experiment.configs["runtime"])
    return 0 if how.compiles and compiled(experiment) else how.processes


def elsewhere(experiment: Experiment) -> str:
    """Why another process cannot open one of its environments; "" if it can. Opens nothing."""
    return next(filter(None, map(environments.elsewhere, _ids(experiment))), "")


def _ids(experiment: Experiment) -> list[str]:
    return parties.ids(experiment, ways(experiment.runtime, experiment.configs["runtime"]))


def _check_pace(experiment: Experiment) -> None:
    config, how = experiment.configs["optimiser"], ways(experiment.runtime, experiment.configs["runtime"])
    if config.local_rate != 1.0 and how.captures:
        raise errors.Refused(
            f"optimiser.local_rate={config.local_rate:g} is for parties, and the {experiment.runtime} runtime applies "
            "all gradients to one set of parameters; leave it out, or use --runtime federated"
        )


def _check_evaluations(experiment: Experiment) -> None:
    every, episodes = experiment.evaluate_every, experiment.evaluate_episodes
    if every is not None and ways(experiment.runtime, experiment.configs["runtime"]).parties:
        raise errors.Refused(
            f"--evaluate-every {every} is for one policy, and parties have one each; use --runtime.evaluate-every, "
            "which counts the steps of a party and evaluates all of them where they live"
        )
    if every is None and episodes is not None:
        raise errors.Refused(
            f"--evaluate-episodes {episodes} is for evaluations while it trains; give --evaluate-every as well, or "
            "--eval-episodes for the one at the end"
        )
    for name, value in (("evaluate-every", every), ("evaluate-episodes", episodes)):
        if value is not None and value < 1:
            raise errors.Refused(f"--{name} {value}, but at least 1 is needed; leave it out for no such evaluations")


def check_environment(opened: environments.Opened) -> None:
    """Hold one reset and one step against what the environment declares; before anything is created.

    Raises:
        Refused: It raises, or gives what it does not declare.
    """
    if wrong := _check.first(opened):
        raise errors.Refused(
            f"{opened.spec.id}: {wrong.what}; {wrong.remedy}. `shoal check-env {opened.spec.id}` tells more"
        )


def check_shares(steps: int, algorithm: str, runtime: str, configs: Mapping[str, Any]) -> None:
    """See `counting.check_shares`, of members and of parties; nothing is opened or built.

    Args:
        steps: Environment steps of the run.
        algorithm: The rule's name.
        runtime: The runtime's.
        configs: The settings of all parts.
    """
    how = ways(runtime, configs["runtime"])
    update = traits(algorithm, configs["algorithm"]).rollout * how.streams
    for count, what in ((how.parties, "parties"), (how.members, "members")):
        counting.check_shares(steps, update, count, what, f"--{what}")


def traits(algorithm: str, config: Any = None) -> types.Traits:
    """What a learning rule declares.

    Args:
        algorithm: Its name.
        config: Its settings; None: as they come.
    """
    module = registry.load("algorithm", algorithm)
    return module.traits(module.Config() if config is None else config)


def ways(runtime: str, config: Any = None) -> types.Ways:
    """What a runtime declares.

    Args:
        runtime: Its name.
        config: Its settings; None: as they come.
    """
    module = registry.load("runtime", runtime)
    return module.ways(module.Config() if config is None else config)


def _check_algorithm(experiment: Experiment, spec: types.EnvSpec) -> None:
    kind, configs = spec.action.kind, experiment.configs
    rule, how = traits(experiment.algorithm, configs["algorithm"]), ways(experiment.runtime, configs["runtime"])
    if kind not in rule.actions:
        raise errors.Refused(
            f"{experiment.algorithm} learns {' and '.join(rule.actions)} actions, but those of {experiment.env} are "
            f"{kind}; presets that fit: {', '.join(fitting(kind))}"
        )
    correcting.check(experiment.corrector, configs["corrector"], experiment.algorithm, rule, spec)
    module = registry.load("algorithm", experiment.algorithm)
    if reason := module.fits(configs["algorithm"], configs["network"], spec):
        raise errors.Refused(f"{experiment.algorithm} on {experiment.env}: {reason}")
    _check_learning(experiment, rule, how)
    if how.pads and not rule.padded:
        raise errors.Refused(
            f"{experiment.algorithm} learns from whole segments only; leave --runtime.segment at fixed, or use a3c"
        )
    if reason := unshareable(experiment.runtime, experiment.algorithm, configs["algorithm"], configs["runtime"]):
        raise errors.Refused(
            f"the {experiment.runtime} runtime applies gradients itself, but {reason}; "
            f"or use {'--runtime.exchange delta' if how.splits else '--runtime on_device or host'}"
        )


def fitting(actions: str) -> list[str]:
    """The presets whose rule learns such actions."""
    from shoal.experiment import presets  # here: it is made from this file

    return [name for name, preset in presets.PRESETS.items() if actions in traits(preset.algorithm).actions]


def _check_learning(experiment: Experiment, rule: types.Traits, how: types.Ways) -> None:
    if how.learns != rule.learns:
        fitting = [name for name in registry.names("runtime") if ways(name).learns == rule.learns]
        raise errors.Refused(
            f"{experiment.algorithm} learns by {rule.learns}, the {experiment.runtime} runtime by "
            f"{how.learns}; use --runtime {' or '.join(fitting)}"
        )
    if rule.learns != "rollouts" and experiment.configs["optimiser"] != optimise.Config():
        raise errors.Refused(
            f"{experiment.algorithm} has no gradient for an optimiser to apply; leave the options of --optimiser out"
        )


def _check_compressor(experiment: Experiment, opened: environments.Opened) -> None:
    how = ways(experiment.runtime, experiment.configs["runtime"])
    if experiment.compressor == "identity" and not how.ships_policy:
        return
    asked = f"--runtime {experiment.runtime} --compressor {experiment.compressor}"
    if not (how.ships_policy or how.simulates):
        served = [name for name in registry.names("runtime") if ways(name).ships_policy or ways(name).simulates]
        raise errors.Refused(
            f"{asked}: under the {experiment.runtime} runtime whoever acts holds the policy itself, so there is "
            f"nothing to compress; use --runtime {' or '.join(served)}, or leave it out"
        )
    agent = _agent(experiment, opened.spec, how)
    made = _compressor(experiment, agent)
    if made.refuses:
        raise errors.Refused(f"{asked}: {made.refuses}")
    if how.packs_learner and (why := precision.refuses(agent, made)):
        raise errors.Refused(why)
    if made.simulate is None and not how.ships_policy:
        shipping = [name for name in registry.names("runtime") if ways(name).ships_policy]
        instead = f"use --runtime {' or '.join(shipping)}" if shipping else "leave it out"
        raise errors.Refused(
            f"{asked}: the {experiment.runtime} runtime acts with what a compressor would compute, and this one, as it "
            f"is set, learns from observations, which happens outside of the compiled program; {instead}"
        )


def unshareable(runtime: str, algorithm: str, config: Any, settings: Any = None) -> str:
    """Why a runtime cannot apply the gradients of a rule itself; "" if it can, or does not try.

    Args:
        runtime: Its name.
        algorithm: The rule's name.
        config: The rule's settings.
        settings: The runtime's; None: as they come.
    """
    how, rule = ways(runtime, settings), traits(algorithm, config)
    if not (how.captures or how.splits):
        return ""
    if rule.capacity and not (how.holds_memory or how.parties):
        return f"{algorithm} keeps a replay memory, which every worker would have to hold and to send"
    return rule.unshareable


def serves(runtime: str, algorithm: str, configs: Mapping[str, Any]) -> bool:
    """Whether a runtime can train a rule with these settings of its and the optimiser's."""
    how, rule = ways(runtime), traits(algorithm, configs["algorithm"])
    applies = how.rules is None or configs["optimiser"].rule in how.rules
    return how.learns == rule.learns and applies and not unshareable(runtime, algorithm, configs["algorithm"])


def prepare(runtime: str, algorithm: str, configs: Mapping[str, Any], runs: int = 1) -> None:
    """What a runtime wants settled before the first array is made; so before an environment is opened.

    Args:
        runtime: Its name.
        algorithm: The rule's.
        configs: The settings of all parts.
        runs: That share the process: seeds, of which one's update is computed while another's simulators are stepped,
            or what is compared.
    """
    how, rule = ways(runtime, configs["runtime"]), traits(algorithm, configs["algorithm"])
    threads.spread(how.members)
    if how.threads is not None:
        threads.prepare(how.threads, rule.samples(how.streams), configs["network"])
    if programs.kept() and not how.ahead and runs == 1:  # the process is the command line's
        compilation.settle_calls()


def prepare_seeds(runtime: str, seeds: int) -> None:
    """The same for several seeds in one program; before JAX is imported."""
    if ways(runtime).spreads:
        threads.spread(seeds)


def build(experiment: Experiment, opened: environments.Opened | None = None, start: types.Tree | None = None) -> Built:
    """The parts, made from data alone.

    Args:
        experiment: What to build.
        opened: Its environment, if it is open already.
        start: The policy its learner starts from, as `starting.kept`; None where none will start.

    Raises:
        Refused: The runtime cannot train these parts as it is set.
    """
    how = ways(experiment.runtime, experiment.configs["runtime"])
    lead = parties.lead(experiment, how)
    opened = opened or environments.open(lead.env, lead.configs["environment"])
    parts = _parts(lead, how, opened, start, _shelf(experiment))._replace(
        rebuild=functools.partial(rebuild, experiment, start)
    )
    if how.parties:
        parts = parts._replace(
            parties=_parties(experiment, how, start), alike=parties.alike(experiment, how, opened.device)
        )
    if how.suits is not None:
        how.suits(parts)
    assert isinstance(parts.programs, programs.Shelf)
    return Built(
        parts, registry.load("runtime", experiment.runtime).build(experiment.configs["runtime"]), parts.programs
    )


def _parts(
    experiment: Experiment,
    how: types.Ways,
    opened: environments.Opened,
    start: types.Tree | None,
    shelf: programs.Shelf,
) -> types.Parts:
    """Of one learner; of a party's, as if there were no others."""
    configs = experiment.configs
    agent = _agent(experiment, opened.spec, how)
    if start is not None:
        agent = starting.warm(agent, start)
    return types.Parts(
        agent=agent,
        spec=opened.spec,
        device_env=opened.device,
        environment=environments.Opener(experiment.env, configs["environment"], here=opened),
        rebuild=functools.partial(rebuild, experiment, start),
        corrector=experiment.corrector,
        bounds=correcting.build(experiment.corrector, configs["corrector"]).bounds,
        compressor=_compressor(experiment, agent),
        programs=shelf,
    )


def _parties(experiment: Experiment, how: types.Ways, start: types.Tree | None) -> tuple[types.Party, ...]:
    return tuple(
        types.Party(name, env, functools.partial(party, experiment, at, start))
        for at, (name, env) in enumerate(parties.named(experiment, how))
    )


def party(experiment: Experiment, at: int, start: types.Tree | None = None) -> types.Parts:
    """The parts of one party alone, in this process or in one of its own.

    Args:
        experiment: Of all parties.
        at: His number, from 0.
        start: As for `build`.
    """
    if multiprocessing.parent_process() is not None:
        compilation.call_here()
        compilation.share()
    how = ways(experiment.runtime, experiment.configs["runtime"])
    made = parties.one(experiment, how, at).made
    opened = environments.open(made.env, made.configs["environment"])
    parts = _parts(made, how, opened, start, _shelf(made))
    return parts._replace(rebuild=functools.partial(party, experiment, at, start))


def horizon(experiment: Experiment) -> int:
    """Environment steps of one learner over which its learning rate is lowered; members or parties share the run's."""
    how = ways(experiment.runtime, experiment.configs["runtime"])
    return -(-(experiment.anneal or experiment.steps) // max(how.members, how.parties))


def _agent(experiment: Experiment, spec: types.EnvSpec, how: types.Ways) -> types.Agent:
    configs = experiment.configs
    given = algorithms.Ingredients(
        spec=_as_recorded(experiment, spec),
        network=configs["network"],
        optimiser=_optimiser(configs["optimiser"], horizon(experiment), how),
        corrector=correcting.build(experiment.corrector, configs["corrector"]),
        streams=how.streams,
        learners=how.learners,
        stretches=experiment.schema >= 2,  # before, they acted in the environment's units
    )
    made: types.Agent = registry.load("algorithm", experiment.algorithm).build(configs["algorithm"], given)
    if not experiment.schedule:
        return made
    scheduled.check(experiment.schedule, made, experiment.algorithm, how, experiment.runtime)
    return scheduled.follow(made, experiment.schedule)


def _optimiser(config: optimise.Config, steps: int, how: types.Ways) -> optimise.Optimiser:
    """Where the gradient is applied: here, elsewhere, or what is an owner's here and what is everybody's elsewhere."""
    if how.captures:
        return optimise.capture(config, steps)
    if how.splits:
        split = splitting.split(config, steps, networks.is_global)
        return streams.apart(split, how.streams, how.apart) if how.apart else split
    made = splitting.paced(optimise.local(config, steps), networks.is_global, config.local_rate)
    return splitting.proximal(made, networks.is_global) if how.proximal else made


def _compressor(experiment: Experiment, agent: types.Agent) -> types.Compressor:
    made: types.Compressor = registry.load("compressor", experiment.compressor).build(
        experiment.configs["compressor"], agent
    )
    return made


def _as_recorded(experiment: Experiment, spec: types.EnvSpec) -> types.EnvSpec:
    """The environment as its learner takes it: which bounds of bytes networks scale by.

    Statistics of observations do what bounds are for. Before schema 2, pictures were scaled as if all of them held 0 to
    255, and vectors were not scaled: a run must go on, and act, as it began.
    """
    rule = traits(experiment.algorithm, experiment.configs["algorithm"])
    if experiment.schema >= 2 and not rule.normalises:
        return spec
    if rule.normalises and spec.observation.image:  # its moments are all the scaling there is
        return spec._replace(observation=spec.observation._replace(low=(0.0,), high=(1.0,)))
    return spec._replace(observation=spec.observation._replace(low=(), high=()))


def _shelf(experiment: Experiment) -> programs.Shelf:
    """Where its programs are kept: by everything that decides them, and that is not the seed."""
    sources = environments.sources(experiment.env)
    if sources is None:
        return programs.Shelf()
    decides = {name: value for name, value in experiment.to_json().items() if name not in OUTSIDE}
    return programs.Shelf(decides, sources)


def rebuild(experiment: Experiment, start: types.Tree | None = None) -> types.Parts:
    """The parts once more, inside a worker process, which makes many small calls."""
    compilation.call_here()
    compilation.share()
    return build(experiment, start=start).parts


@contextlib.contextmanager
def keep_programs() -> Iterator[None]:
    """Within, lowered programs are kept beside JAX's cache; for the command line (see `programs.keep`)."""
    programs.keep(compilation.folder() / "programs")
    try:
        yield
    finally:
        programs.keep(None)
