"""The seam where distribution enters: an optimiser is a value, and algorithms never know which one they hold.

* `local(rule)` applies the gradient where it was computed;
* `capture(rule)` leaves it in the state, for a runtime to apply elsewhere (shared memory, a server);
* `splitting.split` and `splitting.proximal` tell parameters that are an owner's from those that are everybody's.

The rate, its annealing, the decay, epsilon and the clip are leaves of `OptimiserState`: changing them needs no
recompilation. Rules are those of `rules`, which `in_place` has once more for memory that several processes share, and
those of optax, by name (`from_optax`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, options, types
from shoal.formulas import from_optax, rules

with epy.lazy_imports():
    import jax
    import jax.flatten_util
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Config:
    """How a gradient becomes a step."""

    rule: str = "rmsprop"
    """rmsprop: epsilon inside the root, statistic from 0; momentum: m <- decay m + (1 - decay) gradient, a step of
    rate times m (both Mnih et al. 2016); adam: Kingma & Ba 2015; adagrad: Duchi et al. 2011, epsilon within;
    optax:NAME: an optimiser of optax, e.g. optax:adamw, where gradients are applied locally (on_device, host)."""
    learning_rate: float = options.number(7e-4, low=0.0, scale="log")
    """Initial step size."""
    anneal: bool = True
    """Lower the step size linearly to 0 over the run, on the global count of environment steps."""
    decay: float = options.number(0.99, low=0.0, high=1.0)
    """Decay of the running mean of squared gradients; of the momentum, if that is the rule."""
    epsilon: float = options.number(1e-5, low=0.0, scale="log")
    """Added under the root (rmsprop, adagrad) or to the root (adam)."""
    max_norm: float = options.number(0.5, low=0.0, scale="log")
    """Gradients are scaled down to this global norm; 0 turns the clip off."""
    arguments: tuple[str, ...] = options.later(())
    """What else an optax rule takes, as name=value, e.g. weight_decay=1e-4 nesterov=true. Its learning_rate, its decay
    of squares (b2, b3, rho or decay) and its eps are the rate, decay and epsilon above, not optax's defaults."""
    local_rate: float = options.number(1.0, low=0.0, scale="log", new=True)
    """What the step size is multiplied by for layers that are an owner's own (network.form), and for no others."""


LARGEST = 3.4028234663852886e38  # the largest float32: stands for "never": checkpoints hold no infinity


class Hyper(NamedTuple):
    """Numbers that may change during training; all f32 scalars."""

    learning_rate: Any
    anneal_steps: Any  # environment steps after which the rate is 0; `LARGEST` never anneals
    decay: Any
    epsilon: Any
    max_norm: Any  # `LARGEST`: no clip


class Optax(NamedTuple):
    """What an optimiser of optax keeps."""

    kept: Any  # optax's own state


class OptimiserState(NamedTuple):
    """What an optimiser keeps between updates."""

    hyper: Hyper
    rule: Any  # running statistics of the parameters, of `rules` or `Optax`; without any, only named, when capturing
    gradient: Any  # the gradient left for somebody else, () unless capturing
    skipped: Any  # scalar i32: updates skipped because the gradient was not finite
    rates: Any = ()  # left with the gradient: what the step of each leaf is multiplied by; () where all are alike
    mu: Any = ()  # scalar f32: how strongly global parameters are drawn to the anchor (`splitting`); () if they are not
    anchor: Any = ()  # what they are drawn to, like the parameters with () in place of local ones
    noise: Any = ()  # of a `streams.apart` optimiser: what is added to the sum over streams, [parameters]


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


