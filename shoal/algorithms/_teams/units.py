"""Networks of stochastic units: sampling, energy, MAP phase, local errors. One stream; `vmap` outside.

A layer l has the potential ``pot = h W + b`` of the layer below, the mean μ = f(pot), and the value h ~ N(μ, σ²). The
output is a choice with probabilities softmax(pot / temperature), or a Gaussian around its potential. Every unit learns
from the values of the layers next to it: nothing here differentiates an output with respect to a hidden weight, except
`backpropagate`, the baseline that does just that.

Source: Chung 2021, "MAP Propagation Algorithm", arXiv:2010.07893 (NeurIPS 2021); stephen-chung-mh/map_prop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

STEP = 0.5  # of the MAP phase, times σ² of the layer (section 3 of the paper's code)


class Kind(NamedTuple):
    """What is fixed when a network is compiled."""

    names: tuple[str, ...]  # the layers' places in the tree of parameters, first to last
    activation: str  # of the hidden units, a key of `ACTIVATIONS`
    softmax: bool  # the output is a choice; else Gaussian
    floor: float | None = None  # softmax arguments are held above the largest by no more than this; None: exact


class Law(NamedTuple):
    """How the units are drawn; arrays that may change during training."""

    variance: Any  # [L] σ² of each layer; the last is unused by a softmax
    temperature: Any  # scalar, potentials of a softmax are divided by it


class Activity(NamedTuple):
    """One sweep through a network whose hidden values are given."""

    mean: tuple[Any, ...]  # L arrays [units]; the last holds probabilities or means of the output
    slope: tuple[Any, ...]  # L - 1 arrays [units], f'(pot)


class Problem(NamedTuple):
    """A network whose hidden units are to become probable: observation and output are clamped."""

    kind: Kind
    law: Law
    params: types.Params
    obs: Any  # [features]
    hidden: tuple[Any, ...]  # L - 1 arrays [units], where the phase begins
    output: Any  # [outputs] one-hot choice or value
    stale: Activity | None = None  # the sweep the first step takes its means from; None: a new one


class Settled(NamedTuple):
    """The end of a MAP phase."""

    hidden: tuple[Any, ...]
    error: tuple[Any, ...]  # L arrays, see `errors`
    activity: Activity
    move: Any  # scalar, the largest change of a unit in the last step; 0 without steps


ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {  # f and f' of the potential
    "softplus": (lambda pot: jax.nn.softplus(pot), lambda pot: jax.nn.sigmoid(pot)),  # noqa: PLW0108
    "relu": (lambda pot: jax.nn.relu(pot), lambda pot: (pot > 0).astype(pot.dtype)),  # noqa: PLW0108
    "tanh": (lambda pot: jnp.tanh(pot), lambda pot: 1.0 - jnp.tanh(pot) ** 2),  # noqa: PLW0108
}


def layers(spec: types.NetworkSpec, head: str) -> tuple[str, ...]:
    """The names of the dense layers from the observation to a head."""
    trunk, last = spec.heads[head]
    return tuple(layer.name for layer in (*spec.trunks[trunk], *last) if layer.kind == "dense")


def potential(weights: Any, below: Any) -> Any:
    """``h W + b``, ``[units]``."""
    return below @ weights["kernel"] + weights["bias"]


def emit(kind: Kind, law: Law, pot: Any) -> Any:
    """Probabilities or means of the output from its potential, ``[outputs]``."""
    return jax.nn.softmax(logits(kind, law.temperature, pot)) if kind.softmax else pot


def logits(kind: Kind, temperature: Any, pot: Any) -> Any:
    """Arguments of the softmax; in the author's code none is further than 30 below the largest."""
    scaled = pot / temperature
    if kind.floor is None:
        return scaled
    return jnp.maximum(scaled - jnp.max(scaled), -jnp.asarray(kind.floor, scaled.dtype))


