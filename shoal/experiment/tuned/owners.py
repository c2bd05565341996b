"""Owners that train together, each in an environment of its own; and what they are compared with.

Everybody's layers are global, an owner's are local (`networks.forms`); steps are those of all parties together.
Settings were tuned on `independent`, and are the same in every arm. `pooled` keeps nothing apart: an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shoal.experiment.tuned import ADAM, Preset, Settings, Tuned

SHI = "Shi 2021, arXiv:2109.14998"
FEDAVG = "McMahan et al. 2017, arXiv:1602.05629"
FEDHPD = "Kong et al. 2025, arXiv:2502.00870"
PARTIES = 5
STREAMS = 4  # environments of a party that learns by A2C

DQN: Settings = {
    "algorithm": {
        "rollout_length": 4, "updates": 1, "n_step": 3, "batch": 64, "target_period": 500, "capacity": 50_000,
        "epsilon_steps": 5_000, "epsilon_end": 0.02,
    },
    "optimiser": {**ADAM, "learning_rate": 1e-3, "max_norm": 10.0},
    "network": {"hidden": (64, 64), "activation": "relu", "form": "A"},
}  # fmt: skip
A2C: Settings = {
    "algorithm": {"rollout_length": 8, "entropy_cost": 0.0, "value_cost": 0.5, "reward_scale": 0.05},
    "optimiser": {**ADAM, "learning_rate": 3e-3, "max_norm": 40.0},
    "network": {"form": "A"},
}
TD3: Settings = {  # as alone
    "algorithm": {"learning_starts": 1_000, "capacity": 20_000},
    "optimiser": {**ADAM, "learning_rate": 1e-3},
    "network": {"hidden": (256, 256), "activation": "relu", "form": "A"},
}


def _with(settings: Settings, **more: Mapping[str, Any]) -> Settings:
    """Settings with more of them, by kind of part."""
    return {kind: {**settings.get(kind, {}), **more.get(kind, {})} for kind in {**settings, **more}}


def _tuned(parties: int, steps: int, **more: Mapping[str, Any]) -> Tuned:
    """For so many parties, so many steps of each."""
    return Tuned(parties * steps, _with(more, runtime={"parties": parties}))


SETS = {  # the sets of environments: how many owners, and how long
    "owners:CartPole-lengths": _tuned(PARTIES, 50_000),
    "owners:CartPole-swapped": _tuned(4, 50_000),
    "owners:CartPole-stranger": _tuned(4, 50_000),
    "owners:CartPole-same": _tuned(4, 50_000),
    "owners:Acrobot-*": _tuned(10, 100_000),
    "owners:Spaces": _tuned(3, 50_000, network={"form": "C"}),  # D'Eramo et al. 2020
    "owners:Pendulum-lengths": _tuned(4, 20_000),
    "owners:HalfCheetah-*": _tuned(PARTIES, 1_000_000),
    "owners:Hopper-legs": _tuned(PARTIES, 1_000_000),
}
GRADIENT = {"parties": PARTIES, "exchange": "gradient", "environments": 1}


def _all_at_once(parties: int) -> Settings:
    """One learner that makes as many gradient steps as a party would, each from as much as all parties learn from."""
    return {"environment": {"parties": parties}, "runtime": {"environments": parties * STREAMS}}


def _pooled(one: Tuned) -> Tuned:
    """The same for the owners of a set."""
    return Tuned(one.steps, _all_at_once(one.settings["runtime"]["parties"]))


def _preset(summary: str, source: str, algorithm: str, settings: Settings, **runtime: Any) -> Preset:
    """Under the federated runtime."""
    return Preset(
        summary=summary,
        source=source,
        algorithm=algorithm,
        runtime="federated",
        env="owners:CartPole-lengths",
        steps=PARTIES * 50_000,
        settings=_with(settings, runtime={**GRADIENT, **runtime}),
        tuned=MappingProxyType(SETS),
    )


PRESETS: dict[str, Preset] = {
    "collab_dqn": _preset(
        "DQN of several owners: global layers are everybody's, each has a local head; gradients are pushed",
        SHI, "dqn", DQN,
    ),
    "collab_a2c": _preset(
        "A2C of several owners: global layers are everybody's, each has local heads; gradients are pushed",
        SHI, "actor_critic", A2C, environments=STREAMS,
    ),
    "collab_td3": _preset(
        "TD3 of several owners: changes of global layers are averaged, each has local heads",
        f"{SHI}; {FEDAVG}", "td3", TD3, exchange="delta", local_updates=10,
    )._replace(env="owners:Pendulum-lengths", steps=4 * 20_000),
    "consensus": _preset(
        "owners with networks of their own that agree on decisions over public states; no weight is exchanged",
        FEDHPD, "actor_critic", _with(A2C, network={"form": "none"}), exchange="outputs", environments=STREAMS,
    )._replace(env="owners:CartPole-same", steps=4 * 50_000),
    "independent": _preset(
        "baseline: each owner alone, with the networks of collab_a2c, all of them its own", SHI, "actor_critic", A2C,
        exchange="none", environments=STREAMS,
    ),
    "shared": _preset(
        "baseline: owners with one network for all and nothing of their own; gradients are pushed",
        f"{SHI}; Jin et al. 2022, arXiv:2204.02634", "actor_critic", _with(A2C, network={"form": "none"}),
        environments=STREAMS,
    ),
    "pooled": Preset(
        summary="upper bound, BREAKS THE BOUNDARY between owners: one A2C learner sees everybody's raw experience",
        source=SHI,
        algorithm="actor_critic",
        runtime=None,
        env="owners:CartPole-lengths",
        steps=PARTIES * 50_000,
        settings=_with(A2C, network={"form": "none"}, **_all_at_once(PARTIES)),
        tuned=MappingProxyType({env: _pooled(one) for env, one in SETS.items() if env != "owners:Spaces"}),
        caution="pooled breaks the boundary between owners: one learner sees the raw experience of all; it is a bound "
        "to hold others against, and no way to train together",
    ),
}  # fmt: skip
