"""Proximal policy optimisation."""

from __future__ import annotations

from shoal.experiment.tuned import ADAM, Preset, Settings, Tuned

MINATAR: Settings = {  # as in the PPO settings of gymnax-blines and purejaxrl
    "algorithm": {"minibatches": 8},
    "optimiser": {"learning_rate": 5e-3},
    "network": {"activation": "relu"},
    "runtime": {"environments": 64, "chunk_steps": 65_536},
}
MUJOCO: Settings = {  # Huang et al. 2022, "The 37 Implementation Details of PPO", over eight environments
    "algorithm": {
        "rollout_length": 256,
        "epochs": 10,
        "minibatches": 32,
        "entropy_cost": 0.0,
        "normalise_observations": True,
        "normalise_returns": True,
    },
    "runtime": {"environments": 8},
}
PONG: Settings = {  # for two cores: small minibatches, which fit their caches; clip, rewards and shared trunk as usual
    "algorithm": {"minibatches": 16, "clip": 0.1, "reward_clip": 1.0},
    "optimiser": {"learning_rate": 5e-4},
    "network": {"torso": "dqn_2013", "shared": True},
}
LUNAR: Settings = {  # discount and lambda as in rl-baselines3-zoo; more environments, fewer steps of each
    "algorithm": {"rollout_length": 256, "epochs": 10, "minibatches": 16, "discount": 0.999},
    "optimiser": {"learning_rate": 5e-4},
    "corrector": {"lambda_": 0.98},
    "runtime": {"environments": 16},
}

PRESETS: dict[str, Preset] = {
    "ppo": Preset(
        summary="proximal policy optimisation: several passes over each batch; choices or vectors",
        source="Schulman et al. 2017, arXiv:1707.06347",
        algorithm="ppo",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=1_000_000,
        settings={
            "optimiser": {**ADAM, "learning_rate": 3e-4, "epsilon": 1e-5, "max_norm": 0.5, "anneal": True},
            "network": {"shared": False},
            "corrector": {"lambda_": 0.95},
            "runtime": {"environments": 8},
        },
        tuned={
            "CartPole-v1": Tuned(
                200_000,
                {
                    "algorithm": {
                        "rollout_length": 64,
                        "epochs": 10,
                        "minibatches": 2,
                        "discount": 0.98,
                        "entropy_cost": 0.0,
                    },
                    "optimiser": {"learning_rate": 2e-3},
                    "corrector": {"lambda_": 0.9},
                    "runtime": {"chunk_steps": 4096},
                },
            ),
            "Acrobot-v1": Tuned(500_000, {"optimiser": {"learning_rate": 1e-3}, "runtime": {"environments": 16}}),
            "ALE/Pong-v5": Tuned(2_500_000, PONG),
            "MountainCarContinuous-v0": Tuned(
                500_000,
                {
                    "algorithm": {"discount": 0.999, "normalise_observations": True, "normalise_returns": True},
                    "runtime": {"environments": 16},
                },
            ),
            "Pendulum-v1": Tuned(
                500_000,
                {
                    "algorithm": {
                        "rollout_length": 128,
                        "epochs": 10,
                        "minibatches": 8,
                        "discount": 0.95,
                        "entropy_cost": 0.0,
                        "reward_scale": 0.05,
                    },
                    "optimiser": {"learning_rate": 1e-3},
                    "runtime": {"environments": 16},
                },
            ),
            "Breakout-MinAtar": Tuned(3_000_000, MINATAR),
            "SpaceInvaders-MinAtar": Tuned(3_000_000, MINATAR),
            "Asterix-MinAtar": Tuned(10_000_000, {**MINATAR, "optimiser": {"learning_rate": 2e-3}}),
            "LunarLander-v3": Tuned(1_000_000, LUNAR),
            "LunarLanderContinuous-v3": Tuned(
                1_000_000, {**LUNAR, "algorithm": {**LUNAR["algorithm"], "entropy_cost": 1e-3}}
            ),
            "HalfCheetah-v5": Tuned(1_000_000, MUJOCO),
            "brax:ant": Tuned(
                3_000_000,
                {
                    "environment": {"backend": "spring"},
                    "algorithm": {
                        "rollout_length": 32,
                        "minibatches": 8,
                        "discount": 0.97,
                        "entropy_cost": 1e-3,
                        "normalise_observations": True,
                        "normalise_returns": True,
                    },
                    "optimiser": {"learning_rate": 6e-4},
                    "runtime": {"environments": 64, "chunk_steps": 65_536},
                },
            ),
            "Hopper-v5": Tuned(1_000_000, MUJOCO),
        },
    ),
}
