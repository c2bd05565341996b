"""Learning of action values: DQN, the asynchronous methods, the parameter server."""

from __future__ import annotations

from shoal.experiment.tuned import ADAM, Preset, Settings, Tuned
from shoal.experiment.tuned.actor_critic import A3C

DQN_ATARI: Settings = {  # Mnih et al. 2015, with Adam and a tenth of the memory
    "algorithm": {
        "rollout_length": 4,
        "updates": 1,
        "batch": 32,
        "n_step": 1,
        "reward_clip": 1.0,
        "capacity": 100_000,
        "learning_starts": 20_000,
        "target_period": 2_500,
        "epsilon_steps": 250_000,
        "epsilon_end": 0.1,
        "epsilon_evaluation": 0.05,
    },
    "optimiser": {"learning_rate": 1e-4},
    "runtime": {"environments": 1},
}
BUNDLED = {"rollout_length": 4, "updates": 1, "n_step": 1, "double": False, "batch": 64, "target_period": 1_000}
BUNDLED_CARTPOLE = {
    "n_step": 3,
    "target_period": 200,
    "capacity": 50_000,
    "epsilon_steps": 10_000,
    "epsilon_end": 0.02,
}
ASYNC_VALUE_ATARI: Settings = {  # the paper's small set of games; its other numbers are the rule's defaults
    "algorithm": {"reward_clip": 1.0, "epsilon_evaluation": 0.05},
    "network": {"torso": "dqn_2013"},
}


MINATAR: Settings = {  # tuned for n-step returns on Breakout; of two workers, one that explores at 0.5 is too many
    "algorithm": {
        "rollout_length": 32,
        "target_period": 4_000,
        "epsilon_steps": 300_000,
        "epsilon_ends": (0.1, 0.01),
        "epsilon_weights": (0.5, 0.5),
    },
    "optimiser": {"learning_rate": 2e-3, "epsilon": 1e-5},
    "network": {"hidden": (128, 128), "activation": "relu", "initialiser": "orthogonal"},
}


def _async_value(target: str, summary: str, rate: float = 2e-3) -> Preset:
    """The presets of Q-learning and Sarsa on lock-free workers, which differ in their targets.

    CartPole is learned from rewards as they are: scaled down, values do not stay (decision 0041).

    Args:
        target: The rule's.
        summary: One line for `shoal list`.
        rate: The learning rate on CartPole.
    """
    return Preset(
        summary=summary,
        source=A3C,
        algorithm="q_learning",
        runtime="hogwild",
        env="CartPole-v1",
        steps=1_000_000,
        settings={
            "algorithm": {"target": target},
            "optimiser": {"epsilon": 0.1, "max_norm": 40.0},
            "network": {"initialiser": "fan_in"},
        },
        tuned={
            "CartPole-v1": Tuned(
                500_000,
                {
                    "algorithm": {"target_period": 1_000, "epsilon_steps": 50_000, "rollout_length": 16},
                    "optimiser": {"learning_rate": rate, "epsilon": 1e-3},
                    "network": {"initialiser": "orthogonal"},
                },
            ),
            **({"*-MinAtar": Tuned(3_000_000, MINATAR)} if target == "n_step" else {}),
            "ALE/*": Tuned(80_000_000, ASYNC_VALUE_ATARI),
            "envpool:*-v5": Tuned(80_000_000, ASYNC_VALUE_ATARI),
        },
    )


PRESETS: dict[str, Preset] = {
    "dqn": Preset(
        summary="deep Q-learning from a replay memory; double, and dueling, n-step or prioritised by a setting",
        source="Mnih et al. 2015; van Hasselt et al. 2016, arXiv:1509.06461",
        algorithm="dqn",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings={
            "algorithm": {"n_step": 3, "updates": 8, "batch": 64, "epsilon_steps": 20_000, "epsilon_end": 0.02},
            "optimiser": {**ADAM, "learning_rate": 5e-4, "max_norm": 10.0},
            "network": {"hidden": (128, 128), "activation": "relu"},
            "runtime": {"environments": 8, "chunk_steps": 4096},
        },
        tuned={
            "CartPole-v1": Tuned(200_000, {"algorithm": {"target_period": 200, "capacity": 50_000}}),
            "Acrobot-v1": Tuned(
                200_000, {"algorithm": {"target_period": 200, "capacity": 50_000, "updates": 4, "batch": 128}}
            ),
            "LunarLander-v3": Tuned(300_000, {"algorithm": {"epsilon_steps": 40_000}}),
            "ALE/*": Tuned(10_000_000, DQN_ATARI),
            "envpool:*-v5": Tuned(10_000_000, DQN_ATARI),
        },
    ),
    "async_q": _async_value(
        "one_step",
        "asynchronous one-step Q-learning: lock-free processes, one target network for all",
    ),
    "async_sarsa": _async_value(
        "sarsa",
        "asynchronous one-step Sarsa: the same, on the action really taken next",
    ),
    "async_nstep_q": _async_value(
        "n_step",
        "asynchronous n-step Q-learning: every state learns from the longest return of its segment",
        rate=4e-3,
    ),
    "gorila": Preset(
        summary="DQN in bundles of actor, learner and replay memory that push gradients to a sharded parameter server",
        source="Nair et al. 2015, arXiv:1507.04296",
        algorithm="dqn",
        runtime="parameter_server",
        env="CartPole-v1",
        steps=1_000_000,
        settings={
            "algorithm": BUNDLED,
            "optimiser": {"rule": "adagrad", "learning_rate": 0.01, "anneal": False, "epsilon": 1e-6, "max_norm": 10.0},
            "network": {"hidden": (128, 128), "activation": "relu"},
            "runtime": {"bundles": 2, "shards": 3},
        },
        tuned={
            "CartPole-v1": Tuned(60_000, {"algorithm": BUNDLED_CARTPOLE}),
            "ALE/*": Tuned(10_000_000, {"algorithm": DQN_ATARI["algorithm"]}),
            "envpool:*-v5": Tuned(10_000_000, {"algorithm": DQN_ATARI["algorithm"]}),
        },
    ),
    "distributed_dqn": Preset(
        summary="DQN workers, each with its own replay memory, that push gradients to one server",
        source="Ong et al. 2015, arXiv:1508.04186",
        algorithm="dqn",
        runtime="parameter_server",
        env="CartPole-v1",
        steps=1_000_000,
        settings={
            "algorithm": {**BUNDLED, "batch": 32},
            "optimiser": {"learning_rate": 1e-4, "anneal": False, "decay": 0.9, "epsilon": 1e-8, "max_norm": 0.0},
            "network": {"hidden": (128, 128), "activation": "relu"},
            "runtime": {"bundles": 2, "shards": 1, "max_lag": 0, "outlier_sigma": 0.0},
        },
        tuned={
            "CartPole-v1": Tuned(
                100_000,
                {
                    "algorithm": BUNDLED_CARTPOLE,
                    "optimiser": {"learning_rate": 5e-4, "epsilon": 1e-6, "anneal": True},
                },
            ),
            "ALE/*": Tuned(10_000_000, {"algorithm": DQN_ATARI["algorithm"]}),
            "envpool:*-v5": Tuned(10_000_000, {"algorithm": DQN_ATARI["algorithm"]}),
        },
    ),
}
