"""Several policies with shared critics: CEM-RL, DvD."""

from __future__ import annotations

from shoal.experiment.tuned import ADAM, Preset, Settings, Tuned

GENERAL: Settings = {
    "optimiser": {**ADAM, "learning_rate": 3e-4},
    "network": {"hidden": (256, 256), "activation": "relu"},
}
CEM_RL: Settings = {**GENERAL, "runtime": {"environments": 10, "chunk_steps": 1000}}
DVD: Settings = {  # as many gradient steps as environment steps, three environments a policy
    **GENERAL,
    "algorithm": {"updates": 15},
    "runtime": {"environments": 15, "chunk_steps": 1500},
}
PENDULUM: Settings = {
    "optimiser": {"learning_rate": 1e-3},
    "network": {"hidden": (64, 64)},
}

PRESETS: dict[str, Preset] = {
    "cem_rl": Preset(
        summary="policies drawn from a distribution that moves to the best, half of them trained by TD3 in between",
        source="Pourchot & Sigaud 2019, arXiv:1810.01222",
        algorithm="cem_rl",
        runtime=None,
        env="gymnax:Pendulum-v1",
        steps=1_000_000,
        settings=CEM_RL,
        tuned={
            "Pendulum-v1": Tuned(20_000, {**PENDULUM, "algorithm": {"batch": 64, "capacity": 20_000}}),
        },
    ),
    "dvd": Preset(
        summary="TD3 with several policies that are rewarded for behaving differently, and shared critics",
        source="Parker-Holder et al. 2020, arXiv:2002.00632",
        algorithm="dvd",
        runtime=None,
        env="gymnax:Pendulum-v1",
        steps=3_000_000,
        settings=DVD,
        tuned={
            "Pendulum-v1": Tuned(
                20_000,
                {
                    **PENDULUM,
                    "algorithm": {
                        "batch": 64, "capacity": 20_000, "learning_starts": 1_000, "horizon": 20_000, "updates": 5,
                    },
                    "runtime": {"environments": 5, "chunk_steps": 1000},
                },
            ),
        },
    ),
}  # fmt: skip
