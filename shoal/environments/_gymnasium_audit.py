"""What Gymnasium's own checker, and an environment's declared spaces, say about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from etils import epy

from shoal import environments

with epy.lazy_imports():
    import gymnasium
    import gymnasium.utils.env_checker


def audit(make: Callable[[], gymnasium.Env], steps: int) -> environments.Audit:
    """Run Gymnasium's checker once, then look for observations outside the declared space.

    Args:
        make: Opens the simulator, without Shoal's adapter.
        steps: How many random actions to take.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        remarks: list[str] = []
        problems = [*_checker(make, remarks), *_containment(make, steps, remarks)]
    remarks = [line(warning.message) for warning in said] + remarks
    return environments.Audit(tuple(problems), tuple(dict.fromkeys(remarks)))  # each once, in order


def closed(env: gymnasium.Env) -> list[str]:
    """Release a simulator; what it raised then, in a line worth knowing: a run tells it and goes on."""
    try:
        env.close()
    except Exception as problem:  # noqa: BLE001 what was done with it is done
        return [f"closing it raised {type(problem).__name__}: {line(problem)}; a run tells that and goes on"]
    return []


def _checker(make: Callable[[], gymnasium.Env], remarks: list[str]) -> list[str]:
    """The first complaint of Gymnasium's checker that it raises; its warnings are left to the caller."""
    env = make()
    try:
        gymnasium.utils.env_checker.check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as problem:
        warnings.warn(f"Gymnasium's checker could not run: {line(problem)}", stacklevel=2)  # a remark: see `audit`
    except Exception as problem:  # noqa: BLE001 whatever the environment raises is the finding
        return [f"Gymnasium's checker: {type(problem).__name__}: {line(problem)}"]
    finally:
        remarks += closed(env)
    return []


def _containment(make: Callable[[], gymnasium.Env], steps: int, remarks: list[str]) -> list[str]:
    """The first observation outside the declared space."""
    env = make()
    env.action_space.seed(0)
    try:
        obs, _ = env.reset(seed=0)
        for step in range(steps):
            if not env.observation_space.contains(obs):
                return [f"the observation of step {step} is outside {line(env.observation_space)}: {line(obs)[:120]}"]
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                obs, _ = env.reset()
    except Exception as problem:  # noqa: BLE001
        return [f"random actions end with {type(problem).__name__}: {line(problem)}"]
    finally:
        remarks += closed(env)
    return []


def line(message: object) -> str:
    """One line, without Gymnasium's colours and level."""
    text = str(message)
    for colour in ("\x1b[33m", "\x1b[31m", "\x1b[0m"):
        text = text.replace(colour, "")
    return " ".join(text.removeprefix("WARN: ").split())
