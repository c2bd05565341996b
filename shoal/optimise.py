"""The seam where distribution enters: an optimiser is a value, and algorithms never know which one they hold.

* `local(rule)` applies the gradient where it was computed;
* `capture(rule)` leaves it in the state, for a runtime to apply elsewhere (shared memory, a server, a federated sum).

The rate, its annealing, the decay, epsilon and the clip are leaves of `OptimiserState`: changing them needs no
recompilation. `shoal.in_place` has the same rules on a flat vector, for memory several processes share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal import options, types

with epy.lazy_imports():
    import jax
    import jax.flatten_util
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Config:
    """How a gradient becomes a step."""

    rule: Literal["rmsprop", "adam", "momentum", "adagrad"] = "rmsprop"
    """rmsprop: epsilon inside the root, statistic from 0; momentum: m <- decay m + (1 - decay) gradient, a step of
    rate times m (both Mnih et al. 2016); adam: Kingma & Ba 2015; adagrad: Duchi et al. 2011, epsilon within."""
    learning_rate: float = options.number(7e-4, low=0.0)
    """Initial step size."""
    anneal: bool = True
    """Lower the step size linearly to 0 over the run, on the global count of environment steps."""
    decay: float = options.number(0.99, low=0.0, high=1.0)
    """Decay of the running mean of squared gradients; of the momentum, if that is the rule."""
    epsilon: float = options.number(1e-5, low=0.0)
    """Added under the root (rmsprop, adagrad) or to the root (adam)."""
    max_norm: float = options.number(0.5, low=0.0)
    """Gradients are scaled down to this global norm; 0 turns the clip off."""


TINY = 1e-37  # keeps a root from being 0 where the quotient is not used
MOMENTUM = 0.9  # of adam's first moment (beta 1)
LARGEST = 3.4028234663852886e38  # the largest float32: stands for "never": checkpoints hold no infinity


class Hyper(NamedTuple):
    """Numbers that may change during training; all f32 scalars."""

    learning_rate: Any
    anneal_steps: Any  # environment steps after which the rate is 0; `LARGEST` never anneals
    decay: Any
    epsilon: Any
    max_norm: Any  # `LARGEST`: no clip


class Adam(NamedTuple):
    """Running statistics of ``adam``."""

    count: Any  # scalar i32
    mu: Any  # [size] f32
    nu: Any  # [size] f32


class RMSProp(NamedTuple):
    """Running statistics of ``rmsprop``."""

    nu: Any  # [size] f32


class Momentum(NamedTuple):
    """Running statistics of ``momentum``."""

    mu: Any  # [size] f32


class AdaGrad(NamedTuple):
    """Running statistics of ``adagrad``."""

    sum_of_squares: Any  # [size] f32


RULES: dict[str, Any] = {"adam": Adam, "rmsprop": RMSProp, "momentum": Momentum, "adagrad": AdaGrad}


class OptimiserState(NamedTuple):
    """What an optimiser keeps between updates."""

    hyper: Hyper
    rule: Any  # running statistics of the parameters, one of `RULES`; without any, only named, when capturing
    gradient: Any  # the gradient left for somebody else, () unless capturing
    skipped: Any  # scalar i32: updates skipped because the gradient was not finite
    rates: Any = ()  # left with the gradient: what the step of each leaf is multiplied by; () where all are alike


class Step(NamedTuple):
    """What a learning rule may ask of one step, besides the gradient."""

    rates: Any = ()  # like the parameters, a scalar for each leaf: its step is multiplied by it; (): all alike
    corrected: Any = True  # scalar bool; False takes Adam's moments as they are, without the correction of their bias


PLAIN = Step()


class Optimiser(NamedTuple):
    """Pure functions; `update` returns the new parameters and state, and the gradient's norm before clipping."""

    init: Callable[..., OptimiserState]  # (params, rates=()); `rates` as in `Step`, of rules that ask for them
    update: Callable[..., tuple[types.Params, OptimiserState, Any]]
    # (gradient, state, params, env_steps, ask=PLAIN) -> (params, state, norm)


def rate(hyper: Hyper, env_steps: Any) -> Any:
    """The annealed step size η₀ max(0, 1 - T / T_end), on JAX or NumPy scalars.

    Source: Mnih et al. 2016, arXiv:1602.01783; recomputed at each apply as in muupan/async-rl.
    """
    left = 1.0 - env_steps / hyper.anneal_steps
    return hyper.learning_rate * (left + abs(left)) / 2.0  # max(left, 0), exact, on either kind of scalar


def local(config: Config, steps: int) -> Optimiser:
    """Apply gradients where they are computed; one that is not finite is skipped and counted.

    Args:
        config: The rule and its numbers.
        steps: Environment steps of the whole run, for annealing.
    """
    kept = RULES[config.rule]
    rule: Any = {Adam: _adam, RMSProp: _rmsprop, Momentum: _momentum, AdaGrad: _adagrad}[kept]

    def init(params: types.Params, rates: Any = ()) -> OptimiserState:
        del rates  # they come with every step
        zeros = jnp.zeros_like(_vector(params)[0])
        first = kept(*(jnp.int32(0) if name == "count" else zeros for name in kept._fields))
        return OptimiserState(_hyper(config, steps), first, (), jnp.int32(0))

    def update(gradient: Any, state: OptimiserState, params: types.Params, env_steps: Any, ask: Step = PLAIN) -> Any:
        vector, shaped = _vector(gradient)
        norm, scale = _clip(vector, state.hyper.max_norm)
        finite = jnp.isfinite(norm)  # the norm is finite exactly when every element is (or it overflowed: skip too)
        # What is skipped is a step of size 0 from a gradient of 0 that decays nothing: the same bits, in one pass.
        step, statistics = rule(state.hyper, state.rule, jnp.where(finite, vector * scale, 0.0), finite, ask)
        eta = rate(state.hyper, jnp.asarray(env_steps, jnp.float32))
        etas = jax.tree.map(lambda factor: eta * factor, ask.rates or jax.tree.map(lambda _: 1.0, params))
        params = jax.tree.map(lambda p, s, e: p - e * s, params, shaped(step), etas)
        skipped = state.skipped + (~finite).astype(jnp.int32)
        return params, state._replace(rule=statistics, skipped=skipped), norm

    return Optimiser(init, update)


