"""Advantage actor-critic: synchronous, and on lock-free workers."""

from __future__ import annotations

from shoal.experiment.tuned import Preset, Settings, Tuned

A3C = "Mnih et al. 2016, arXiv:1602.01783"
ATARI: Settings = {  # the paper's small set of games; its other numbers are the rule's defaults
    "algorithm": {"reward_clip": 1.0},
    "network": {"torso": "dqn_2013"},
}
PONG: Settings = {  # for two cores and two hours: longer segments; initial weights and steps as of openai's A2C
    "algorithm": {"reward_clip": 1.0, "rollout_length": 20},
    "optimiser": {"learning_rate": 3e-4, "epsilon": 1e-5},
    "network": {"torso": "dqn_2013", "initialiser": "orthogonal"},
}
MINATAR: Settings = {  # tuned on Breakout; a wider network than the default, as its 400 inputs are
    "algorithm": {"rollout_length": 32},
    "optimiser": {"learning_rate": 3e-3, "epsilon": 1e-3},
    "network": {"hidden": (128, 128), "activation": "relu", "initialiser": "orthogonal"},
}
FIELD: Settings = {  # rows of Pong's screen between the score and the border; as openai/universe-starter-agent
    "environment": {"size": 42, "frames": 1, "crop": (34, 194)},
    "algorithm": {"reward_clip": 1.0, "rollout_length": 20, "normalise_observations": True},
    "optimiser": {
        "rule": "adam", "learning_rate": 1e-4, "decay": 0.999, "epsilon": 1e-8, "anneal": False, "max_norm": 40.0
    },
    "network": {"torso": "universe", "lstm": 256, "initialiser": "orthogonal"},
}  # fmt: skip
PAPER: Settings = {  # its numbers, written out: a default that moves would move them
    "algorithm": {
        "rollout_length": 5, "discount": 0.99, "entropy_cost": 0.01, "value_cost": 0.5, "reduction": "sum"
    },
    "optimiser": {  # the norm is not the paper's, which does not tell it, but that of public reproductions
        "rule": "rmsprop", "learning_rate": 7e-4, "anneal": True, "decay": 0.99, "epsilon": 0.1, "max_norm": 40.0
    },
    "network": {"initialiser": "fan_in"},
    "runtime": {"statistics": "shared", "segment": "paper"},  # an update at every episode's end
}  # fmt: skip
ON_ATARI = {"ALE/*": Tuned(80_000_000, ATARI), "envpool:*-v5": Tuned(80_000_000, ATARI)}

PRESETS: dict[str, Preset] = {
    "a2c": Preset(
        summary="synchronous advantage actor-critic; whole loop compiled, or vectorised Gymnasium environments",
        source=f"{A3C}; synchronous form as in openai/baselines",
        algorithm="actor_critic",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=1_000_000,
        settings={
            "algorithm": {"reduction": "mean", "value_cost": 1.0},
            "optimiser": {"epsilon": 1e-5, "max_norm": 0.5},
        },
        tuned={
            "CartPole-v1": Tuned(
                400_000,
                {
                    "algorithm": {"rollout_length": 32, "entropy_cost": 0.0, "value_cost": 0.5, "reward_scale": 0.05},
                    "optimiser": {"learning_rate": 2e-3, "max_norm": 40.0},
                    "runtime": {"environments": 8, "chunk_steps": 4096},
                },
            ),
        },
    ),
    "a3c": Preset(
        summary="asynchronous advantage actor-critic: lock-free processes on one shared parameter vector",
        source=A3C,
        algorithm="actor_critic",
        runtime="hogwild",
        env="CartPole-v1",
        steps=1_000_000,
        settings={
            "algorithm": {"reduction": "sum", "value_cost": 0.5},
            "optimiser": {"epsilon": 0.1, "max_norm": 40.0},
            "network": {"initialiser": "fan_in"},
        },
        tuned={
            "CartPole-v1": Tuned(
                300_000,
                {
                    "algorithm": {"rollout_length": 32, "entropy_cost": 0.0, "reward_scale": 0.05},
                    "optimiser": {"learning_rate": 2e-3, "epsilon": 1e-3},
                    "network": {"initialiser": "orthogonal"},
                },
            ),
            "*-MinAtar": Tuned(3_000_000, MINATAR),
            "ALE/Pong-v5": Tuned(5_000_000, PONG),
            **ON_ATARI,
        },
    ),
    "a3c_lstm": Preset(
        summary="A3C with an LSTM after the last hidden layer, for what one observation does not show",
        source=A3C,
        algorithm="actor_critic",
        runtime="hogwild",
        env="CartPole-v1",
        steps=2_000_000,
        settings={
            "algorithm": {"reduction": "sum", "value_cost": 0.5},
            "optimiser": {"epsilon": 0.1, "max_norm": 40.0},
            "network": {"lstm": 256, "initialiser": "fan_in"},
        },
        tuned={
            "CartPole-v1": Tuned(
                800_000,
                {
                    "environment": {"observe": (0, 2)},  # position and angle; the velocities are hidden
                    "algorithm": {"rollout_length": 32, "entropy_cost": 0.0, "reward_scale": 0.05},
                    "optimiser": {"learning_rate": 2e-3, "epsilon": 1e-3},
                    "network": {"hidden": (64,), "lstm": 64, "initialiser": "orthogonal"},
                },
            ),
            "ALE/Pong-v5": Tuned(4_000_000, FIELD),
            **ON_ATARI,
        },
    ),
    "a3c_paper": Preset(
        summary="A3C on Atari with the paper's settings, feed-forward; with --network.lstm 256 its recurrent agent",
        source=f"{A3C}; rate, value cost and initial weights as its first author wrote to muupan/async-rl",
        algorithm="actor_critic",
        runtime="hogwild",
        env="ALE/Pong-v5",
        steps=80_000_000,
        settings=PAPER,
        tuned=ON_ATARI,
    ),
    "a3c_continuous": Preset(
        summary="A3C with a Gaussian policy head and separate policy and value networks",
        source=A3C,
        algorithm="actor_critic",
        runtime="hogwild",
        env="Pendulum-v1",
        steps=2_000_000,
        settings={
            "algorithm": {"reduction": "sum", "value_cost": 0.5, "entropy_cost": 1e-4},
            "optimiser": {"epsilon": 0.1, "max_norm": 40.0},
            "network": {"shared": False, "initialiser": "fan_in"},
        },
        tuned={
            "Pendulum-v1": Tuned(
                1_500_000,
                {
                    "algorithm": {
                        "rollout_length": 32,
                        "discount": 0.95,
                        "entropy_cost": 1e-3,
                        "reward_scale": 0.05,
                    },
                    "optimiser": {"learning_rate": 7e-4, "epsilon": 1e-3},
                    "network": {"initialiser": "orthogonal"},
                },
            ),
        },
    ),
}
