"""Learners of bounded vectors from a replay memory: SAC, TD3."""

from __future__ import annotations

from shoal.experiment.tuned import ADAM, Preset, Settings, Tuned

REPLAY_CONTINUOUS: Settings = {  # SAC and TD3 as in their papers' later code: two layers of 256, one update a step
    "optimiser": {**ADAM, "learning_rate": 3e-4},
    "network": {"hidden": (256, 256), "activation": "relu"},
    "runtime": {"environments": 1, "chunk_steps": 1000},
}
REPLAY_PENDULUM: Settings = {
    "algorithm": {"learning_starts": 1_000, "capacity": 20_000},
    "optimiser": {"learning_rate": 1e-3},
}

PRESETS: dict[str, Preset] = {
    "sac": Preset(
        summary="soft actor-critic with a learned temperature, for bounded vectors",
        source="Haarnoja et al. 2018, arXiv:1812.05905",
        algorithm="sac",
        runtime=None,
        env="gymnax:Pendulum-v1",
        steps=1_000_000,
        settings=REPLAY_CONTINUOUS,
        tuned={
            "Pendulum-v1": Tuned(20_000, REPLAY_PENDULUM),
        },
    ),
    "td3": Preset(
        summary="twin delayed deterministic policy gradient, for bounded vectors",
        source="Fujimoto et al. 2018, arXiv:1802.09477",
        algorithm="td3",
        runtime=None,
        env="gymnax:Pendulum-v1",
        steps=1_000_000,
        settings=REPLAY_CONTINUOUS,
        tuned={
            "Pendulum-v1": Tuned(20_000, REPLAY_PENDULUM),
        },
    ),
}
