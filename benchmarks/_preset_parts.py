"""What `presets.py` measures: one line a claim, with what others have published for the same algorithm and task.

Steps are those of the preset, at most those of the first reference. Published figures are of other
settings and other machinery, and often of an older version of the task (then it is named): they say where the field
is, not who wins. Nothing is entered that was not read in the document named.
"""

from __future__ import annotations

from typing import Any, NamedTuple

ZOO = "https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md"
CLEANRL = "https://github.com/vwxyzjn/cleanrl/blob/master/docs"
SLM = "https://github.com/kengz/SLM-Lab/blob/master/docs/BENCHMARKS.md"
GYMNAX = "https://github.com/RobertTLange/gymnax/blob/main/README.md"


class Reference(NamedTuple):
    """A published figure."""

    value: float  # mean return
    spread: float | None  # standard deviation over seeds, if given
    steps: int
    source: str
    url: str
    env: str | None = None  # the version it was measured on, if another


class Part(NamedTuple):
    """One claim."""

    preset: str
    env: str
    steps: int
    references: tuple[Reference, ...] = ()  # the first is the one in the table
    seeds: int = 10
    words: tuple[Any, ...] = ()  # further words of `shoal train`


def zoo(value: float, steps: int, env: str | None = None) -> Reference:
    """rl-baselines3-zoo: one trained agent with tuned settings, its deterministic policy over 150,000 steps."""
    return Reference(value, None, steps, "rl-baselines3-zoo, one run", ZOO, env)


def cleanrl(value: float, spread: float, page: str, steps: int, env: str | None = None) -> Reference:
    """CleanRL: returns at the end of training; its benchmark scripts run three seeds."""
    return Reference(value, spread, steps, "CleanRL, 3 seeds", f"{CLEANRL}/{page}.md", env)


def slm(value: float, steps: int) -> Reference:
    """SLM-Lab: moving average of the return at the end of training, four sessions."""
    return Reference(value, None, steps, "SLM-Lab, 4 sessions", SLM)


def gymnax(value: float, steps: int) -> Reference:
    """The README of gymnax, return of a checkpoint; the steps are those of the configuration in gymnax-blines."""
    return Reference(value, None, steps, "gymnax-blines, one checkpoint", GYMNAX)


def fujimoto(value: float, spread: float, env: str) -> Reference:
    """The TD3 paper's Table 1 as CleanRL quotes it."""
    url = f"{CLEANRL}/rl-algorithms/td3.md"
    return Reference(value, spread, 1_000_000, "Fujimoto et al. 2018, Table 1", url, env)


M = 1_000_000
CHEETAH, HOPPER = "HalfCheetah-v5", "Hopper-v5"
LUNAR, CONTINUOUS_LUNAR = "LunarLander-v3", "LunarLanderContinuous-v3"
CAR = "gymnax:MountainCarContinuous-v0"
PPO_MUJOCO, SAC, TD3 = "benchmark/ppo_continuous_action", "benchmark/sac", "benchmark/td3"

