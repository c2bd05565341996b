"""Slower simulators, as wrappers by name: every step sleeps, so that the share of inference becomes smaller."""

from __future__ import annotations

import time
from typing import Any

import gymnasium


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose steps take a while, during which the core is free."""

    def __init__(self, env: gymnasium.Env[Any, Any], seconds: float) -> None:
        super().__init__(env)
        self._seconds = seconds

    def step(self, action: Any) -> Any:
        """Sleep, then step."""
        time.sleep(self._seconds)
        return super().step(action)


def by_2ms(env: gymnasium.Env[Any, Any]) -> Slow:
    """Two milliseconds a step."""
    return Slow(env, 0.002)


def by_10ms(env: gymnasium.Env[Any, Any]) -> Slow:
    """Ten."""
    return Slow(env, 0.010)
