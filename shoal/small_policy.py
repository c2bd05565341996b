"""One decision in NumPy, for networks whose single decision costs XLA more than their arithmetic.

A jitted call costs 15 to 20 µs a step whatever the network; two matrix-vector products of 64 units cost 5, and the
convolutions of a single picture are products as well (measured, see docs/decisions/0004). Actors that step one Python
environment at a time therefore evaluate such networks here, from the same `types.NetworkSpec` and the same parameters;
tests hold it to `networks.apply`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal import types

LARGEST = 128 * 128  # weights of one dense layer where there are no convolutions; beyond, XLA's products win
NOISE = 4096  # decisions for which random numbers are drawn at once


class Decision(NamedTuple):
    """What acting gives; plain NumPy."""

    action: Any  # int, or [d] f32
    log_prob: float


def fits(spec: types.NetworkSpec, output: str = "policy") -> bool:
    """Whether every layer between the observation and the head `output` is one of these: convolutions, small dense."""
    layers = _layers(spec, output)
    if any(layer.kind not in ("scale", "conv", "dense", "tanh", "relu", "flatten") for layer in layers):
        return False
    if any(layer.kind == "conv" for layer in layers):
        return True
    width = math.prod(spec.observation.shape)
    for layer in layers:
        if layer.kind == "dense":
            if width * layer.size > LARGEST:
                return False
            width = layer.size
    return True


def _layers(spec: types.NetworkSpec, output: str) -> tuple[types.Layer, ...]:
    trunk, head = spec.heads[output]
    return (*spec.trunks[trunk], *head)


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
    layers = _layers(spec, output)
    if any(layer.kind in ("scale", "conv") for layer in layers):
        return _of_pictures(layers, params, spec.observation.shape)
    steps: list[tuple[Any, ...]] = []
    for layer in layers:
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


def _of_pictures(
    layers: Sequence[types.Layer], params: types.Params, shape: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    """The same for pictures: every step works on memory of its own, so the steps are listed once, arguments and all.

    A convolution is a product of what lies under its kernel at each place, a row each, with the kernel.
    """
    x = np.empty(shape, np.float32)
    factor = np.float32(1.0 / 255.0 if layers[0].kind == "scale" else 1.0)
    enter = functools.partial(np.multiply, factor, out=x)
    steps: list[Callable[[], Any]] = []
    for layer in layers:
        if layer.kind == "conv":
            side, stride, weights = layer.kernel, layer.stride, params[layer.name]
            under = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::stride, ::stride]
            under = under.transpose(0, 1, 3, 4, 2)  # [rows, columns, side, side, channels]
            patches = np.empty(under.shape, np.float32)
            flat = patches.reshape(math.prod(under.shape[:2]), -1)
            x = np.empty((*under.shape[:2], layer.size), np.float32)
            steps.append(functools.partial(np.copyto, patches, under))
            steps += _product(
                flat, weights["kernel"].reshape(-1, layer.size), weights["bias"], x.reshape(len(flat), -1)
            )
        elif layer.kind == "dense":
            weights, before = params[layer.name], x.reshape(-1)
            x = np.empty(layer.size, np.float32)
            steps += _product(before, weights["kernel"], weights["bias"], x)
        elif layer.kind == "tanh":
            steps.append(functools.partial(np.tanh, x, x))
        elif layer.kind == "relu":
            steps.append(functools.partial(np.maximum, x, 0.0, out=x))

    def run(obs: np.ndarray) -> np.ndarray:
        enter(obs)
        for step in steps:
            step()
        return x

    return run


def _product(rows: np.ndarray, kernel: np.ndarray, bias: np.ndarray, out: np.ndarray) -> list[Callable[[], Any]]:
    return [functools.partial(np.dot, rows, kernel, out), functools.partial(np.add, out, bias, out)]


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
