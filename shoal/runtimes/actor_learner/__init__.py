"""Actor-learner: actors act with a packed snapshot of the policy, a learner updates it in full precision.

Espeholt et al. 2018, arXiv:1802.01561 (IMPALA: decoupled acting and learning, bounded queues); Zhang 2022,
arXiv:2211.15023 (AcceRL: actors run a compressed policy, a corrector mends what that does to the experience). Every
rollout carries the version of its policy and the log probabilities of the policy that really acted.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Literal

from etils import epy

from shoal.core import errors, options, types
from shoal.runtimes.crew import threads

with epy.lazy_imports():
    import jax

    from shoal.core import seeds
    from shoal.runtimes.actor_learner import learner, saving, watching
    from shoal.runtimes.crew import beside
    from shoal.runtimes.members import lanes


@dataclasses.dataclass(frozen=True)
class Config:
    """Actors and one learner."""

    workers: int = options.number(1, low=1, high=1024)
    """Actor processes; about one a core, beside the learner's own."""
    environments: int = options.number(8, low=1, high=4096)
    """Environments of each actor, for all of which it makes one decision."""
    rollouts: int = options.number(0, low=0, high=1024)
    """Rollouts that an update learns from, whichever come first; 0: one of each actor."""
    queue: int = options.number(2, low=1, high=64)
    """Rollouts of an actor that may wait for the learner before it waits itself: the bound of staleness."""
    publish_every: int = options.number(1, low=1)
    """Updates between two policies that actors are given."""
    lockstep: bool = False
    """The learner waits for the actor and the actor for the learner's newest policy, so that a run repeats; one actor.
    With --compressor.engine jax it computes what the host runtime does."""
    precision: Literal["full", "packed"] = options.later("full")
    """What the learner computes with: its own policy, or, as its actors do, what the compressor would make of it; only
    the changes are made in full precision."""
    monitor: bool = True
    """Measure, on a sample of rollouts, what staleness and compression do to the policy that acts."""
    controller: bool = False
    """Send the policy in full precision while compression does damage, and compressed again when it would not."""
    kl_high: float = options.number(0.05, low=0.0)
    """Controller: nats between compressed and full policy above which a check is bad."""
    kl_low: float = options.number(0.01, low=0.0)
    """Controller: nats below which a check may be good."""
    ess_low: float = options.number(0.5, low=0.0, high=1.0)
    """Controller: effective sample size below which a check is bad."""
    ess_high: float = options.number(0.8, low=0.0, high=1.0)
    """Controller: effective sample size above which a check may be good."""
    bad_checks: int = options.number(3, low=1)
    """Controller: bad checks in a row after which the policy is sent in full precision."""
    good_checks: int = options.number(10, low=1)
    """Controller: good checks in a row after which it is compressed again."""
    cooldown: int = options.number(10, low=0)
    """Controller: checks after a change during which nothing changes."""
    agreement_low: float = options.number(0.5, low=0.0, high=1.0)
    """Controller: share of equal actions below which the full policy takes over at once."""


def ways(config: Config) -> types.Ways:
    """See `types.Ways`; simulators cannot be saved, so a resumed run is another."""
    rollouts = config.rollouts or config.workers
    return types.Ways(
        streams=rollouts * config.environments,
        threads=max(1, threads.cores() - config.workers),
        workers="workers",
        processes=config.workers,
        process_mb=threads.COMPUTES,
        ships_policy=True,
        packs_learner=config.precision == "packed",
    )


def check(config: Config, experiment: Any, opened: Any) -> None:
    """Refuse what this runtime cannot do.

    Raises:
        Refused: Several actors in lock-step, or an update that its queues could never fill.
    """
    del opened
    rollouts = config.rollouts or config.workers
    if config.lockstep and (config.workers > 1 or rollouts > 1 or config.publish_every > 1):
        raise errors.Refused(
            f"runtime.lockstep with {config.workers} actors, {rollouts} rollouts an update and a policy every "
            f"{config.publish_every} updates; it is one of each: leave the other settings out"
        )
    if rollouts > config.workers * config.queue:
        raise errors.Refused(
            f"runtime.rollouts={rollouts}, but {config.workers} actors of which {config.queue} rollouts may wait never "
            f"have more than {config.workers * config.queue}; raise runtime.queue to {-(-rollouts // config.workers)}"
        )
    if config.controller:
        if experiment.compressor == "identity" or not config.monitor:
            raise errors.Refused(
                f"runtime.controller with --compressor {experiment.compressor}, runtime.monitor={config.monitor}: it "
                "needs a compressor whose damage is measured; choose one, and leave the monitor on"
            )
        watching.build(config, experiment.compressor)
    if experiment.configs["compressor"].engine == "auto" and config.lockstep:
        raise errors.Refused(
            "runtime.lockstep repeats a run, but which engine is the fastest may change; name one, e.g. "
            "--compressor.engine jax"
        )


def build(config: Config) -> types.Runtime:
    """The runtime."""
    return ActorLearner(config)


class ActorLearner:
    """See `types.Runtime`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def like(self, parts: types.Parts, seed: int) -> types.Tree:
        """See `types.Runtime`."""
        state = jax.eval_shape(parts.agent.init, seeds.key(seed, "init"))
        return state, lanes.counters(0, 0, 0) | saving.like(parts)

    def policy(self, parts: types.Parts, seed: int, saved: types.Tree) -> types.Policy:
        """See `types.Runtime`."""
        del seed
        return parts.agent.snapshot(saved[0])

    def run(
        self,
        parts: types.Parts,
        seed: int,
        steps: int,
        goal: types.Goal | None,
        observe: types.Observer,
        saved: types.Tree | None,
    ) -> types.Result:
        """See `types.Runtime`."""
        del goal  # the observer counts episodes and decides
        began = time.monotonic()
        kept = saved[1] if saved is not None else lanes.counters(0, 0, 0)
        look = beside.first(observe, int(kept["env_steps"]), int(kept["updates"]))

        def make() -> learner.Run:
            return learner.Run(self._config, parts, seed, steps, observe, saved)

        return beside.done(make, beside.COMPILING, look).train(began)