LIST = [
    # ---- ppo
    Part(
        *("ppo", "gymnax:CartPole-v1", 200_000),
        (cleanrl(490.04, 6.12, "benchmark/ppo", 500_000), zoo(500.0, 100_000), gymnax(500, 150_000)),
    ),
    Part(
        *("ppo", "gymnax:Acrobot-v1", 500_000),
        (cleanrl(-86.36, 1.32, "benchmark/ppo", 500_000), zoo(-73.506, M), slm(-81.28, 300_000), gymnax(-80, 500_000)),
    ),
    Part("ppo", CAR, 500_000, (gymnax(92, M), zoo(88.343, 20_000))),
    Part("ppo", "gymnax:Pendulum-v1", 500_000, (slm(-174.87, 300_000), zoo(-172.225, 100_000), gymnax(-130, M))),
    Part("ppo", LUNAR, M, (zoo(242.119, M, "LunarLander-v2"), slm(183.30, 300_000)), seeds=5),
    Part("ppo", CONTINUOUS_LUNAR, M, (zoo(270.863, M, "LunarLanderContinuous-v2"), slm(132.58, 300_000)), seeds=5),
    Part("ppo", "gymnax:Breakout-MinAtar", 3 * M, (gymnax(28, 10 * M),), seeds=5),
    Part("ppo", "gymnax:Asterix-MinAtar", 10 * M, (gymnax(15, 10 * M),), seeds=3),
    Part("ppo", "gymnax:SpaceInvaders-MinAtar", 3 * M, (gymnax(131, 10 * M),), seeds=5),
    Part(
        *("ppo", CHEETAH, M),
        (
            cleanrl(1442.64, 46.03, PPO_MUJOCO, M, "HalfCheetah-v4"),
            zoo(5819.099, M, "HalfCheetah-v3"),
            slm(6240.68, 10 * M),
        ),
        seeds=5,
    ),
    Part(
        *("ppo", HOPPER, M),
        (cleanrl(2382.86, 271.74, PPO_MUJOCO, M, "Hopper-v4"), zoo(2410.435, M, "Hopper-v3"), slm(1653.74, 4 * M)),
        seeds=5,
    ),
    Part("ppo", "brax:ant", 3 * M, seeds=3),
    # ---- dqn
    Part(
        *("dqn", "gymnax:CartPole-v1", 200_000),
        (cleanrl(488.69, 16.11, "rl-algorithms/dqn", 500_000), zoo(500.0, 50_000)),
    ),
    Part(
        *("dqn", "gymnax:Acrobot-v1", 200_000),
        (cleanrl(-91.54, 7.20, "rl-algorithms/dqn", 500_000), zoo(-76.639, 100_000), slm(-94.17, 300_000)),
    ),
    Part("dqn", LUNAR, 300_000, (slm(195.21, 300_000), zoo(154.382, 100_000, "LunarLander-v2")), seeds=5),
    Part("dqn", "gymnax:Breakout-MinAtar", 2 * M, seeds=5),
    Part("dqn", "gymnax:Asterix-MinAtar", 2 * M),
    Part("dqn", "gymnax:SpaceInvaders-MinAtar", 2 * M),
    # ---- sac
    Part("sac", "gymnax:Pendulum-v1", 20_000, (zoo(-156.995, 20_000), slm(-150.97, 300_000))),
    Part("sac", CAR, 50_000, (zoo(94.679, 50_000),)),
    Part("sac", CONTINUOUS_LUNAR, 500_000, (zoo(260.390, 500_000, "LunarLanderContinuous-v2"), slm(125.0, 300_000))),
    Part(
        *("sac", CHEETAH, M),
        (
            cleanrl(9634.89, 1423.73, SAC, M, "HalfCheetah-v4"),
            zoo(9535.451, M, "HalfCheetah-v3"),
            slm(9815.16, 4 * M),
        ),
        seeds=3,
    ),
    Part(
        *("sac", HOPPER, M),
        (cleanrl(2310.46, 342.82, SAC, M, "Hopper-v4"), zoo(2325.547, M, "Hopper-v3"), slm(1416.52, 3 * M)),
        seeds=3,
    ),
    # ---- td3
    Part("td3", "gymnax:Pendulum-v1", 20_000, (zoo(-151.855, 20_000),)),
    Part("td3", CAR, 300_000, (zoo(93.483, 300_000),)),
    Part("td3", CONTINUOUS_LUNAR, 300_000, (zoo(207.451, 300_000, "LunarLanderContinuous-v2"),)),
    Part(
        *("td3", CHEETAH, M),
        (
            cleanrl(9583.22, 126.09, TD3, M, "HalfCheetah-v4"),
            fujimoto(9636.95, 859.065, "HalfCheetah-v1"),
            zoo(9655.666, M, "HalfCheetah-v3"),
        ),
        seeds=3,
    ),
    Part(
        *("td3", HOPPER, M),
        (
            cleanrl(3134.61, 360.18, TD3, M, "Hopper-v4"),
            fujimoto(3564.07, 114.74, "Hopper-v1"),
            zoo(3606.390, M, "Hopper-v3"),
        ),
        seeds=3,
    ),
    # ---- the asynchronous family; a3c's parts are those of `cartpole.py`
    Part("async_q", "CartPole-v1", M // 2, words=("--workers", 2)),
    Part("async_sarsa", "CartPole-v1", M // 2, words=("--workers", 2)),
    Part("async_nstep_q", "CartPole-v1", M // 2, words=("--workers", 2)),
    Part("a3c", "gymnax:Breakout-MinAtar", 3 * M, seeds=5, words=("--workers", 2)),
    Part("async_nstep_q", "gymnax:Breakout-MinAtar", 3 * M, seeds=5, words=("--workers", 2)),
    Part("gorila", "CartPole-v1", 60_000, words=("--workers", 2)),
    Part("distributed_dqn", "CartPole-v1", 100_000, words=("--workers", 2)),
]
PARTS = {f"{part.preset}/{part.env}": part for part in LIST}