def check(config: Config) -> None:
    """Refuse a rule there is not, and arguments it does not take.

    Raises:
        Refused: Names what is allowed.
    """
    if config.rule.startswith(from_optax.PREFIX):
        from_optax.check(config.rule, config.arguments)
    elif config.rule not in rules.RULES:
        remedy = "Optimisers of optax are named optax:NAME."
        raise errors.unknown("value of optimiser.rule", config.rule, rules.RULES, remedy)
    elif config.arguments:
        raise errors.Refused(
            f"optimiser.arguments={' '.join(config.arguments)}, but {config.rule} takes none; leave them out, "
            f"or name a rule of optax ({from_optax.PREFIX}NAME)"
        )


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
    if config.rule.startswith(from_optax.PREFIX):
        return _local_optax(config, steps)
    kept, rule = rules.RULES[config.rule]

    def init(params: types.Params, rates: Any = ()) -> OptimiserState:
        del rates  # they come with every step
        zeros = jnp.zeros_like(_vector(params)[0])
        first = kept(*(jnp.int32(0) if name == "count" else zeros for name in kept._fields))
        return OptimiserState(_hyper(config, steps), first, (), jnp.int32(0))

    def update(gradient: Any, state: OptimiserState, params: types.Params, env_steps: Any, ask: Step = PLAIN) -> Any:
        vector, shaped = _vector(gradient)
        norm, scale = clip(vector, state.hyper.max_norm)
        finite = jnp.isfinite(norm)  # the norm is finite exactly when every element is (or it overflowed: skip too)
        # What is skipped is a step of size 0 from a gradient of 0 that decays nothing: the same bits, in one pass.
        step, statistics = rule(state.hyper, state.rule, jnp.where(finite, vector * scale, 0.0), finite, ask)
        eta = rate(state.hyper, jnp.asarray(env_steps, jnp.float32))
        etas = jax.tree.map(lambda factor: eta * factor, ask.rates or jax.tree.map(lambda _: 1.0, params))
        params = jax.tree.map(lambda p, s, e: p - e * s, params, shaped(step), etas)
        skipped = state.skipped + (~finite).astype(jnp.int32)
        return params, state._replace(rule=statistics, skipped=skipped), norm

    return Optimiser(init, update)


def _local_optax(config: Config, steps: int) -> Optimiser:
    """The same with a rule of optax, which sees the parameters' tree: some tell layers apart."""
    rule = from_optax.build(config.rule, config.arguments)

    def init(params: types.Params, rates: Any = ()) -> OptimiserState:
        del rates
        hyper = _hyper(config, steps)
        return OptimiserState(hyper, Optax(rule.init(hyper._asdict(), params)), (), jnp.int32(0))

    def update(gradient: Any, state: OptimiserState, params: types.Params, env_steps: Any, ask: Step = PLAIN) -> Any:
        norm, scale = clip(_vector(gradient)[0], state.hyper.max_norm)
        finite = jnp.isfinite(norm)
        gradient = jax.tree.map(lambda g: jnp.where(finite, g * scale, 0.0), gradient)
        numbers = state.hyper._replace(learning_rate=rate(state.hyper, jnp.asarray(env_steps, jnp.float32)))._asdict()
        change, kept = rule.step(numbers, state.rule.kept, gradient, params)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), kept, state.rule.kept)
        change = jax.tree.map(lambda p, c: jnp.where(finite, c.astype(p.dtype), 0.0), params, change)
        rates = ask.rates or jax.tree.map(lambda _: 1.0, params)
        params = jax.tree.map(lambda p, c, factor: p + c * factor, params, change, rates)
        skipped = state.skipped + (~finite).astype(jnp.int32)
        return params, state._replace(rule=Optax(kept), skipped=skipped), norm

    return Optimiser(init, update)


def capture(config: Config, steps: int) -> Optimiser:
    """Leave the clipped gradient in the state and the parameters as they are.

    Args:
        config: The rule the gradient will meet; its numbers travel in the state.
        steps: Environment steps of the whole run, for annealing.
    """

    def init(params: types.Params, rates: Any = ()) -> OptimiserState:
        kept = rules.RULES[config.rule].kept
        named = kept(*[()] * len(kept._fields))
        return OptimiserState(_hyper(config, steps), named, jax.tree.map(jnp.zeros_like, params), jnp.int32(0), rates)

    def update(gradient: Any, state: OptimiserState, params: types.Params, env_steps: Any, ask: Step = PLAIN) -> Any:
        del env_steps  # the rate is taken where the gradient is applied
        norm, scale = clip(_vector(gradient)[0], state.hyper.max_norm)
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


def clip(vector: Any, max_norm: Any) -> tuple[Any, Any]:
    """The *global* norm, and what scales it down to `max_norm` (element-wise clipping would change the direction)."""
    # A product, not a sum of squares: XLA adds up a long vector one number after the other.
    norm = jnp.sqrt(jnp.vdot(vector, vector))
    return norm, jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
