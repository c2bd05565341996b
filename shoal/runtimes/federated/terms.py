"""What a federation's settings come to: refused where they do not fit together, and the rules of its server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epy

from shoal.core import errors, types
from shoal.formulas import optimise, rules
from shoal.runtimes.federated import applying, hostile, message, robust, running, server

if TYPE_CHECKING:
    from shoal.runtimes.federated import Asked, Config

with epy.lazy_imports():
    import jax


def check(config: Config, experiment: Asked) -> None:
    """Refuse settings that do not fit together.

    Raises:
        Refused: Says what to change.
    """
    late = joins(config, tuple(str(at) for at in range(config.parties)))
    if len({party for party, steps in late if steps > 0}) == config.parties:
        raise errors.Refused(
            f"runtime.join={' '.join(config.join)}: every party waits for steps of the others, so none would ever "
            "begin; leave one out"
        )
    _check_paces(config)
    if config.exchange == "none":
        return
    if config.participation == 0.0:
        raise errors.Refused(
            "runtime.participation=0 asks nobody in any round; give a chance above 0, or use --runtime.exchange none"
        )
    aggregator = robust.chosen(config.aggregator, config.hostile)
    if aggregator not in robust.RULES:
        raise errors.unknown("value of runtime.aggregator", config.aggregator, [*robust.RULES, "auto"])
    rule = experiment.configs["optimiser"].rule
    if config.exchange == "gradient" and rule not in applying.RULES:
        raise errors.Refused(
            f"optimiser.rule={rule}, but the server knows {', '.join(applying.RULES)}; use one of them, or "
            "--runtime.exchange delta"
        )
    server.check(rules_of(config), config.parties)
    hostile.parsed(config.attack, config.parties)
    if config.exchange == "gradient" and config.mu > 0.0:
        raise errors.Refused(
            f"runtime.mu={config.mu:g} draws local updates of the global part to what was downloaded, and with "
            "runtime.exchange=gradient there are none; use --runtime.exchange delta, or leave it out"
        )


def joins(config: Config, names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Who joins late: (party, environment steps of the others).

    Raises:
        Refused: It does not say PARTY:STEPS.
    """
    found: list[tuple[int, int]] = []
    for one in config.join:
        try:
            found += running.joins([one], names)
        except ValueError:
            raise errors.Refused(
                f"runtime.join={one} names no party and its steps: parties are numbered 0 to {config.parties - 1}; "
                f"give e.g. {config.parties - 1}:20000"
            ) from None
    return tuple(sorted(found))


def _check_paces(config: Config) -> None:
    """Seconds of a job: above 0, or the simulated clock would go back; one a party at most."""
    if len(config.paces) > config.parties or not all(0.0 < pace < math.inf for pace in config.paces):
        raise errors.Refused(
            f"runtime.paces={' '.join(f'{pace:g}' for pace in config.paces)}: give each of the {config.parties} "
            "parties, in their order, the seconds that a job takes it, above 0; 1 where none is named"
        )


def rules_of(config: Config) -> server.Rules:
    """How rounds are held, but for what only the agent knows."""
    mode = config.exchange if config.exchange != "none" else "delta"
    numbers = applying.Numbers()
    if mode == "delta" and config.server == "adam":
        numbers = applying.FED_ADAM._replace(learning_rate=config.server_rate)
    return server.Rules(
        mode=mode, asynchronous=config.asynchronous, aggregator=config.aggregator, hostile=config.hostile,
        max_norm=config.max_norm, participation=config.participation, quorum=config.quorum,
        deadline_s=config.deadline, max_lag=config.max_lag, buffer=config.buffer, optimiser=numbers, eta=config.eta,
        alpha=config.alpha,
        settings=message.Settings(
            local_updates=config.local_updates, clip=config.clip, noise=config.noise, mu=config.mu
        ),
        updates=config.local_updates,
    )  # fmt: skip


def numbers(agent: types.Agent) -> applying.Numbers:
    """The experiment's own optimiser, for the server to apply gradients with; read from a learner's state.

    Args:
        agent: Whose optimiser it is; its first.
    """
    state = jax.eval_shape(agent.init, jax.random.key(0)).optimiser
    kept = type(state.rule)
    name = next(name for name, rule in rules.RULES.items() if rule.kept is kept)
    hyper: optimise.Hyper = jax.device_get(jax.jit(lambda: agent.init(jax.random.key(0)).optimiser.hyper)())
    return applying.Numbers(
        name, float(hyper.learning_rate), float(hyper.anneal_steps), float(hyper.decay), float(hyper.epsilon)
    )
