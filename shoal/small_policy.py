"""One decision in NumPy, for networks so small that a call into XLA costs more than their arithmetic.

A jitted call costs 15 to 20 µs a step whatever the network; two matrix-vector products of 64 units cost 5 (measured,
see docs/decisions/0004). Actors that step one Python environment at a time therefore evaluate small dense networks
here, from the same `types.NetworkSpec` and the same parameters; tests hold it to `networks.apply`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shoal import types

LARGEST = 128 * 128  # weights of one dense layer; beyond, XLA's products win
NOISE = 4096  # decisions for which random numbers are drawn at once


class Decision(NamedTuple):
    """What acting gives; plain NumPy."""

    action: Any  # int, or [d] f32
    log_prob: float


def fits(spec: types.NetworkSpec, output: str = "policy") -> bool:
    """Whether every layer between the observation and the head `output` is small and dense."""
    trunk, head = spec.heads[output]
    width = math.prod(spec.observation.shape)
    for layer in (*spec.trunks[trunk], *head):
        if layer.kind not in ("dense", "tanh", "relu", "flatten"):
            return False
        if layer.kind == "dense":
            if width * layer.size > LARGEST:
                return False
            width = layer.size
    return True


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
    trunk, head = spec.heads[output]
    steps: list[tuple[Any, ...]] = []
    for layer in (*spec.trunks[trunk], *head):
        if layer.kind == "dense":
            weights = params[layer.name]
            steps.append((weights["kernel"], weights["bias"], np.empty(layer.size, np.float32), None))
        elif layer.kind in ("tanh", "relu"):
            kernel, bias, out, _ = steps.pop()
            steps.append((kernel, bias, out, layer.kind))
    dot, add, tanh, maximum = np.dot, np.add, np.tanh, np.maximum

    def run(obs: np.ndarray) -> np.ndarray:
        x = obs if obs.ndim == 1 else obs.reshape(-1)
        for kernel, bias, out, activation in steps:
            dot(x, kernel, out)
            add(out, bias, out)
            if activation == "tanh":
                tanh(out, out)
            elif activation == "relu":
                maximum(out, 0.0, out=out)
            x = out
        return x

    return run


class Sampler:
    """Draws actions from a policy head's output; random numbers come in blocks, each used once."""

    def __init__(self, head: str, generator: np.random.Generator) -> None:
        self._generator = generator
        kinds: dict[str, Callable[..., Decision]] = {
            "categorical": self._categorical,
            "gaussian": self._gaussian,
            "greedy": self._greedy,
        }
        self.decide = kinds[head]
        self._noise: np.ndarray = np.empty((0, 0))
        self._at = 0

    def _next(self, size: int) -> np.ndarray:
        if self._at == len(self._noise):
            self._noise = self._generator.standard_normal((NOISE, size), np.float32)
            self._at = 0
        self._at += 1
        return self._noise[self._at - 1]

    def _uniform(self) -> float:
        if self._at == len(self._noise):
            self._noise = self._generator.random(NOISE)
            self._at = 0
        self._at += 1
        return float(self._noise[self._at - 1])

    def _categorical(self, logits: np.ndarray) -> Decision:
        scores = logits.tolist()  # a handful of numbers: Python floats beat array calls
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
