"""MAP propagation as its author runs it: one network pair, one environment, one step after the other in NumPy, float64.

Re-created from the formulas and the order of steps of Chung 2021, "MAP Propagation Algorithm: Faster Learning with a
Team of Reinforcement Learning Agents" (arXiv:2010.07893), final version: no auto-reset, so each episode costs one
iteration more; a time limit teaches nothing; a δ of 0 still makes a step of Adam; rates move with iterations; the bias
correction ends at step 1,000; the first MAP step uses the means from before the update; softmax arguments have a floor.

It is what `map_propagation.py` measures Shoal against, and an oracle for tests. Vectors have no batch axis, which makes
it a little faster than the original.

    python benchmarks/_map_numpy.py [EPISODES]       learns CartPole-v1 and prints the average return
    python benchmarks/_map_numpy.py --speed STEPS    prints environment steps a second
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
FLOOR = 30.0  # softmax arguments lie no further below the largest
UNBIASED = 1_000  # from this step of Adam on its moments are taken as they are


class Team(NamedTuple):
    """The numbers of one network."""

    variances: tuple[float, ...]  # σ², one a layer
    start: tuple[float, ...]  # learning rates at the first iteration, one a layer
    end: tuple[float, ...]  # and from iteration `end_t` on


class Settings(NamedTuple):
    """The author's numbers for one task; those here are for CartPole-v1."""

    actor: Team = Team((0.03, 0.1, 0.1), (1e-2, 1e-5, 1e-6), (1e-3, 1e-6, 1e-8))
    critic: Team = Team((0.03, 0.1, 0.1), (2e-2, 2e-5, 2e-6), (2e-3, 2e-6, 2e-7))
    hidden: tuple[int, ...] = (64, 32)
    temperature: float = 2.0
    trace: float = 0.95  # λ
    discount: float = 0.98  # γ
    end_t: int = 50_000  # iterations
    steps: int = 20  # of the MAP phase, N
    reward_limit: float = 0.0  # rewards are clipped to ± this before learning; 0: never


class Iteration(NamedTuple):
    """What one iteration did, for tests and for counting."""

    delta: float | None  # None: the first one of the run, which learns nothing
    share: float  # of the way from the first rates to the last
    cleared: bool  # traces were cleared
    reward: float  # of the environment's step, unclipped; 0 where it only reset
    ended: bool  # that step ended an episode
    reset: bool  # that step only reset


def softplus(x: Array) -> Array:
    """log(1 + exp x)."""
    return np.logaddexp(0.0, x)


def sigmoid(x: Array) -> Array:
    """The derivative of softplus."""
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: Array) -> Array:
    """Probabilities of potentials that were divided by the temperature already."""
    powers = np.exp(np.maximum(x - x.max(), -FLOOR))
    return powers / powers.sum()


