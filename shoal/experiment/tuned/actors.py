"""Actors apart from the learner: IMPALA, compressed actors with corrected experience, quantised actors."""

from __future__ import annotations

from shoal.experiment.tuned import ADAM, Preset, Settings, Tuned
from shoal.experiment.tuned.actor_critic import FIELD
from shoal.experiment.tuned.off_policy import REPLAY_CONTINUOUS, REPLAY_PENDULUM

IMPALA = "Espeholt et al. 2018, arXiv:1802.01561"
ACCERL = "Zhang 2022, arXiv:2211.15023"
ACTORQ = "Krishnan et al. 2022, arXiv:1910.01055 (ActorQ)"

DECOUPLED: Settings = {  # optimiser and entropy as in facebookresearch/torchbeast
    "algorithm": {"rollout_length": 20, "reduction": "mean", "entropy_cost": 6e-4, "value_cost": 0.5},
    "optimiser": {"learning_rate": 4.8e-4, "epsilon": 0.01, "max_norm": 40.0},
    "runtime": {"workers": 1, "environments": 8},
}
CARTPOLE: Settings = {
    "algorithm": {"rollout_length": 32, "entropy_cost": 0.0, "reward_scale": 0.05},
    "optimiser": {"learning_rate": 2e-3, "epsilon": 1e-5},
    "runtime": {"environments": 8, "publish_every": 4},
}
ATARI: Settings = {
    "algorithm": {"reward_clip": 1.0, "entropy_cost": 0.01},
    "runtime": {"environments": 8},
}
PONG: Settings = {  # as `a3c_lstm` sees and remembers it; one update takes four games, a larger step
    **FIELD,
    "algorithm": {**FIELD["algorithm"], "entropy_cost": 0.01},
    "optimiser": {**FIELD["optimiser"], "learning_rate": 2e-4},
    "runtime": {"environments": 4},
}

PRESETS: dict[str, Preset] = {
    "impala": Preset(
        summary="actors that act with an older policy, one learner that corrects for it by V-trace",
        source=IMPALA,
        algorithm="actor_critic",
        runtime="actor_learner",
        corrector="vtrace",
        env="CartPole-v1",
        steps=1_000_000,
        settings=DECOUPLED,
        tuned={
            "CartPole-v1": Tuned(400_000, CARTPOLE),
            "ALE/Pong-v5": Tuned(4_000_000, PONG),
            "ALE/*": Tuned(40_000_000, ATARI),
            "envpool:*-v5": Tuned(40_000_000, ATARI),
        },
    ),
    "accerl": Preset(
        summary="IMPALA with actors whose network is pruned, distilled and quantised",
        source=ACCERL,
        algorithm="actor_critic",
        runtime="actor_learner",
        corrector="vtrace",
        compressor="chain",
        env="CartPole-v1",
        steps=1_000_000,
        settings={**DECOUPLED, "network": {"hidden": (1024, 1024), "activation": "relu"}},
        tuned={
            "CartPole-v1": Tuned(300_000, CARTPOLE),
            "ALE/*": Tuned(40_000_000, {**ATARI, "network": {"torso": "nature"}}),
        },
    ),
    "actorq": Preset(
        summary="DQN whose actors run the network in eight bits; nothing is corrected",
        source=ACTORQ,
        algorithm="dqn",
        runtime="actor_learner",
        compressor="quantise",
        env="CartPole-v1",
        steps=500_000,
        settings={
            "algorithm": {"rollout_length": 4},
            "optimiser": {**ADAM, "learning_rate": 1e-3},
            "network": {"hidden": (256, 256), "activation": "relu"},
            "runtime": {"workers": 1, "environments": 4, "publish_every": 10},
        },
        tuned={
            "CartPole-v1": Tuned(
                100_000,
                {
                    "algorithm": {
                        "learning_starts": 1_000,
                        "capacity": 50_000,
                        "batch": 64,
                        "n_step": 3,
                        "target_period": 200,
                    }
                },
            ),
        },
    ),
    "actorq_td3": Preset(
        summary="TD3 whose actors run the policy in eight bits; nothing is corrected",
        source=ACTORQ,
        algorithm="td3",
        runtime="actor_learner",
        compressor="quantise",
        env="Pendulum-v1",
        steps=1_000_000,
        settings={
            **REPLAY_CONTINUOUS,
            "runtime": {"workers": 1, "environments": 1, "publish_every": 10, "queue": 8},
        },
        tuned={"Pendulum-v1": Tuned(20_000, REPLAY_PENDULUM)},
    ),
}
