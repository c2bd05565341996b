"""MAP propagation in NumPy loops, float64, one number after the other: written from the formulas, not from the code.

`Team` holds an actor and a critic. `clean` and `paper` follow one environment step by step and write down every
event: (δ or None, learned, traces cleared, progress of the rates).
"""

from __future__ import annotations

import numpy as np


def softplus(x):
    return np.logaddexp(x, 0.0)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


class Net:
    """Weights, moments and traces of one network."""

    def __init__(self, weights, biases, variance, rates, rates_end, temperature=None):
        self.W = [np.array(w, float) for w in weights]
        self.b = [np.array(b, float) for b in biases]
        self.var, self.start, self.end, self.temp = variance, rates, rates_end, temperature
        self.moments = [[[np.zeros_like(x), np.zeros_like(x)] for x in (w, b)] for w, b in self.layers()]
        self.clear()

    def layers(self):
        return list(zip(self.W, self.b, strict=True))

    def clear(self):
        self.z = [[np.zeros_like(w), np.zeros_like(b)] for w, b in self.layers()]

    def output(self, pot, floor=None):
        if self.temp is None:
            return pot
        scaled = pot / self.temp
        scaled = scaled - scaled.max()
        if floor is not None:
            scaled = np.maximum(scaled, -floor)
        p = np.exp(scaled)
        return p / p.sum()

    def sweep(self, x, hidden, floor=None):
        """Potentials and means of every layer."""
        below = [x, *hidden]
        pots = [below[at] @ w + b for at, (w, b) in enumerate(self.layers())]
        return pots, [softplus(pot) for pot in pots[:-1]] + [self.output(pots[-1], floor)]

    def sample(self, x, noise):
        hidden = []
        for at, (w, b) in enumerate(self.layers()[:-1]):
            x = softplus(x @ w + b) + np.sqrt(self.var[at]) * noise[at]
            hidden.append(x)
        return hidden

    def error(self, pots, means, hidden, a):
        """e of every layer (section 4)."""
        found = [
            (h - mu) * sigmoid(pot) / var
            for h, mu, pot, var in zip(hidden, means[:-1], pots[:-1], self.var, strict=False)
        ]
        return [*found, (a - means[-1]) / (self.temp if self.temp is not None else self.var[-1])]

    def map_phase(self, x, hidden, a, steps, stale=None, floor=None):
        """`steps` Jacobi steps with below and above written out (section 3); hidden values and the last sweep."""
        hidden = [h.copy() for h in hidden]
        pots, means = stale or self.sweep(x, hidden, floor)
        for _ in range(steps):
            moved = []
            for at, h in enumerate(hidden):
                below = (means[at] - h) / self.var[at]
                if at + 1 < len(hidden):
                    up = (hidden[at + 1] - means[at + 1]) * sigmoid(pots[at + 1]) / self.var[at + 1]
                elif self.temp is None:
                    up = (a - means[-1]) / self.var[-1]
                else:
                    up = (a - means[-1]) / self.temp
                moved.append(h + 0.5 * self.var[at] * (below + self.W[at + 1] @ up))
            hidden = moved
            pots, means = self.sweep(x, hidden, floor)
        return hidden, pots, means

    def trace(self, fade, x, hidden, error):
        for at, (below, e) in enumerate(zip([x, *hidden], error, strict=True)):
            self.z[at][0] = fade * self.z[at][0] + np.outer(below, e)
            self.z[at][1] = fade * self.z[at][1] + e

    def adam(self, delta, progress, k, corrected):
        """Ascend δ z; `k` is the number of this step, from 1."""
        for at in range(len(self.W)):
            rate = self.start[at] + min(progress, 1.0) * (self.end[at] - self.start[at])
            for which, place in enumerate((self.W, self.b)):
                g, (m, v) = delta * self.z[at][which], self.moments[at][which]
                m[...] = 0.9 * m + 0.1 * g
                v[...] = 0.999 * v + 0.001 * g * g
                up, down = (m / (1 - 0.9**k), v / (1 - 0.999**k)) if corrected else (m, v)
                place[at] = place[at] + rate * up / (np.sqrt(down) + 1e-9)


