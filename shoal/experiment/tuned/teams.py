"""Teams of units (MAP propagation), and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shoal.experiment.tuned import ADAM, Preset, Settings, Tuned

MAP = "Chung 2021, arXiv:2010.07893"
MAP_SETTINGS: Settings = {  # the rates are in the algorithm's settings, one for each layer
    "optimiser": {**ADAM, "learning_rate": 1.0, "epsilon": 1e-9},
    "network": {"hidden": (64, 32), "activation": "softplus", "initialiser": "glorot"},
    "runtime": {"environments": 1, "chunk_steps": 2000},
}
REINFORCE = {"steps": 0, "critic_rule": "backprop"}
CONSTANT: Mapping[str, Any] = {"actor_rates_end": (), "critic_rates_end": ()}
ONE_STEP = {**CONSTANT, "critic_rule": "none", "trace": 0.0}
BATCH = {"environments": 128, "chunk_steps": 12_800}
# Steps, and the final settings of the author's code; those of CartPole are the algorithm's defaults.
MAP_TASKS: dict[str, tuple[int, Mapping[str, Any]]] = {
    "CartPole-v1": (500_000, {}),
    "Acrobot-v1": (
        250_000,
        {"critic_variance": (0.06, 0.2, 0.2), "temperature": 4.0, "trace": 0.97, "end_t": 100_000},
    ),
    "LunarLander-v3": (
        2_500_000,
        {
            **CONSTANT,
            "actor_variance": (0.06, 0.2, 0.2),
            "critic_variance": (0.003, 0.01, 0.01),
            "actor_rates": (4e-3, 4e-6, 4e-8),
            "critic_rates": (1e-2, 1e-5, 1e-7),
            "temperature": 8.0,
            "trace": 0.97,
        },
    ),
    "MountainCarContinuous-v0": (
        500_000,
        {
            **CONSTANT,
            "actor_variance": (0.03, 0.1, 0.5),
            "critic_variance": (0.003, 0.01, 0.05),
            "actor_rates": (4e-3, 4e-6, 4e-8),
            "critic_rates": (1e-2, 1e-5, 1e-6),
            "trace": 0.97,
            "reward_clip": 5.0,
        },
    ),
    "Multiplexer-5": (
        4_000_000,
        {**ONE_STEP, "actor_variance": (0.3, 1.0, 1.0), "actor_rates": (4e-2, 4e-5, 4e-6), "temperature": 1.0},
    ),
    "Regression-8": (
        1_000_000,
        {
            **ONE_STEP,
            "actor_variance": (0.0075, 0.025, 0.025),
            "actor_rates": (6e-2, 6e-5, 6e-6),
            "temperature": 1.0,
            "targets": True,
        },
    ),
}
# Found by a search on seeds 1000 and up (`benchmarks/map_search.py`): what differs from the author's settings.
MAP_FOUND: dict[str, Mapping[str, Any]] = {
    "CartPole-v1": {"trace": 0.995},
    "Acrobot-v1": {"trace": 0.7, "temperature": 3.0},
}
MAP_BETTER = {env: (steps, {**mine, **MAP_FOUND.get(env, {})}) for env, (steps, mine) in MAP_TASKS.items()}
MAP_ASYNC: dict[str, tuple[int, Mapping[str, Any]]] = {  # table 4 of the paper's earlier version
    "CartPole-v1": (500_000, {**CONSTANT, "critic_variance": (0.03, 0.1, 0.5), "actor_rates": (1e-2, 1e-5, 1e-6)}),
    "Acrobot-v1": (
        250_000,
        {**CONSTANT, "critic_variance": (0.03, 0.1, 0.5), "actor_rates": (4e-3, 4e-6, 4e-7), "temperature": 1.0},
    ),
    "LunarLander-v3": (
        2_500_000,
        {
            **CONSTANT,
            "actor_variance": (0.06, 0.2, 0.2),
            "critic_variance": (0.003, 0.01, 0.05),
            "actor_rates": (1e-3, 1e-6, 1e-7),
            "critic_rates": (1e-2, 1e-5, 1e-6),
            "temperature": 2.0,
        },
    ),
    "MountainCarContinuous-v0": (
        500_000,
        {
            **CONSTANT,
            "actor_variance": (0.06, 0.2, 1.0),
            "critic_variance": (0.003, 0.01, 0.05),
            "actor_rates": (2e-3, 2e-6, 2e-7),
            "critic_rates": (1e-2, 1e-5, 1e-6),
            "reward_clip": 5.0,
        },
    ),
}


def _map_tuned(
    tasks: Mapping[str, tuple[int, Mapping[str, Any]]], instead: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Tuned]:
    """Entries by environment; `instead` replaces settings that an entry has."""
    tuned = {}
    for env, (steps, settings) in tasks.items():
        mine = {**settings, **{name: value for name, value in instead.items() if name in settings}}
        tuned[env] = Tuned(steps, {"algorithm": mine, **({"runtime": BATCH} if "critic_rule" in settings else {})})
    return tuned


PRESETS: dict[str, Preset] = {
    "map_propagation": Preset(
        summary="every unit is an agent that learns from one broadcast signal; no back-propagation",
        source=MAP,
        algorithm="map_propagation",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings=MAP_SETTINGS,
        tuned=_map_tuned(MAP_BETTER),
    ),
    "map_async": Preset(
        summary="MAP propagation without phases: units relax all the time",
        source=f"{MAP}, earlier version",
        algorithm="map_propagation",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings={**MAP_SETTINGS, "algorithm": {"asynchronous": True, "trace": 0.997}},
        tuned=_map_tuned(MAP_ASYNC),
    ),
    "reinforce_team": Preset(
        summary="every unit learns by REINFORCE from its own sample (N = 0); the critic by back-propagation",
        source=MAP,
        algorithm="map_propagation",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings={**MAP_SETTINGS, "algorithm": REINFORCE},
        tuned=_map_tuned(MAP_TASKS, {"targets": False}),
    ),
    "reinforce_team_explore": Preset(
        summary="the same, but each unit explores, and learns, with a probability",
        source=f"{MAP}; exploration after Thomas 2011, Policy gradient coagent networks",
        algorithm="map_propagation",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings={**MAP_SETTINGS, "algorithm": {**REINFORCE, "exploring": True}},
        tuned=_map_tuned(MAP_TASKS, {"targets": False}),
    ),
    "backprop_det": Preset(
        summary="the same loop, traces and Adam with back-propagation, and no noise in hidden units",
        source=MAP,
        algorithm="map_propagation",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings={**MAP_SETTINGS, "algorithm": {"learning": "backprop_det", "critic_rule": "backprop"}},
        tuned=_map_tuned(MAP_TASKS),
    ),
    "backprop_sto": Preset(
        summary="the same with noise in hidden units (reparametrisation)",
        source=MAP,
        algorithm="map_propagation",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings={**MAP_SETTINGS, "algorithm": {"learning": "backprop_sto", "critic_rule": "backprop"}},
        tuned=_map_tuned(MAP_TASKS),
    ),
}
