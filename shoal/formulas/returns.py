"""Returns and advantages of one stream ``[T]``; batch by `vmap`.

Time indices: arrays are aligned, entry t belongs to the transition from x_t by a_t. ``discount`` is gamma times the
environment's discount (0 only at true termination); ``cut`` is True where the stream does not go on after t (an end
of any kind), so that nothing flows back across it; ``next_value`` is V of the *true* successor of x_t, which after a
time limit is not x_{t+1}.
"""

from __future__ import annotations

from typing import Any

from etils import epy

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


UNROLL = 32  # steps of a recursion compiled into one; short segments lose a quarter of an update to the loop


def lambda_returns(reward: Any, discount: Any, cut: Any, next_value: Any, lambda_: Any) -> Any:
    """Lambda-returns, cut at episode ends and bootstrapped at the last step.

    G_t = r_t + γ_t [(1 - λ_t) V(x'_t) + λ_t G_{t+1}], with λ_t = 0 where the stream is cut and at the end.

    λ = 1 gives n-step returns: every state uses the longest return available (Mnih et al. 2016).

    Args:
        reward: ``[T]``.
        discount: ``[T]``.
        cut: ``[T]`` bool.
        next_value: ``[T]`` value of the true successor.
        lambda_: Scalar in [0, 1].

    Returns:
        ``[T]`` returns.

    Source: Sutton & Barto 2018, equation 12.18.
    """
    mix = jnp.where(cut, 0.0, lambda_)

    def step(future: Any, at: Any) -> tuple[Any, Any]:
        r, d, v, m = at
        future = r + d * ((1.0 - m) * v + m * future)
        return future, future

    _, out = jax.lax.scan(step, next_value[-1], (reward, discount, next_value, mix), reverse=True, unroll=UNROLL)
    return out


def vtrace(
    rho: Any, trace: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any, lambda_: Any
) -> tuple[Any, Any]:
    """Targets of state values from experience of another policy, and the errors that its policy gradient weighs.

    v_t = V_t + Σ_{k≥t} γ^{k-t} (Π_{t≤i<k} λ c_i) ρ_k (r_k + γ_k V(x'_k) - V_k), the sum up to where the stream is cut;
    error_t = r_t + γ_t [(1 - λ) V(x'_t) + λ v_{t+1}] - V_t, with λ = 0 in the brackets where the stream is cut.

    V-trace for ρ = min(ρ̄, π/μ) and c = min(c̄, π/μ), with the policy gradient's advantage min(ρ_pg, π/μ) · error;
    per-decision importance sampling with a control variate for ρ = c = π/μ; λ-returns for ρ = c = 1. The mixture in
    the brackets is that of rlax: on-policy, λ below 1, the error is the advantage of `lambda_returns`.

    Args:
        rho: ``[T]`` ρ, weights of the temporal differences.
        trace: ``[T]`` c, how much of what follows a step is passed back over it.
        reward: ``[T]``.
        discount: ``[T]``.
        cut: ``[T]`` bool.
        value: ``[T]`` V(x_t).
        next_value: ``[T]`` value of the true successor.
        lambda_: Scalar in [0, 1].

    Returns:
        ``[T]`` targets and ``[T]`` errors.

    Source: Espeholt et al. 2018, arXiv:1802.01561, equation 1; the mixture: google-deepmind/rlax, `vtrace.py`.
    """
    passed = jnp.where(cut, 0.0, lambda_ * trace)
    delta = rho * (reward + discount * next_value - value)

    def step(future: Any, at: Any) -> tuple[Any, Any]:
        d, g, c = at
        future = d + g * c * future
        return future, future

    start = jnp.zeros((), delta.dtype)
    _, excess = jax.lax.scan(step, start, (delta, discount, passed), reverse=True, unroll=UNROLL)
    target = value + excess
    return target, _errors(target, reward, discount, cut, value, next_value, lambda_)


def per_decision(
    rho: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any, lambda_: Any
) -> tuple[Any, Any]:
    """Plain importance sampling of state values: every reward is weighed by the ratios of the actions up to it.

    G_t = ρ_t (r_t + γ_t [(1 - λ_t) V(x'_t) + λ_t G_{t+1}]), with λ_t = 0 where the stream is cut and at the end;
    error_t = G_t / ρ_t - V_t, of which ρ_t error_t is an unbiased advantage.

    Args:
        rho: ``[T]`` π(a|x) / μ(a|x).
        reward: ``[T]``.
        discount: ``[T]``.
        cut: ``[T]`` bool.
        value: ``[T]`` V(x_t); of the errors alone.
        next_value: ``[T]`` value of the true successor.
        lambda_: Scalar in [0, 1]; 1 is the source's.

    Returns:
        ``[T]`` returns and ``[T]`` errors.

    Source: Precup, Sutton and Singh 2000, "Eligibility Traces for Off-Policy Policy Evaluation", section 3.
    """
    mix = jnp.where(cut, 0.0, lambda_)

    def step(future: Any, at: Any) -> tuple[Any, Any]:
        w, r, d, v, m = at
        future = w * (r + d * ((1.0 - m) * v + m * future))
        return future, future

    given = (rho, reward, discount, next_value, mix)
    _, target = jax.lax.scan(step, next_value[-1], given, reverse=True, unroll=UNROLL)
    return target, _errors(target, reward, discount, cut, value, next_value, lambda_)


def _errors(target: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any, lambda_: Any) -> Any:
    """r_t + γ_t [(1 - λ) V(x'_t) + λ target_{t+1}] - V_t."""
    mix = jnp.where(cut, 0.0, lambda_)
    following = (1.0 - mix) * next_value + mix * jnp.append(target[1:], next_value[-1])
    return reward + discount * following - value


def action_values(trace: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any) -> Any:
    """Targets of action values from experience of another policy.

    G_t = r_t + γ_t ( V'_t + k_t c_{t+1} (G_{t+1} - Q_{t+1}) ), with k_t = 0 where the stream is cut and at the end.

    The trace tells the methods apart, with λ inside it: λ min(1, π/μ) is Retrace, λ π(a|x) tree-backup, λ Q^π(λ).

    Args:
        trace: ``[T]`` c, how much of the error of Q(x_t, a_t) is passed back over it.
        reward: ``[T]``.
        discount: ``[T]``.
        cut: ``[T]`` bool.
        value: ``[T]`` Q(x_t, a_t).
        next_value: ``[T]`` V'_t = E_π Q(x'_t, ·) of the true successor.

    Returns:
        ``[T]`` targets of Q(x_t, a_t).

    Source: Munos et al. 2016, arXiv:1606.02647, equation 3.
    """

    def step(future: Any, at: Any) -> tuple[Any, Any]:
        c, r, d, over, q, v = at
        target = r + d * (v + jnp.where(over, 0.0, future))
        return c * (target - q), target

    given = (trace, reward, discount, cut, value, next_value)
    return jax.lax.scan(step, jnp.zeros((), value.dtype), given, reverse=True, unroll=UNROLL)[1]