def _adam(hyper: Hyper, old: Adam, gradient: Any, finite: Any, ask: Step) -> tuple[Any, Adam]:
    """Adam: m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g²; m̂ / (√v̂ + ε) with the corrections taken as scalars.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1 in the order of its section 2: a root and a division for
    each element, where correcting both moments first asks for three divisions.
    """
    count = old.count + finite.astype(jnp.int32)
    first, second = (jnp.where(finite, decay, 1.0) for decay in (MOMENTUM, hyper.decay))
    mu = first * old.mu + (1.0 - first) * gradient
    nu = second * old.nu + (1.0 - second) * gradient * gradient
    t = jnp.maximum(count, 1)  # nothing is 0 / 0 where the very first gradient is skipped
    root = jnp.sqrt(1.0 - hyper.decay**t)
    size, root = (jnp.where(ask.corrected, a, 1.0) for a in (root / (1.0 - MOMENTUM**t), root))
    return jnp.where(finite, size, 0.0) * mu / (jnp.sqrt(nu) + hyper.epsilon * root), Adam(count, mu, nu)


def _rmsprop(hyper: Hyper, old: RMSProp, gradient: Any, finite: Any, ask: Step) -> tuple[Any, RMSProp]:
    """RMSProp: v ← α v + (1 - α) g²; g / √(v + ε)."""
    del ask
    decay = jnp.where(finite, hyper.decay, 1.0)
    nu = decay * old.nu + (1.0 - decay) * gradient * gradient
    return gradient / jnp.sqrt(nu + hyper.epsilon), RMSProp(nu)


def _momentum(hyper: Hyper, old: Momentum, gradient: Any, finite: Any, ask: Step) -> tuple[Any, Momentum]:
    """Momentum SGD: m ← α m + (1 - α) g; a step of m."""
    del ask
    decay = jnp.where(finite, hyper.decay, 1.0)
    mu = decay * old.mu + (1.0 - decay) * gradient
    return jnp.where(finite, mu, 0.0), Momentum(mu)


def _adagrad(hyper: Hyper, old: AdaGrad, gradient: Any, finite: Any, ask: Step) -> tuple[Any, AdaGrad]:
    """AdaGrad: v ← v + g²; g / √(v + ε), and 0 where there was never a gradient."""
    del finite, ask  # a gradient of 0 leaves everything as it was
    total = old.sum_of_squares + gradient * gradient
    return jnp.where(total > 0, gradient / jnp.sqrt(jnp.maximum(total + hyper.epsilon, TINY)), 0.0), AdaGrad(total)


def capture(config: Config, steps: int) -> Optimiser:
    """Leave the clipped gradient in the state and the parameters as they are.

    Args:
        config: The rule the gradient will meet; its numbers travel in the state.
        steps: Environment steps of the whole run, for annealing.
    """

    def init(params: types.Params, rates: Any = ()) -> OptimiserState:
        named = RULES[config.rule](*[()] * len(RULES[config.rule]._fields))
        return OptimiserState(_hyper(config, steps), named, jax.tree.map(jnp.zeros_like, params), jnp.int32(0), rates)

    def update(gradient: Any, state: OptimiserState, params: types.Params, env_steps: Any, ask: Step = PLAIN) -> Any:
        del env_steps  # the rate is taken where the gradient is applied
        norm, scale = _clip(_vector(gradient)[0], state.hyper.max_norm)
        left = jax.tree.map(lambda g: g * scale, gradient)
        return params, state._replace(gradient=left, rates=ask.rates), norm

    return Optimiser(init, update)


def faster(state: OptimiserState, factor: float) -> OptimiserState:
    """The same with the step size times `factor`."""
    return state._replace(hyper=state.hyper._replace(learning_rate=state.hyper.learning_rate * jnp.float32(factor)))


def skipped(state: Any) -> Any:
    """Updates skipped by all the optimisers in a learner's state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, OptimiserState))
    return sum(leaf.skipped for leaf in leaves if isinstance(leaf, OptimiserState))


def _hyper(config: Config, steps: int) -> Hyper:
    return Hyper(
        jnp.float32(config.learning_rate),
        jnp.float32(steps if config.anneal else LARGEST),
        jnp.float32(config.decay),
        jnp.float32(config.epsilon),
        jnp.float32(config.max_norm or LARGEST),
    )


def _vector(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A tree as one vector, and the way back.

    A dozen small arrays cost a dozen small loops for each operation of a rule; one vector costs one. For the networks
    of control tasks that halves an update of Adam.
    """
    return jax.flatten_util.ravel_pytree(tree)


def _clip(vector: Any, max_norm: Any) -> tuple[Any, Any]:
    """The *global* norm, and what scales it down to `max_norm` (element-wise clipping would change the direction)."""
    # A product, not a sum of squares: XLA adds up a long vector one number after the other.
    norm = jnp.sqrt(jnp.vdot(vector, vector))
    return norm, jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