def sample(kind: Kind, params: types.Params, obs: Any, deviation: Any, noise: Sequence[Any]) -> tuple[Any, ...]:
    """Hidden values layer by layer, L - 1 arrays ``[units]``.

    Args:
        kind: The network.
        params: Of every layer.
        obs: ``[features]``.
        deviation: ``[L]`` σ; the last is not used.
        noise: L - 1 arrays ``[units]``, standard normal; zeros give the means.
    """
    function = ACTIVATIONS[kind.activation][0]
    hidden, below = [], obs
    for at, name in enumerate(kind.names[:-1]):
        below = function(potential(params[name], below)) + deviation[at] * noise[at]
        hidden.append(below)
    return tuple(hidden)


def sweep(kind: Kind, law: Law, params: types.Params, obs: Any, hidden: Sequence[Any]) -> Activity:
    """Means and slopes of every layer, each from the values of the layer below."""
    return sweep_from(kind, law, params, potential(params[kind.names[0]], obs), hidden)


def sweep_from(kind: Kind, law: Law, params: types.Params, first: Any, hidden: Sequence[Any]) -> Activity:
    """`sweep` with the first layer's potential known: it never changes while the observation does not."""
    function, slope = ACTIVATIONS[kind.activation]
    pots = [first, *(potential(params[name], h) for name, h in zip(kind.names[1:], hidden, strict=True))]
    means = (*(function(pot) for pot in pots[:-1]), emit(kind, law, pots[-1]))
    return Activity(means, tuple(slope(pot) for pot in pots[:-1]))


def errors(kind: Kind, law: Law, activity: Activity, hidden: Sequence[Any], output: Any) -> tuple[Any, ...]:
    """∂ log Pr(h^l | h^{l-1}) / ∂pot^l of every layer: what it could know by itself, L arrays ``[units]``.

    e^l = (h^l - μ^l) f'(pot^l) / σ_l²;  of the output (onehot - p) / temperature, or (a - μ) / σ_L².

    Args:
        kind: The network.
        law: Variances and temperature.
        activity: Of these hidden values.
        hidden: L - 1 arrays.
        output: ``[outputs]``, one-hot or value.
    """
    inner = [
        (h - mean) * slope / law.variance[at]
        for at, (h, mean, slope) in enumerate(zip(hidden, activity.mean[:-1], activity.slope, strict=True))
    ]
    return (*inner, (output - activity.mean[-1]) / (law.temperature if kind.softmax else law.variance[-1]))


def energy(problem: Problem, hidden: Sequence[Any]) -> Any:
    """-log Pr(output, hidden | obs) up to a constant, scalar; what the MAP phase descends.

    Args:
        problem: The network, its observation and its output.
        hidden: L - 1 arrays.
    """
    kind, law = problem.kind, problem.law
    function = ACTIVATIONS[kind.activation][0]
    total, below = jnp.zeros((), problem.obs.dtype), problem.obs
    for at, name in enumerate(kind.names[:-1]):
        total += jnp.sum((hidden[at] - function(potential(problem.params[name], below))) ** 2) / (2 * law.variance[at])
        below = hidden[at]
    pot = potential(problem.params[kind.names[-1]], below)
    if kind.softmax:
        return total - jnp.sum(problem.output * jax.nn.log_softmax(logits(kind, law.temperature, pot)))
    return total + jnp.sum((problem.output - pot) ** 2) / (2 * law.variance[-1])


def ascend(problem: Problem, activity: Activity, hidden: tuple[Any, ...]) -> tuple[Any, ...]:
    """One step of all hidden layers from the old values (Jacobi): h ← h + ½σ² (below + above).

    ``below`` draws a unit to its mean; ``above`` is what the next layer's error asks for, through the transpose of the
    weights between them.
    """
    kind, law = problem.kind, problem.law
    error = errors(kind, law, activity, hidden, problem.output)
    return tuple(
        h + STEP * (mean - h + law.variance[at] * (error[at + 1] @ problem.params[kind.names[at + 1]]["kernel"].T))
        for at, (h, mean) in enumerate(zip(hidden, activity.mean[:-1], strict=True))
    )