class Team:
    """An actor, a critic and the loop's memory."""

    def __init__(self, actor, critic, numbers):
        self.actor, self.critic = actor, critic
        self.gamma, self.lam, self.steps, self.end_t = numbers["gamma"], numbers["lam"], numbers["N"], numbers["end_t"]
        self.guard, self.clip = numbers["guard"], numbers["clip"]
        self.k, self.events = 0, []

    def learn(self, delta, progress, corrected=True):
        self.k += 1
        self.actor.adam(delta, progress, self.k, corrected)
        self.critic.adam(delta, progress, self.k, corrected)

    def gated(self, pots, means, hidden, a):
        net = self.critic
        apart = float(a[0] - means[-1][0])
        least = self.guard * np.sqrt(net.var[-1])
        if abs(apart) < least:
            apart = -least if apart < 0 else least
        error = net.error(pots, means, hidden, a)
        return [*(e / apart for e in error[:-1]), np.ones(1) / net.var[-1]]

    def traces(self, x, actor_hidden, action, critic_hidden, A, stale=(None, None), floor=None):
        """MAP phases and increments of both networks."""
        fade = self.gamma * self.lam
        hidden, pots, means = self.critic.map_phase(x, critic_hidden, A, self.steps, stale[1])
        self.critic.trace(fade, x, hidden, self.gated(pots, means, hidden, A))
        hidden, pots, means = self.actor.map_phase(x, actor_hidden, action, self.steps, stale[0], floor)
        self.actor.trace(fade, x, hidden, self.actor.error(pots, means, hidden, action))


class Draw:
    """The critic's draw at one observation."""

    def __init__(self, net, x, noise):
        sizes = [w.shape[1] for w in net.W[:-1]]
        cuts = np.cumsum(sizes)
        self.hidden = net.sample(x, np.split(noise[:-1], cuts[:-1]))
        self.value = float((self.hidden[-1] @ net.W[-1] + net.b[-1])[0])
        self.A = np.array([self.value + np.sqrt(net.var[-1]) * noise[-1]])


class Clean(Team):
    """δ of a step from its own successor, at once."""

    def __init__(self, *given):
        super().__init__(*given)
        self.pending, self.fresh, self.t = None, True, 0

    def step(self, x, hidden, action, outcome, noise):
        """`outcome` = (reward, discount, truncated, next_obs); `noise` [2, units + 1]."""
        reward, discount, truncated, after = outcome
        now = Draw(self.critic, x, noise[0]) if self.fresh else self.pending
        cleared = self.fresh
        if self.fresh:
            self.actor.clear(), self.critic.clear()
        ahead = Draw(self.critic, after, noise[1])
        self.traces(x, hidden, action, now.hidden, now.A)
        delta = np.clip(reward, -self.clip, self.clip) + self.gamma * discount * ahead.value - now.value
        progress = self.t / self.end_t
        self.learn(delta, progress)
        self.events.append((delta, True, cleared, progress))
        self.t += 1
        self.pending, self.fresh = ahead, bool(truncated or discount == 0)


class Paper(Team):
    """The author's loop."""

    FLOOR = 30.0

    def __init__(self, *given):
        super().__init__(*given)
        self.i, self.reward, self.ended, self.truncated, self.ended_before, self.value = (
            0,
            0.0,
            False,
            False,
            False,
            0.0,
        )

    def iterate(self, x, hidden, action, noise):
        draw = Draw(self.critic, x, noise)
        stale = self.actor.sweep(x, hidden, self.FLOOR), self.critic.sweep(x, draw.hidden)
        delta = None
        if self.i:
            reward = np.clip(self.reward, -self.clip, self.clip)
            delta = reward + (0.0 if self.ended else self.gamma * draw.value) - self.value
            if self.ended_before or self.truncated:
                delta = 0.0
            self.learn(delta, self.i / self.end_t, corrected=self.k + 1 < 1000)
        if self.ended_before:
            self.actor.clear(), self.critic.clear()
        self.events.append((delta, self.i > 0, self.ended_before, self.i / self.end_t))
        self.traces(x, hidden, action, draw.hidden, draw.A, stale, self.FLOOR)
        self.value, self.ended_before = draw.value, self.ended
        self.i += 1

    def step(self, x, hidden, action, outcome, noise):
        """`noise` of the critic [units + 1]; True if one more iteration is to come, on the final observation."""
        self.iterate(x, hidden, action, noise)
        self.reward, discount, self.truncated, _ = outcome
        self.ended = bool(self.truncated or discount == 0)
        return self.ended

    def after_end(self, x, hidden, action, noise):
        self.iterate(x, hidden, action, noise)
        self.reward, self.ended, self.truncated = 0.0, False, False
