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
    log_rho: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any, lambda_: Any, clip: Any
) -> tuple[Any, Any]:
    """V-trace targets and policy-gradient advantages.

    v_t = V_t + Σ_{k≥t} γ^{k-t} (Π_{i<k} c_i) δ_k,  δ_k = ρ_k (r_k + γ_k V(x'_k) - V_k),
    ρ = min(clip, π/μ),  c = λ min(1, π/μ);  advantage_t = ρ_t (r_t + γ_t [(1 - λ) V(x'_t) + λ v_{t+1}] - V_t),
    with λ = 0 in the brackets where the stream is cut. λ = 1 is the paper's; below 1 the mixture makes the advantage
    of on-policy experience that of `lambda_returns`, as in rlax.

    Args:
        log_rho: ``[T]`` log π(a|x) - log μ(a|x).
        reward: ``[T]``.
        discount: ``[T]``.
        cut: ``[T]`` bool.
        value: ``[T]`` V(x_t).
        next_value: ``[T]`` value of the true successor.
        lambda_: Scalar in [0, 1].
        clip: Upper bound of ρ.

    Returns:
        ``[T]`` targets and ``[T]`` advantages.

    Source: Espeholt et al. 2018, arXiv:1802.01561, equation 1; the mixture: google-deepmind/rlax, `vtrace.py`.
    """
    ratio = jnp.exp(log_rho)
    rho = jnp.minimum(clip, ratio)
    c = jnp.where(cut, 0.0, lambda_ * jnp.minimum(1.0, ratio))
    delta = rho * (reward + discount * next_value - value)

    def step(future: Any, at: Any) -> tuple[Any, Any]:
        d, g, trace = at
        future = d + g * trace * future
        return future, future

    _, excess = jax.lax.scan(step, jnp.zeros(()), (delta, discount, c), reverse=True, unroll=UNROLL)
    target = value + excess
    mix = jnp.where(cut, 0.0, lambda_)
    following = (1.0 - mix) * next_value + mix * jnp.append(target[1:], next_value[-1])
    return target, rho * (reward + discount * following - value)