def settle(problems: Sequence[Problem], steps: int, unroll: int = 1) -> tuple[Settled, ...]:
    """The MAP phase of several networks side by side, in one loop.

    Args:
        problems: What is clamped, and where to begin.
        steps: N; 0 leaves the hidden values as they are.
        unroll: Steps written out in the body of the loop.
    """
    first = [potential(one.params[one.kind.names[0]], one.obs) for one in problems]

    def look(one: Problem, pot: Any, hidden: tuple[Any, ...]) -> Activity:
        return sweep_from(one.kind, one.law, one.params, pot, hidden)

    def step(at: Any, _: Any) -> tuple[Any, None]:
        moved = []
        for one, pot, (hidden, _before, activity) in zip(problems, first, at, strict=True):
            after = ascend(one, activity, hidden)
            moved.append((after, hidden, look(one, pot, after)))
        return tuple(moved), None

    start = tuple(
        (one.hidden, one.hidden, one.stale or look(one, pot, one.hidden))
        for one, pot in zip(problems, first, strict=True)
    )
    end = jax.lax.scan(step, start, None, steps, unroll=unroll)[0] if steps else start
    return tuple(_settled(one, *each) for one, each in zip(problems, end, strict=True))


def _settled(one: Problem, hidden: tuple[Any, ...], before: tuple[Any, ...], activity: Activity) -> Settled:
    moves = [jnp.max(jnp.abs(now - then)) for now, then in zip(hidden, before, strict=True)]
    move = jnp.max(jnp.stack(moves)) if moves else jnp.zeros((), one.obs.dtype)
    return Settled(hidden, errors(one.kind, one.law, activity, hidden, one.output), activity, move)


def gate(law: Law, output: Any, mean: Any, error: Sequence[Any], bound: Any) -> tuple[tuple[Any, ...], Any]:
    """The errors of a network that predicts a number: divided by A - μ̂, so that they tell of the mean, not of A.

    At the energy's minimum a hidden error is (A - μ̂) / σ_L² times the derivative of the mean; divided, what is left is
    the gradient of the mean over σ_L². The output layer's is exactly 1 / σ_L².

    Args:
        law: Variances.
        output: A, ``[1]``.
        mean: μ̂ of the output after the MAP phase, ``[1]``.
        error: L arrays.
        bound: |A - μ̂| is held above ``bound`` times σ_L, its sign kept: rounding makes it 0 now and then. 0: no guard.

    Returns:
        The L gated errors, and whether the guard fired (scalar f32).
    """
    apart, least = output - mean, bound * jnp.sqrt(law.variance[-1])
    fired = jnp.abs(apart) < least
    safe = jnp.where(fired, jnp.where(apart < 0, -least, least), apart)
    inner = tuple(e / safe for e in error[:-1])
    return (*inner, jnp.ones_like(output) / law.variance[-1]), fired[0].astype(output.dtype)


def backpropagate(kind: Kind, params: types.Params, activity: Activity, top: Any) -> tuple[Any, ...]:
    """The same L errors by back-propagation: each layer's is that of the next one through the weights and f'.

    Hidden values may hold noise: it is a constant then (reparametrisation).

    Args:
        kind: The network.
        params: Of every layer.
        activity: A sweep of the hidden values.
        top: ``[outputs]`` what is asked of the output's potential.
    """
    found = [top]
    for name, slope in zip(kind.names[:0:-1], activity.slope[::-1], strict=True):
        found.append((found[-1] @ params[name]["kernel"].T) * slope)
    return tuple(found[::-1])


def increments(kind: Kind, obs: Any, hidden: Sequence[Any], error: Sequence[Any]) -> types.Params:
    """What every layer adds to its trace: (h^{l-1})ᵀ e^l and e^l, shaped as the parameters."""
    inputs = (obs, *hidden)
    return {
        name: {"kernel": jnp.outer(below, e), "bias": e}
        for name, below, e in zip(kind.names, inputs, error, strict=True)
    }


def split(values: Any, sizes: Sequence[int]) -> tuple[Any, ...]:
    """One vector of all units ``[..., sum(sizes)]`` as the layers it is made of."""
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    return tuple(values[..., end - size : end] for end, size in zip(ends, sizes, strict=True))
