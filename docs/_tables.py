"""The tables of the documentation that are made from the code.

python docs/_tables.py            writes them
python docs/_tables.py --check    tells whether they are up to date (exit code 1 if not)
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shoal import experiment
from shoal.core import registry
from shoal.experiment import presets

DOCS = Path(__file__).parent


class Family(NamedTuple):
    """The presets of one page: one learning rule, or a few alike, and the symbols its page writes."""

    algorithm: str
    presets: tuple[str, ...]
    symbols: Mapping[str, str]  # by option, on top of `SYMBOLS`


SYMBOLS = {
    "algorithm.discount": "γ",
    "optimiser.learning_rate": "η₀",
    "optimiser.max_norm": "m",
    "runtime.environments": "B",
}
REPLAY = {
    "algorithm.rollout_length": "T",
    "algorithm.updates": "K",
    "algorithm.batch": "N",
    "algorithm.n_step": "n",
    "algorithm.tau": "τ",
}
FAMILIES = {
    "presets/actor_critic.md": Family(
        "actor_critic",
        ("a2c", "a3c", "a3c_lstm", "a3c_paper", "a3c_continuous"),
        {
            "algorithm.rollout_length": "T = t_max",
            "algorithm.entropy_cost": "β",
            "algorithm.value_cost": "c",
            "optimiser.decay": "α",
            "optimiser.epsilon": "ε",
            "corrector.lambda_": "λ",
        },
    ),
    "presets/ppo.md": Family(
        "ppo",
        ("ppo",),
        {
            "algorithm.rollout_length": "T",
            "algorithm.epochs": "E",
            "algorithm.minibatches": "M",
            "algorithm.clip": "ε",
            "algorithm.value_clip": "ε_V",
            "algorithm.entropy_cost": "β",
            "algorithm.value_cost": "c",
            "optimiser.decay": "α",
            "optimiser.epsilon": "ε_opt",
            "corrector.lambda_": "λ",
        },
    ),
    "presets/dqn.md": Family(
        "dqn",
        ("dqn",),
        {
            **REPLAY,
            "algorithm.target_period": "C",
            "algorithm.priority_exponent": "α",
            "algorithm.priority_correction": "β",
            "algorithm.huber": "δ",
        },
    ),
    "presets/async_values.md": Family(
        "q_learning",
        ("async_q", "async_sarsa", "async_nstep_q"),
        {
            "algorithm.rollout_length": "T = t_max",
            "algorithm.target_period": "I_target",
            "algorithm.epsilon_start": "ε_0",
            "algorithm.epsilon_ends": "ε_∞",
            "algorithm.epsilon_steps": "N",
            "algorithm.huber": "δ",
            "optimiser.decay": "α",
            "optimiser.epsilon": "ε",
        },
    ),
    "presets/gorila.md": Family(
        "dqn",
        ("gorila", "distributed_dqn"),
        {
            **REPLAY,
            "algorithm.target_period": "C",
            "algorithm.huber": "δ",
            "optimiser.decay": "α",
            "optimiser.epsilon": "ε",
            "runtime.shards": "K",
            "runtime.max_lag": "D",
            "runtime.outlier_sigma": "σ",
        },
    ),
    "presets/td3.md": Family(
        "td3",
        ("td3",),
        {
            **REPLAY,
            "algorithm.policy_delay": "d",
            "algorithm.noise": "σ",
            "algorithm.target_noise": "σ'",
            "algorithm.target_noise_clip": "c",
        },
    ),
    "presets/sac.md": Family(
        "sac",
        ("sac",),
        {**REPLAY, "algorithm.temperature": "α₀", "algorithm.entropy_target": "H̄ / dim"},
    ),
    "presets/cem_rl.md": Family(
        "cem_rl",
        ("cem_rl",),
        {
            **REPLAY,
            "algorithm.policies": "K",
            "algorithm.trained": "P",
            "algorithm.elites": "E",
            "algorithm.target_noise": "σ'",
            "algorithm.target_noise_clip": "c",
            "algorithm.initial_variance": "σ₀²",
            "algorithm.initial_noise": "ε₀",
            "algorithm.noise_floor": "ε_end",
            "algorithm.noise_decay": "d",
        },
    ),
    "presets/dvd.md": Family(
        "dvd",
        ("dvd",),
        {
            **{name: symbol for name, symbol in REPLAY.items() if name != "algorithm.updates"},
            "algorithm.policies": "K",
            "algorithm.policy_delay": "d",
            "algorithm.noise": "σ",
            "algorithm.target_noise": "σ'",
            "algorithm.target_noise_clip": "c",
            "algorithm.length": "ℓ",
            "algorithm.jitter": "ε",
        },
    ),
    "presets/accerl.md": Family(
        "actor_critic",
        ("impala", "accerl", "actorq", "actorq_td3"),
        {
            **REPLAY,
            "algorithm.entropy_cost": "β",
            "algorithm.value_cost": "c",
            "optimiser.decay": "α",
            "optimiser.epsilon": "ε",
            "runtime.workers": "W",
            "runtime.environments": "E",
            "runtime.publish_every": "k",
        },
    ),
    "presets/population.md": Family(
        "ppo",
        ("pbt_td3", "pbt_sac", "pbt_dqn", "pbt_ppo", "mf_pbt", "random_search"),
        {
            **REPLAY,
            "runtime.members": "N",
            "runtime.fraction": "q",
            "runtime.intervals": "δ",
        },
    ),
    "presets/collab.md": Family(
        "dqn",
        ("collab_dqn", "collab_a2c", "collab_td3", "consensus", "independent", "shared", "pooled"),
        {
            **REPLAY,
            "algorithm.target_period": "C",
            "algorithm.huber": "δ",
            "runtime.parties": "N",
            "runtime.local_updates": "H",
            "runtime.max_lag": "τ_max",
            "runtime.eta": "η",
            "runtime.alpha": "α",
            "runtime.mu": "μ",
            "runtime.hostile": "f",
            "runtime.noise": "z",
            "runtime.clip": "C",
            "runtime.delta": "δ",
        },
    ),
    "presets/linear.md": Family(
        "parallel_sarsa",
        ("parallel_sarsa", "batch_linear"),
        {
            "algorithm.tilings": "m",
            "algorithm.step_size": "α (times m, of parallel_sarsa)",
            "algorithm.trace": "λ",
            "algorithm.epsilon": "ε",
            "algorithm.ridge": "ε",
            "algorithm.correction_step_size": "β",
            "runtime.period": "P",
            "runtime.threshold": "θ",
        },
    ),
    "presets/map_propagation.md": Family(
        "map_propagation",
        ("map_propagation", "map_async", "reinforce_team", "reinforce_team_explore", "backprop_det", "backprop_sto"),
        {
            "algorithm.steps": "N",
            "algorithm.free_steps": "N'",
            "algorithm.explore": "p",
            "algorithm.trace": "λ",
            "algorithm.actor_variance": "σ²",
            "algorithm.critic_variance": "σ²",
            "algorithm.actor_rates": "η",
            "algorithm.critic_rates": "η",
            "algorithm.speed_decay": "β",
            "algorithm.speed_weight": "α",
            "algorithm.speed_floor": "ε",
        },
    ),
}


def settings(family: Family) -> str:
    """Every option, its default, and what the presets set."""
    rows: list[tuple[str, ...]] = []
    rules = list(dict.fromkeys(presets.PRESETS[preset].algorithm for preset in family.presets))
    for rule in rules:
        users = [preset for preset in family.presets if presets.PRESETS[preset].algorithm == rule]
        which = f" ({rule})" if len(rules) > 1 else ""
        rows += _rows(family, "algorithm", experiment.config_class("algorithm", rule), users, which)
    by_gradient = experiment.traits(family.algorithm).learns == "rollouts"
    for kind in ("network", "optimiser", "environment") if by_gradient else ("environment",):
        # The settings every environment has; those of one adapter are on the page of environments.
        rows += _rows(family, kind, experiment.config_class(kind, "CartPole-v1"), family.presets)
    if "corrector.lambda_" in family.symbols:  # rules that learn from a memory use no corrector
        rows += _rows(family, "corrector", experiment.config_class("corrector", "none"), family.presets)
    for name in filter(functools.partial(_takes, family), registry.names("runtime")):
        users = [preset for preset in family.presets if presets.PRESETS[preset].runtime in (name, None)]
        rows += _rows(family, "runtime", experiment.config_class("runtime", name), users, f" ({name})")
    return _table(("symbol", "option", "default", *(f"`{name}`" for name in family.presets)), rows)


def _takes(family: Family, runtime: str) -> bool:
    """Whether a runtime can run a rule of the page in some setting."""
    learns = {experiment.traits(presets.PRESETS[preset].algorithm).learns for preset in family.presets}
    if experiment.ways(runtime).learns not in learns:
        return False
    rule = registry.load("algorithm", family.algorithm)
    least = {"epochs": 1, "minibatches": 1, "updates": 1}  # with which an update is one gradient step
    config = rule.Config(**{name: value for name, value in least.items() if name in rule.Config.__dataclass_fields__})
    return not experiment.unshareable(runtime, family.algorithm, config)


def _rows(family: Family, kind: str, cls: type, users: Iterable[str], which: str = "") -> Iterable[tuple[str, ...]]:
    symbols = SYMBOLS | dict(family.symbols)
    for field in dataclasses.fields(cls):
        option = f"`--{kind}.{_flag(field.name)}`{which}"
        given = [presets.PRESETS[p].settings.get(kind, {}) if p in users else {} for p in family.presets]
        values = [show(one[field.name]) if field.name in one else "" for one in given]
        nothing = "all" if field.name == "observe" else "none"
        yield (symbols.get(f"{kind}.{field.name}", ""), option, show(field.default, nothing), *values)


def _flag(name: str) -> str:
    return name if name.endswith("_") else name.replace("_", "-")


def show(value: Any, nothing: str = "all") -> str:
    """A setting as it is typed, more or less; `nothing` stands for an empty list."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(show(item) for item in value) or nothing
    return f"{value:g}" if isinstance(value, float) else str(value)


