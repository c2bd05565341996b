"""Named experiments: a paper as a combination of parts, with the settings that reproduce it.

What is tuned for one environment was tuned on seeds 1000 and up; results are reported on seeds 0 to 9.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from shoal import environments, errors, experiment, options, registry, types

Settings = Mapping[str, Mapping[str, Any]]  # kind of part -> field -> value


class Tuned(NamedTuple):
    """What differs for one environment."""

    steps: int
    settings: Settings


class Preset(NamedTuple):
    """A combination with a name."""

    summary: str  # one line for `shoal list`
    source: str  # the paper
    algorithm: str
    runtime: str | None  # None: on_device for pure-JAX environments, else host
    env: str  # when none is given
    steps: int  # when the environment has no tuned entry
    settings: Settings
    tuned: Mapping[str, Tuned]  # by environment id, with or without its adapter, or by pattern (`tuned_for`)
    corrector: str = "none"
    compressor: str = "identity"


A3C = "Mnih et al. 2016, arXiv:1602.01783"

ADAM = {"rule": "adam", "anneal": False, "decay": 0.999, "epsilon": 1e-8, "max_norm": 0.0}
REPLAY_CONTINUOUS: Settings = {  # SAC and TD3 as in their papers' later code: two layers of 256, one update a step
    "optimiser": {**ADAM, "learning_rate": 3e-4},
    "network": {"hidden": (256, 256), "activation": "relu"},
    "runtime": {"environments": 1, "chunk_steps": 1000},
}
REPLAY_PENDULUM: Settings = {
    "algorithm": {"learning_starts": 1_000, "capacity": 20_000},
    "optimiser": {"learning_rate": 1e-3},
}
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
LUNAR: Settings = {  # discount and lambda as in rl-baselines3-zoo; more environments, fewer steps of each
    "algorithm": {"rollout_length": 256, "epochs": 10, "minibatches": 16, "discount": 0.999},
    "optimiser": {"learning_rate": 5e-4},
    "corrector": {"lambda_": 0.98},
    "runtime": {"environments": 16},
}
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
        1_250_000,
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
MAP_ASYNC: dict[str, tuple[int, Mapping[str, Any]]] = {  # table 4 of the paper's earlier version
    "CartPole-v1": (500_000, {**CONSTANT, "critic_variance": (0.03, 0.1, 0.5), "actor_rates": (1e-2, 1e-5, 1e-6)}),
    "Acrobot-v1": (
        250_000,
        {**CONSTANT, "critic_variance": (0.03, 0.1, 0.5), "actor_rates": (4e-3, 4e-6, 4e-7), "temperature": 1.0},
    ),
    "LunarLander-v3": (
        1_250_000,
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


ASYNC_VALUE_ATARI: Settings = {  # the paper's small set of games; its other numbers are the rule's defaults
    "algorithm": {"reward_clip": 1.0, "epsilon_evaluation": 0.05},
    "network": {"torso": "dqn_2013"},
}


def _async_value(target: str, summary: str, cartpole: Settings) -> Preset:
    """The presets of Q-learning and Sarsa on lock-free workers, which differ in their targets."""
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
                    "algorithm": {
                        "target_period": 1_000,
                        "epsilon_steps": 50_000,
                        "reward_scale": 0.05,
                        **cartpole.get("algorithm", {}),
                    },
                    "optimiser": {"learning_rate": 2e-3, "epsilon": 1e-3, **cartpole.get("optimiser", {})},
                    "network": {"initialiser": "orthogonal"},
                },
            ),
            "ALE/*": Tuned(80_000_000, ASYNC_VALUE_ATARI),
            "envpool:*-v5": Tuned(80_000_000, ASYNC_VALUE_ATARI),
        },
    )


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
        },
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
                    "optimiser": {"learning_rate": 1e-3, "epsilon": 1e-3},
                    "network": {"initialiser": "orthogonal"},
                },
            ),
        },
    ),
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
        {"algorithm": {"rollout_length": 16}},
    ),
    "async_sarsa": _async_value(
        "sarsa",
        "asynchronous one-step Sarsa: the same, on the action really taken next",
        {"algorithm": {"rollout_length": 16}},
    ),
    "async_nstep_q": _async_value(
        "n_step",
        "asynchronous n-step Q-learning: every state learns from the longest return of its segment",
        {"algorithm": {"rollout_length": 16}},
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
    "map_propagation": Preset(
        summary="every unit is an agent that learns from one broadcast signal; no back-propagation",
        source=MAP,
        algorithm="map_propagation",
        runtime=None,
        env="gymnax:CartPole-v1",
        steps=500_000,
        settings=MAP_SETTINGS,
        tuned=_map_tuned(MAP_TASKS),
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


MOUNTAIN_CAR = {"low": (-1.2, -0.07), "high": (0.6, 0.07)}  # what the simulator allows
# Where a pole has not fallen yet; the two speeds as far as random play takes them.
CART_POLE = {"low": (-2.4, -3.0, -0.21, -3.0), "high": (2.4, 3.0, 0.21, 3.0)}

PRESETS |= {
    "parallel_sarsa": Preset(
        summary="Sarsa(λ) with tile coding, several agents that exchange weights: averaged, filtered or asynchronously",
        source="Grounds & Kudenko 2008; Sutton & Barto 2018",
        algorithm="parallel_sarsa",
        runtime="peers",
        env="MountainCar-v0",
        steps=100_000,
        settings={},
        tuned={
            # The first episodes last longer than the 200 steps after which the simulator breaks off.
            "MountainCar-v0": Tuned(100_000, {"environment": {"time_limit": 1000}, "algorithm": MOUNTAIN_CAR}),
        },
    ),
    "batch_linear": Preset(
        summary="LSTD, LSPI, TD or TDC from a batch of samples, as sums over shards",
        source="Li & Schuurmans 2011; Lagoudakis & Parr 2003",
        algorithm="batch_linear",
        runtime="map_reduce",
        env="CartPole-v1",
        steps=20_000,
        settings={},
        tuned={
            "CartPole-v1": Tuned(20_000, {"algorithm": {"features": "polynomial", **CART_POLE}}),
            "MountainCar-v0": Tuned(100_000, {"algorithm": {"features": "tiles", **MOUNTAIN_CAR}}),
        },
    ),
}


class Request(NamedTuple):
    """What a person asked for; None leaves it to the preset."""

    preset: str
    env: str | None = None
    steps: int | None = None
    seed: int = 0
    runtime: str | None = None
    corrector: str | None = None
    until: float | str | None = None  # a return, "solved", or None to use up the steps
    episodes: int | None = None  # training episodes after which to stop
    configs: Mapping[str, Any] = MappingProxyType({})  # kind -> config already built (command line)
    settings: Settings = MappingProxyType({})  # kind -> plain values (keyword arguments)


def find(name: str) -> Preset:
    """The preset of that name.

    Raises:
        Refused: No such preset.
    """
    if name not in PRESETS:
        raise errors.unknown("preset", name, PRESETS, "`shoal list presets` describes them.")
    return PRESETS[name]


def parts(request: Request) -> dict[str, str]:
    """The named choices a request comes to: kind -> name, and ``"env"``."""
    preset = find(request.preset)
    env = request.env or preset.env
    chosen = request.runtime or preset.runtime or ("on_device" if environments.pure_jax(env) else "host")
    return {
        "env": env,
        "environment": env,
        "algorithm": preset.algorithm,
        "corrector": request.corrector or preset.corrector,
        "compressor": preset.compressor,
        "runtime": chosen,
    }


def workers(request: Request) -> str:
    """The field of the runtime's settings that counts its workers; runtimes without them may have none of the name."""
    return getattr(registry.load("runtime", parts(request)["runtime"]), "WORKERS", "workers")


