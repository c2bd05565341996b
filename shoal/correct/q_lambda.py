"""Q(λ) that is never cut, for action values: of the learner's policy (Harutyunyan), or uncorrected (Peng).

Q^π(λ) passes all of an error back, λ of it a step, whoever acted: it is sure to contract only for
λ < (1 - γ) / (γ max_x ‖π - μ‖₁). Peng's Q(λ) mixes λ-returns of the policy that acted with the value of what is learned
to be done: a baseline, not a correction. (Watkins' is `tree_backup` with a greedy policy to learn.)

Source: Harutyunyan et al. 2016, arXiv:1602.04951; Peng and Williams 1996, "Incremental multi-step Q-learning".
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal.core import options, types

with epy.lazy_imports():
    import jax.numpy as jnp
    import numpy as np

    from shoal.formulas import returns


@dataclasses.dataclass(frozen=True)
class Config:
    """Q(lambda) without cuts."""

    form: Literal["pi", "peng"] = "pi"
    """pi: of the policy that is learned, by off-policy corrections; peng: without any."""
    lambda_: float = options.number(0.9, low=0.0, high=1.0)
    """Trace decay."""


class Hyper(NamedTuple):
    """Numbers that may change; f32 scalars."""

    lambda_: Any


def build(config: Config) -> types.Corrector:
    """The corrector."""
    hyper, made = Hyper(lambda_=np.float32(config.lambda_)), functools.partial(correct, config.form)
    return types.Corrector(hyper=hyper, of="q", needs_mu=False, correct=made)


def correct(form: str, hyper: Hyper, steps: types.Steps) -> types.Corrected:
    """See `types.Corrector`."""
    along = steps.reward, steps.discount, steps.cut
    if form == "peng":
        target = returns.lambda_returns(*along, steps.next_value, hyper.lambda_)
    else:
        trace = jnp.full_like(steps.value, hyper.lambda_)
        target = returns.action_values(trace, *along, steps.value, steps.next_value)
    return types.Corrected(target=target, advantage=target - steps.value, weight=jnp.ones_like(target), told={})