def tuned(family: Family) -> str:
    """What each preset sets for single environments, on top of the table above."""
    rows = []
    for name in family.presets:
        preset = presets.PRESETS[name]
        for env, found in preset.tuned.items():
            given = [
                f"`--{kind}.{_flag(field)}` {show(value, 'none')}"
                for kind, values in found.settings.items()
                for field, value in values.items()
            ]
            rows.append((f"`{name}`", f"`{env}`", f"{found.steps:,}", ", ".join(given)))
        rows.append((f"`{name}`", "any other", f"{preset.steps:,}", ""))
    return _table(("preset", "environment", "steps", "settings"), rows)


def facts(family: Family) -> str:
    """Where each preset runs unless told otherwise."""
    rows = []
    for name in family.presets:
        preset = presets.PRESETS[name]
        runtime = f"`{preset.runtime}`" if preset.runtime else "`on_device` (pure JAX), else `host`"
        rows.append((f"`{name}`", preset.summary, runtime, f"`{preset.env}`"))
    return _table(("preset", "what it is", "runtime", "environment if none is given"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES = {
    page: {make.__name__: functools.partial(make, family) for make in (facts, settings, tuned)}
    for page, family in FAMILIES.items()
}


def main() -> int:
    """Write the tables, or compare them."""
    stale = []
    for page, tables in TABLES.items():
        path = DOCS / page
        text = before = path.read_text()
        for name, make in tables.items():
            block = rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)"
            text, found = re.subn(block, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)
            if not found:
                raise SystemExit(f"docs/{page} has no place for the table {name!r}")
        if text != before:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run: python docs/_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