def config(request: Request, kind: str) -> Any:
    """The preset's config of one kind of part, with what is tuned for the environment."""
    preset, names = find(request.preset), parts(request)
    cls = experiment.config_class(kind, names.get(kind, ""))
    base: Any = options.build(cls, _fitting(cls, preset.settings.get(kind, {})), kind)
    tuned = tuned_for(preset, names["env"])
    return options.build(cls, _fitting(cls, tuned.settings.get(kind, {})) if tuned else {}, kind, base)


def _fitting(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's runtime settings name the fields of several runtimes; each takes its own."""
    return {name: value for name, value in settings.items() if name in cls.__dataclass_fields__}  # type: ignore[attr-defined]


def tuned_for(preset: Preset, env: str) -> Tuned | None:
    """What is tuned for an environment: its own entry, that of the same id elsewhere, or that of a pattern.

    ``gymnax:CartPole-v1`` and ``envpool:CartPole-v1`` are tuned like ``CartPole-v1``; ``ALE/*`` serves every game.
    """
    bare = env.partition(":")[2] if environments.split(env)[0] != "gymnasium" else env
    for name in (env, bare or env):
        if name in preset.tuned:
            return preset.tuned[name]
    return next((tuned for name, tuned in preset.tuned.items() if fnmatch.fnmatchcase(env, name)), None)


def resolve(request: Request) -> tuple[experiment.Experiment, environments.Opened]:
    """The experiment a request comes to, checked, and its environment.

    Raises:
        Refused: Anything in it is unknown, wrong, or does not fit together.
    """
    preset, names = find(request.preset), parts(request)
    configs = {
        kind: options.build(
            experiment.config_class(kind, names.get(kind, "")),
            request.settings.get(kind, {}),
            kind,
            request.configs.get(kind, config(request, kind)),
        )
        for kind in experiment.kinds()
    }
    for kind in request.settings:
        if kind not in experiment.kinds():
            raise errors.unknown("kind of part", kind, experiment.kinds())
    tuned = tuned_for(preset, names["env"])
    experiment.prepare(names["runtime"], configs)
    opened = environments.open(names["env"], configs["environment"])
    made = experiment.Experiment(
        preset=request.preset,
        env=names["env"],
        steps=_steps(request, tuned.steps if tuned else preset.steps, opened.spec),
        seed=request.seed,
        goal=_goal(request.until, opened.spec),
        algorithm=names["algorithm"],
        corrector=names["corrector"],
        compressor=names["compressor"],
        runtime=names["runtime"],
        configs=configs,
        episodes=request.episodes,
    )
    experiment.validate(made, opened)
    registry.load("runtime", made.runtime)
    return made, opened


def _steps(request: Request, usual: int, spec: types.EnvSpec) -> int:
    """The steps asked for; of a run that is to last some episodes, what the longest ones would take."""
    if request.steps is not None or request.episodes is None:
        return usual if request.steps is None else request.steps
    if spec.time_limit is None:
        raise errors.Refused(
            f"--episodes {request.episodes}: {spec.id} has no time limit, so how long they last cannot be told; "
            "give --steps as well"
        )
    return request.episodes * spec.time_limit


def _goal(until: float | str | None, spec: types.EnvSpec) -> types.Goal | None:
    if until is None:
        return None
    if until == "solved":
        if spec.solved_at is None:
            raise errors.Refused(
                f"--until solved: {spec.id} does not say at which return it is solved; give a number, e.g. --until 200"
            )
        return types.Goal(spec.solved_at)
    try:
        target = float(until)
        if not math.isfinite(target):
            raise ValueError(until)
        return types.Goal(target)
    except ValueError:
        raise errors.Refused(f"--until {until!r} is neither a return nor 'solved'; give e.g. --until 475") from None
