"""Populations: several members of rules that have presets of their own, and priors of what differs between them.

Priors of TD3 and SAC as in instadeepai/fastpbrl (Flajolet et al. 2022, arXiv:2206.08888); those of DQN and PPO, which
it does not train, span a decade or two around the presets' own numbers. Steps are those of all members together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shoal.experiment.tuned import Preset, Tuned, off_policy, ppo, values

FAST = "Flajolet et al. 2022, arXiv:2206.08888"
PBT = f"Jaderberg et al. 2017, arXiv:1711.09846; {FAST}"
MEMBERS = 8
RATES = ("log_uniform(3e-5,3e-3)", "uniform(0.9,0.9999)")  # of every optimiser; γ
TD3 = (
    f"optimiser.learning_rate={RATES[0]}",
    f"critic_optimiser.learning_rate={RATES[0]}",
    f"algorithm.discount={RATES[1]}",
    "algorithm.policy_delay=integer(1,5)",
    "algorithm.noise=uniform(0,1)",
    "algorithm.target_noise=uniform(0,1)",
    "algorithm.target_noise_clip=uniform(0,1)",
)
SAC = (
    f"optimiser.learning_rate={RATES[0]}",
    f"critic_optimiser.learning_rate={RATES[0]}",
    f"alpha_optimiser.learning_rate={RATES[0]}",
    f"algorithm.discount={RATES[1]}",
    "algorithm.reward_scale=log_uniform(0.1,10)",
)
DQN = (
    f"optimiser.learning_rate={RATES[0]}",
    f"algorithm.discount={RATES[1]}",
    "algorithm.epsilon_end=log_uniform(0.01,0.2)",
)
PPO = (
    "optimiser.learning_rate=log_uniform(1e-4,1e-2)",
    "algorithm.entropy_cost=log_uniform(1e-4,1e-1)",
    "algorithm.clip=uniform(0.1,0.4)",
    "algorithm.discount=uniform(0.9,0.9999)",
)


def _preset(base: Preset, summary: str, source: str, prior: tuple[str, ...], **runtime: Any) -> Preset:
    """Members of another preset, with all that is tuned for it; each does half the steps it would do alone."""
    tuned = {env: Tuned(one.steps * MEMBERS // 2, one.settings) for env, one in base.tuned.items()}
    given = {**base.settings.get("runtime", {}), "members": MEMBERS, "prior": prior, **runtime}
    return base._replace(
        summary=summary, source=source, runtime="population", steps=base.steps * MEMBERS // 2,
        settings={**base.settings, "runtime": given}, tuned=MappingProxyType(tuned),
    )  # fmt: skip


PERTURB: Mapping[str, Any] = {"copy": "all", "explore": "perturb"}

PRESETS: dict[str, Preset] = {
    "pbt_td3": _preset(
        off_policy.PRESETS["td3"], "a population of TD3 learners that copy the policies of the better ones", PBT, TD3,
        interval=2_500,
    ),
    "pbt_sac": _preset(
        off_policy.PRESETS["sac"], "a population of SAC learners that copy the policies of the better ones", PBT, SAC,
        interval=2_500,
    ),
    "pbt_dqn": _preset(
        values.PRESETS["dqn"], "a population of DQN learners that copy the better ones", PBT, DQN, interval=5_000,
    ),
    "pbt_ppo": _preset(
        ppo.PRESETS["ppo"], "a population of PPO learners that copy the better ones", PBT, PPO, interval=8_192,
        fraction=0.25, **PERTURB,
    ),
    "mf_pbt": _preset(
        ppo.PRESETS["ppo"], "populations of PPO learners that evolve at different intervals, and exchange migrants",
        "Doulazmi et al. 2025, arXiv:2506.03225", PPO, exchange="mf_pbt", interval=4_096, **PERTURB,
    ),
    "random_search": _preset(
        ppo.PRESETS["ppo"], "PPO learners with hyperparameters drawn at random, and no exchange", FAST, PPO,
        exchange="none", interval=8_192,
    ),
}  # fmt: skip
