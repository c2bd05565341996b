"""The one wiring file: an experiment as data, checked, and built into the parts a runtime receives.

experiment = algorithm x network x environment x corrector x compressor x runtime. An `Experiment` is what
`config.json` holds and what a worker process is sent; `build` makes the same parts from it anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import algorithms, environments, errors, networks, optimise, options, programs, registry, types

with epy.lazy_imports():
    import jax

SCHEMA = 1  # of config.json
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

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in ``config.json``."""
        parts = {}
        for kind in kinds():
            name = {"name": getattr(self, kind)} if kind in NAMED else {}
            parts[kind] = {**name, **dataclasses.asdict(self.configs[kind])}
        return {
            "schema": SCHEMA,
            "preset": self.preset,
            "env": self.env,
            "steps": self.steps,
            "seed": self.seed,
            "goal": self.goal._asdict() if self.goal else None,
            "parts": parts,
            # Left out where there is none, so that digests of older runs stay what they were.
            **({"episodes": self.episodes} if self.episodes is not None else {}),
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
            configs=configs, episodes=data.get("episodes"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.Refused(f"config.json is not one of Shoal's ({type(error).__name__}: {error})") from None


class Built(NamedTuple):
    """An experiment ready to run."""

    parts: types.Parts
    runtime: types.Runtime
    compressor: types.Compressor
    shelf: programs.Shelf  # `parts.programs`


def validate(experiment: Experiment, opened: environments.Opened) -> None:
    """Refuse what cannot work, before anything is created or any process starts.

    Raises:
        Refused: Says what was given, what is allowed and what to do.
    """
    for name in ("steps", "seed", "episodes"):
        value = getattr(experiment, name)
        if name == "episodes" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise errors.Refused(f"{name}={value!r} is not a whole number; give one, e.g. {name}=100000")
    if experiment.steps < 1:
        raise errors.Refused(f"steps={experiment.steps}, but at least 1 environment step is needed")
    if experiment.episodes is not None and experiment.episodes < 1:
        raise errors.Refused(f"episodes={experiment.episodes}, but at least 1 is needed; leave it out to run by steps")
    if not 0 <= experiment.seed < 2**63:
        raise errors.Refused(f"seed={experiment.seed} is out of range; it must be between 0 and 2^63 - 1")
    for kind in kinds():
        options.check(experiment.configs[kind], kind)
    _check_algorithm(experiment, opened.spec)
    if getattr(experiment.configs["algorithm"], "normalise_observations", False) and opened.spec.observation.image:
        raise errors.Refused(
            f"algorithm.normalise_observations needs vector observations, but {experiment.env} gives images"
        )
    runtime, config = registry.load("runtime", experiment.runtime), experiment.configs["runtime"]
    runtime.check(config, experiment, opened)
    if hasattr(runtime, "replays") and runtime.replays(config) and not environments.repeats(opened):
        raise errors.Refused(
            f"--replayable on {experiment.env}: the same seed and actions do not give the same observations and "
            f"rewards, so nothing could be repeated; `shoal check-env {experiment.env}` tells more"
        )


def _check_algorithm(experiment: Experiment, spec: types.EnvSpec) -> None:
    kind = "discrete" if spec.action.discrete else "continuous"
    module = registry.load("algorithm", experiment.algorithm)
    if kind not in module.ACTIONS:
        fitting = [name for name in registry.names("algorithm") if kind in registry.load("algorithm", name).ACTIONS]
        raise errors.Refused(
            f"{experiment.algorithm} learns {' and '.join(module.ACTIONS)} actions, but those of {experiment.env} are "
            f"{kind}; algorithms that fit: {', '.join(fitting)}"
        )
    if experiment.corrector != "none" and not module.CORRECTS:
        raise errors.Refused(
            f"{experiment.algorithm} has no use for a corrector, but --corrector {experiment.corrector} was given; "
            "drop it"
        )
    configs = experiment.configs
    if reason := module.fits(configs["algorithm"], configs["network"], spec):
        raise errors.Refused(f"{experiment.algorithm} on {experiment.env}: {reason}")
    _check_learning(experiment)
    runtime = registry.load("runtime", experiment.runtime)
    if hasattr(runtime, "pads") and runtime.pads(configs["runtime"]) and not getattr(module, "PADDED", False):
        raise errors.Refused(
            f"{experiment.algorithm} learns from whole segments only; leave --runtime.segment at fixed, or use a3c"
        )
    if reason := unshareable(experiment.runtime, experiment.algorithm, configs["algorithm"]):
        raise errors.Refused(
            f"the {experiment.runtime} runtime applies gradients itself, but {reason}; "
            "or use --runtime on_device or host"
        )


def learns(kind: str, name: str) -> str:
    """How an algorithm learns, or what a runtime serves: ``rollouts``, ``exchange`` or ``sums``.

    Args:
        kind: ``"algorithm"`` or ``"runtime"``.
        name: The choice.
    """
    return str(getattr(registry.load(kind, name), "LEARNS", "rollouts"))


def _check_learning(experiment: Experiment) -> None:
    how = learns("algorithm", experiment.algorithm)
    if learns("runtime", experiment.runtime) != how:
        fitting = [name for name in registry.names("runtime") if learns("runtime", name) == how]
        raise errors.Refused(
            f"{experiment.algorithm} learns by {how}, the {experiment.runtime} runtime by "
            f"{learns('runtime', experiment.runtime)}; use --runtime {' or '.join(fitting)}"
        )
    if how != "rollouts" and experiment.configs["optimiser"] != optimise.Config():
        raise errors.Refused(
            f"{experiment.algorithm} has no gradient for an optimiser to apply; leave the options of --optimiser out"
        )


def unshareable(runtime: str, algorithm: str, config: Any) -> str:
    """Why a runtime cannot apply the gradients of a rule with these settings itself; "" if it can, or does not try."""
    how, rule = registry.load("runtime", runtime), registry.load("algorithm", algorithm)
    if not how.CAPTURES:
        return ""
    if hasattr(config, "capacity") and not getattr(how, "HOLDS_MEMORY", False):
        return f"{algorithm} keeps a replay memory, which every worker would have to hold and to send"
    return rule.shareable(config)


def serves(runtime: str, algorithm: str, configs: Mapping[str, Any]) -> bool:
    """Whether a runtime can train a rule with these settings of its and the optimiser's."""
    if learns("runtime", runtime) != learns("algorithm", algorithm):
        return False
    rule = configs["optimiser"].rule
    applies = rule in getattr(registry.load("runtime", runtime), "RULES", (rule,))
    return applies and not unshareable(runtime, algorithm, configs["algorithm"])


def prepare(runtime: str, configs: Mapping[str, Any]) -> None:
    """What a runtime wants settled before the first array is made; so before an environment is opened."""
    module = registry.load("runtime", runtime)
    if hasattr(module, "prepare"):
        module.prepare(configs["runtime"], configs["algorithm"], configs["network"])


def prepare_seeds(runtime: str, seeds: int) -> None:
    """The same for several seeds in one program; before JAX is imported."""
    module = registry.load("runtime", runtime)
    if hasattr(module, "prepare_seeds"):
        module.prepare_seeds(seeds)


def build(experiment: Experiment, opened: environments.Opened | None = None) -> Built:
    """The parts, made from data alone.

    Args:
        experiment: What to build.
        opened: Its environment, if it is open already.
    """
    configs = experiment.configs
    opened = opened or environments.open(experiment.env, configs["environment"])
    runtime = registry.load("runtime", experiment.runtime)
    optimiser = (optimise.capture if runtime.CAPTURES else optimise.local)(configs["optimiser"], experiment.steps)
    corrector = registry.load("corrector", experiment.corrector).build(configs["corrector"])
    streams = runtime.streams(configs["runtime"])
    learners = runtime.learners(configs["runtime"]) if hasattr(runtime, "learners") else 1
    given = algorithms.Ingredients(opened.spec, configs["network"], optimiser, corrector, streams, learners)
    agent = registry.load("algorithm", experiment.algorithm).build(configs["algorithm"], given)
    parts = types.Parts(agent, opened.spec, opened.device, opened.make_host, functools.partial(rebuild, experiment),
        opened.make_eval, opened.make_vector, shelf := _shelf(experiment))  # fmt: skip
    compressor = registry.load("compressor", experiment.compressor).build(configs["compressor"], agent)
    return Built(parts, runtime.build(configs["runtime"]), compressor, shelf)


def _shelf(experiment: Experiment) -> programs.Shelf:
    """Where its programs are kept: by everything that decides them, and that is not the seed."""
    sources = environments.sources(experiment.env)
    if sources is None:
        return programs.Shelf()
    decides = {name: value for name, value in experiment.to_json().items() if name not in ("seed", "goal", "preset")}
    return programs.Shelf(decides, sources)


def rebuild(experiment: Experiment) -> types.Parts:
    """The parts once more, inside a worker process."""
    cache()
    return build(experiment).parts


def cache() -> None:
    """Turn on JAX's persistent compilation cache, shared by every process and every run."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def keep_programs() -> Iterator[None]:
    """Within, lowered programs are kept beside JAX's cache; for the command line (see `programs.keep`)."""
    programs.keep(cache_folder() / "programs")
    try:
        yield
    finally:
        programs.keep(None)


def cache_folder() -> Path:
    """The cache's folder: SHOAL_CACHE_DIR, or the user's own."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "shoal" / "jax"
    return Path(os.environ.get("SHOAL_CACHE_DIR", default))
