"""Several simulators of one worker, stepped in turn, with one batched decision for all of them at every step.

A jitted decision costs a call and a pass over the weights, whether for one observation or for a few. Every stream
keeps what is its own: its seed, its random numbers, its recurrent state, and the segment it fills.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from etils import epy

from shoal.core import types
from shoal.runtimes.experience import segments

with epy.lazy_imports():
    import jax


class _Course:
    """What one stream has seen of the segment under way, as far as it is written at its end."""

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.discounts: list[float] = []
        self.cuts: list[bool] = []
        self.extras: list[tuple[Any, ...]] = []
        self.finished: list[segments.Finished] = []


class Together:
    """Whole segments of ``G`` streams; padded ones end at different steps, and are not played together."""

    def __init__(self, programs: segments.Programs, streams: list[segments.HostSegments]) -> None:
        """Take charge of streams that have just been opened, whose networks decide in a jitted call."""
        self._streams, self._act = streams, programs.act_all
        self._first = programs.parts.agent.about.carry
        self._carry = jax.tree.map(lambda leaf: np.stack([leaf] * len(streams)), self._first)  # [G, ...]

    def _decide(self, policy: types.Policy | None) -> tuple[np.ndarray, list[np.ndarray]]:
        """Actions ``[G, ...]``, and what is remembered of them, ``[G, ...]`` each."""
        for stream in self._streams:
            stream.key[2] += 1
        seen = np.stack([stream.obs for stream in self._streams])
        keys = np.stack([stream.key for stream in self._streams])
        action, extras, self._carry = self._act(policy, self._carry, seen, keys)
        return np.asarray(action), [np.asarray(leaf) for leaf in extras]

    def collect(self, policy: types.Policy | None) -> list[segments.Segment]:
        """Act ``T`` steps in each; the seconds of both kinds are divided among them evenly."""
        clock, count = time.perf_counter, len(self._streams)
        courses = [_Course() for _ in self._streams]
        for i, stream in enumerate(self._streams):
            stream.enter(jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), self._carry))
        environment, started = 0.0, clock()
        for t in range(self._streams[0].length):
            actions, extras = self._decide(policy)
            before, ended = clock(), []
            for i, (stream, course) in enumerate(zip(self._streams, courses, strict=True)):
                course.extras.append(tuple(leaf[i] for leaf in extras))
                if self._step(stream, course, t, actions[i]):
                    ended.append(i)
            environment += clock() - before
            if ended:
                self._begin_anew(ended)
        for stream, course in zip(self._streams, courses, strict=True):
            stream.leave(course.rewards, course.discounts, course.cuts, course.extras, course.finished)
        inference = clock() - started - environment
        return [
            segments.Segment((), course.finished, len(course.rewards), environment / count, inference / count, unfit)
            for course, unfit in ((c, s.unfit()) for c, s in zip(courses, self._streams, strict=True))
        ]

    @staticmethod
    def _step(stream: segments.HostSegments, course: _Course, t: int, action: Any) -> bool:
        """Act once in one of them; whether its episode ended."""
        reward, discount, truncated, finished = stream.step(t, action)
        course.rewards.append(reward)
        course.discounts.append(discount)
        course.cuts.append(truncated)
        if finished:
            course.finished.append(finished)
        return finished is not None

    def _begin_anew(self, ended: list[int]) -> None:
        self._carry = jax.tree.map(np.array, self._carry)
        for i in ended:
            jax.tree.map(lambda room, leaf, i=i: room.__setitem__(i, leaf), self._carry, self._first)

    def rehearse(self, policy: types.Policy | None) -> types.Tree:
        """See `segments.Segments`; a replay does not rehearse, so nothing may have moved."""
        carry = self._carry
        for _ in range(2):  # the recurrent state comes from the host first, then from the call before
            self._decide(policy)
            for stream in self._streams:
                stream.key[2] -= 1
        self._carry = carry
        return ()