class Adam:
    """One tensor's step of Adam (Kingma and Ba 2015) towards larger values."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._first, self._second, self._steps = np.zeros(shape), np.zeros(shape), 0

    def step(self, ascent: Array, rate: float) -> Array:
        """What to add to the tensor."""
        self._steps += 1
        self._first = 0.9 * self._first + 0.1 * ascent
        self._second = 0.999 * self._second + 0.001 * ascent * ascent
        first, second = self._first, self._second
        if self._steps < UNBIASED:
            first = first / (1 - 0.9**self._steps)
            second = second / (1 - 0.999**self._steps)
        return rate * first / (np.sqrt(second) + 1e-9)


class Network:
    """A team of units: hidden ones Gaussian around softplus, the output a choice (softmax) or Gaussian (linear).

    Layers are counted from 0; layer l gets `inputs` if l = 0, else the values of layer l - 1.
    """

    def __init__(self, sizes: Sequence[int], team: Team, settings: Settings, *, choice: bool, rng: Any) -> None:
        """Args: `sizes` from inputs to outputs; `rng` needs ``uniform``, ``standard_normal`` and ``random``."""
        self.team, self.settings, self.choice, self._rng = team, settings, choice, rng
        pairs = list(itertools.pairwise(sizes))
        bounds = [np.sqrt(6.0 / (inputs + outputs)) for inputs, outputs in pairs]
        self.weights = [
            rng.uniform(-bound, bound, pair) for bound, pair in zip(bounds, pairs, strict=True)
        ]  # [in, out]
        self.biases = [np.zeros(outputs) for _, outputs in pairs]
        self._adam = [(Adam(w.shape), Adam(b.shape)) for w, b in zip(self.weights, self.biases, strict=True)]
        self.clear()
        self.inputs = np.zeros(sizes[0])
        self.values: list[Array] = [np.zeros(outputs) for _, outputs in pairs]  # h of hidden layers, a of the last
        self.potentials = list(self.values)
        self.means = list(self.values)  # of a choice: the probabilities

    def forward(self, inputs: Array) -> Array:
        """Draw every layer from the one below; returns the output (one-hot for a choice)."""
        self.inputs = inputs
        for layer in range(len(self.weights)):
            self._mean(layer)
            mean = self.means[layer]
            if self.choice and layer == len(self.weights) - 1:
                picked = min(int((self._rng.random() >= np.cumsum(mean)).sum()), len(mean) - 1)
                self.values[layer] = np.eye(len(mean))[picked]
            else:
                noise = self._rng.standard_normal(len(mean))
                self.values[layer] = mean + np.sqrt(self.team.variances[layer]) * noise
        return self.values[-1]

    def _mean(self, layer: int) -> None:
        below = self.values[layer - 1] if layer else self.inputs
        potential = below @ self.weights[layer] + self.biases[layer]
        self.potentials[layer] = potential
        if layer < len(self.weights) - 1:
            self.means[layer] = softplus(potential)
        else:
            self.means[layer] = softmax(potential / self.settings.temperature) if self.choice else potential

    def error(self, layer: int) -> Array:
        """The e of a layer: the derivative of its log-probability by its potential."""
        gap = self.values[layer] - self.means[layer]
        if layer < len(self.weights) - 1:
            return gap * sigmoid(self.potentials[layer]) / self.team.variances[layer]
        return gap / (self.settings.temperature if self.choice else self.team.variances[layer])

    def settle(self) -> None:
        """The MAP phase: all hidden layers move at once (Jacobi), then every mean follows; the output stays."""
        hidden = range(len(self.weights) - 1)
        for _ in range(self.settings.steps):
            errors = [self.error(layer) for layer in range(len(self.weights))]
            moves = []
            for layer in hidden:
                variance = self.team.variances[layer]
                below = (self.means[layer] - self.values[layer]) / variance
                above = errors[layer + 1] @ self.weights[layer + 1].T
                moves.append(0.5 * variance * (below + above))
            for layer, move in zip(hidden, moves, strict=True):
                self.values[layer] = self.values[layer] + move
            for layer in range(len(self.weights)):
                self._mean(layer)

    def clear(self) -> None:
        """Forget the eligibility traces."""
        self.traces = [(np.zeros_like(w), np.zeros_like(b)) for w, b in zip(self.weights, self.biases, strict=True)]

    def remember(self, gate: float = 1.0) -> None:
        """Traces: z ← λγ z + gate e, for every weight (e times its input) and bias."""
        decay = self.settings.trace * self.settings.discount
        for layer, (weight, bias) in enumerate(self.traces):
            error = gate * self.error(layer)
            below = self.values[layer - 1] if layer else self.inputs
            self.traces[layer] = (decay * weight + np.outer(below, error), decay * bias + error)

    def learn(self, delta: float, share: float) -> None:
        """A step of Adam along δ z; `share` of the way from the first rates to the last."""
        for layer, ((weight, bias), (of_weight, of_bias)) in enumerate(zip(self.traces, self._adam, strict=True)):
            rate = self.team.start[layer] + share * (self.team.end[layer] - self.team.start[layer])
            self.weights[layer] = self.weights[layer] + of_weight.step(delta * weight, rate)
            self.biases[layer] = self.biases[layer] + of_bias.step(delta * bias, rate)


def loop(env: Any, actor: Network, critic: Network, settings: Settings) -> Iterator[Iteration]:
    """The author's loop, for ever.

    Args:
        env: Has Gymnasium's ``reset`` and ``step``; its actions are choices.
        actor: Its output is a choice.
        critic: Its output is one number; its value is the mean given the sampled hidden units.
        settings: The numbers of the task.
    """
    state, _ = env.reset()
    reward, ended, limited, ended_before, value_before = 0.0, False, False, False, 0.0
    at = 0
    while True:
        action = actor.forward(np.asarray(state, np.float64))
        answer = critic.forward(np.asarray(state, np.float64))
        value = float(critic.means[-1][0])
        delta, share = None, min(at / settings.end_t, 1.0)
        if at:
            limit = settings.reward_limit
            clipped = min(max(reward, -limit), limit) if limit else reward
            delta = clipped + settings.discount * value * (not ended) - value_before
            delta = 0.0 if ended_before or limited else delta
            critic.learn(delta, share)
            actor.learn(delta, share)
        if ended_before:
            critic.clear()
        critic.settle()
        critic.remember(gate=1.0 / float(answer[0] - critic.means[-1][0]))
        if ended_before:
            actor.clear()
        actor.settle()
        actor.remember()
        cleared, reset = ended_before, ended
        value_before, ended_before = value, ended
        if ended:  # the action is ignored: this call only resets
            state, _ = env.reset()
            reward, ended, limited = 0.0, False, False
        else:
            state, reward, terminated, truncated, _ = env.step(int(action.argmax()))
            ended, limited = terminated or truncated, truncated and not terminated
        yield Iteration(delta, share, cleared, float(reward), ended, reset)
        at += 1


def pair(inputs: int, choices: int, settings: Settings, rng: Any) -> tuple[Network, Network]:
    """Actor and critic with fresh weights."""
    actor = Network((inputs, *settings.hidden, choices), settings.actor, settings, choice=True, rng=rng)
    return actor, Network((inputs, *settings.hidden, 1), settings.critic, settings, choice=False, rng=rng)


def cartpole(seed: int, settings: Settings | None = None) -> Iterator[Iteration]:
    """The loop on Gymnasium's CartPole-v1, as the author ran it on gym's."""
    import gymnasium

    settings = settings or Settings()
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=seed)  # later resets go on from there
    actor, critic = pair(4, 2, settings, np.random.default_rng(seed))
    return loop(env, actor, critic, settings)


def returns(iterations: Iterator[Iteration], episodes: int) -> list[float]:
    """The returns of the first episodes."""
    found: list[float] = []
    total = 0.0
    while len(found) < episodes:
        step = next(iterations)
        total += step.reward
        if step.ended:
            found.append(total)
            total = 0.0
    return found


def speed(seed: int, steps: int) -> float:
    """Environment steps a second, learning included; the iterations that only reset count as time, not as steps."""
    iterations, taken = cartpole(seed), 0
    began = time.perf_counter()
    while taken < steps:
        taken += not next(iterations).reset
    return taken / (time.perf_counter() - began)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--speed"]:
        print(speed(0, int(sys.argv[2])))
        sys.exit()
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    started = time.perf_counter()
    got = returns(cartpole(0), wanted)
    spent = time.perf_counter() - started
    print(f"{wanted} episodes: average return {np.mean(got):.1f}, last 100 {np.mean(got[-100:]):.1f}, {spent:.0f} s")
