"""One decision in NumPy, for networks whose single decision costs XLA more than their arithmetic.

A jitted call costs 15 to 20 µs a step whatever the network; two matrix-vector products of 64 units cost 5, and the
convolutions of a single picture are products as well (measured, see docs/decisions/0004). Actors that step one Python
environment at a time therefore evaluate such networks here, from the same `types.NetworkSpec` and the same parameters;
tests hold it to `networks.apply`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shoal.core import types
from shoal.formulas import deciding as many
from shoal.networks import compact, walking
from shoal.networks.engines import in_numpy as arrays

LARGEST = 128 * 128  # weights of one dense layer where there are no convolutions; beyond, XLA's products win
MANY = 16  # choices at once up to which a loop is quicker than arrays (8 µs for 2, 40 either way for 16)
NOISE = 4096  # decisions for which random numbers are drawn at once


class Decision(NamedTuple):
    """What acting gives; plain NumPy."""

    action: Any  # int, [choices] i32, or [d] f32
    log_prob: float


def fits(spec: types.NetworkSpec, output: str = "policy") -> bool:
    """Whether every layer between the observation and the head `output` is one of these: convolutions, small dense."""
    alone = compact.part(spec, (output,))
    kinds = {layer.kind for layer in compact.layers_of(alone)}
    if kinds - {"scale", "pad", "conv", "dense", "tanh", "relu", "elu", "flatten"}:
        return False
    largest = 0

    def through(layers: tuple[types.Layer, ...], width: int) -> int:
        nonlocal largest
        for layer in layers:
            if layer.kind == "dense":
                largest, width = max(largest, width * layer.size), layer.size
        return width

    if "conv" not in kinds:
        ways = walking.Ways(through, lambda layer: layer.size, sum, max)
        walking.outputs(alone, math.prod(spec.observation.shape), ways)
    return largest <= LARGEST


def forward(
    spec: types.NetworkSpec, params: types.Params, output: str = "policy"
) -> Callable[[np.ndarray], np.ndarray]:
    """A head's output as a function of one observation.

    Args:
        spec: A network for which `fits` holds.
        params: NumPy arrays; *views* of memory that changes are followed, so a flat vector can be refilled in place.
        output: The head.

    Returns:
        ``obs [*shape] -> [outputs]``. The array returned is overwritten by the next call.
    """
    engine = arrays.make(compact.Compact(compact.part(spec, (output,)), params), 1)
    run, out = engine.run, engine.outputs[output][0]

    def forward(obs: np.ndarray) -> np.ndarray:
        run(obs)
        return out

    return forward


def decides(about: types.About) -> bool:
    """Whether an agent's decisions can be made here."""
    return about.acting is not None and about.acting.decider is not None


def deciding(about: types.About, state: Any, generator: np.random.Generator) -> Callable[[Any], tuple[Any, Any]] | None:
    """One decision of an agent, network and all; None where it is not made here (`decides`).

    Args:
        about: The agent's.
        state: Its learner's as NumPy arrays, which are followed as in `forward`.
        generator: Its own random numbers.

    Returns:
        ``obs [*shape] -> (action, extras)``.
    """
    acting = about.acting
    if acting is None or acting.decider is None:
        return None
    run = forward(about.networks[acting.network].spec, state.params, acting.heads[0])
    decide = acting.decider(state, generator)
    return lambda obs: decide(run(obs))


class Sampler:
    """Draws actions from a policy head's output; random numbers come in blocks, each used once.

    Vectors are as they were drawn: who asks stretches them to the environment's box (`distributions.Distribution.box`).
    """

    def __init__(self, head: str, generator: np.random.Generator, sizes: tuple[int, ...] = ()) -> None:
        self._generator, self._sizes = generator, sizes
        self._spans = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
        kinds: dict[str, Callable[..., Decision]] = {
            "categorical": self._categorical,
            "multi_categorical": self._multi_categorical if len(sizes) <= MANY else self._many_categorical,
            "gaussian": self._gaussian,
            "stretched": self._gaussian,
            "greedy": self._greedy,
        }
        self.decide = kinds[head]
        self._noise: np.ndarray = np.empty((0, 0))
        self._drawn: list[float] = []  # a list: to take a number out of it is quicker than out of an array
        self._at = 0

    def _next(self, size: int) -> np.ndarray:
        if self._at == len(self._noise):
            self._noise = self._generator.standard_normal((NOISE, size), np.float32)
            self._at = 0
        self._at += 1
        return self._noise[self._at - 1]

    def _uniform(self) -> float:
        at = self._at
        if at == len(self._drawn):
            self._drawn, at = self._generator.random(NOISE).tolist(), 0
        self._at = at + 1
        return self._drawn[at]

    def _categorical(self, logits: np.ndarray) -> Decision:
        return self._choice(logits.tolist())

    def _multi_categorical(self, logits: np.ndarray) -> Decision:
        scores = logits.tolist()
        each = [self._choice(scores[span]) for span in self._spans]
        return Decision(np.array([one.action for one in each], np.int32), sum(one.log_prob for one in each))

    def _many_categorical(self, logits: np.ndarray) -> Decision:
        drawn = many.multi_categorical(self._sizes, logits[None], 1.0, self._generator)
        return Decision(drawn.action[0], float(drawn.log_prob[0]))

    def _choice(self, scores: list[float]) -> Decision:
        """A handful of numbers: Python floats beat array calls."""
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = sum(weights)
        left = self._uniform() * total
        action = 0
        last = len(weights) - 1
        while action < last and left >= weights[action]:
            left -= weights[action]
            action += 1
        return Decision(action, scores[action] - top - math.log(total))

    def _greedy(self, values: np.ndarray, epsilon: float) -> Decision:
        """As `distributions.epsilon_greedy`; the probability is not kept."""
        chance = self._uniform()
        if chance < epsilon:
            return Decision(int(chance / epsilon * len(values)), math.nan)
        scores = values.tolist()
        return Decision(scores.index(max(scores)), math.nan)

    def _gaussian(self, output: np.ndarray) -> Decision:
        size = len(output) // 2
        mean, raw = output[:size], output[size:]
        variance = np.logaddexp(raw, 0.0) + 1e-4  # distributions.MINIMUM_VARIANCE
        noise = self._next(size)
        action = (mean + np.sqrt(variance) * noise).astype(np.float32)
        log_prob = -0.5 * float(np.sum(noise * noise + np.log(variance) + math.log(2.0 * math.pi)))
        return Decision(action, log_prob)
