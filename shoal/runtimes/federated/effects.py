"""Which settings change anything with which exchange, as data: one that would be passed over in silence is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shoal.runtimes.federated import Config


class Where(NamedTuple):
    """What a setting needs of others to change anything."""

    exchange: tuple[str, ...]
    asynchronous: bool | None = None  # None: either
    server: str | None = None  # None: whichever
    episodes: tuple[str, ...] = ()  # further exchanges, where a segment is an episode


SENT, WEIGHTS, ANSWERS = ("delta",), ("gradient", "delta"), ("gradient", "delta", "outputs")
DECISIONS = ("outputs",)
WHERE: dict[str, Where] = {
    "local_updates": Where(WEIGHTS),
    "asynchronous": Where(WEIGHTS),
    "max_lag": Where(WEIGHTS, asynchronous=True),
    "buffer": Where(WEIGHTS, asynchronous=True),
    "alpha": Where(WEIGHTS, asynchronous=True),
    "eta": Where(SENT, asynchronous=False, server="sgd"),
    "server": Where(SENT),
    "server_rate": Where(SENT, server="adam"),
    "mu": Where(SENT),
    "reset_moments": Where(SENT),
    "aggregator": Where(ANSWERS),
    "hostile": Where(ANSWERS),
    "max_norm": Where(ANSWERS),
    "participation": Where(ANSWERS),
    "quorum": Where(ANSWERS),
    "deadline": Where(ANSWERS),
    "paces": Where(ANSWERS),
    "attack": Where(ANSWERS),
    "join": Where(ANSWERS),
    "public": Where(DECISIONS),
    "public_from": Where(DECISIONS),
    "distil_every": Where(DECISIONS),
    "distil_steps": Where(DECISIONS),
    "spread": Where(DECISIONS, episodes=("none",)),  # alone as well: what owners who agree are held against
}


def idle(config: Config) -> dict[str, str]:
    """The settings that change nothing as the others are: name -> which other is in the way, and what it would need.

    Args:
        config: Of the runtime.
    """
    return {name: why for name, where in WHERE.items() if (why := _why(config, where))}


def spreads(config: Config) -> bool:
    """Whether parties that no file names have networks of their own.

    Args:
        config: Of the runtime.
    """
    return config.spread and not _why(config, WHERE["spread"])


def _why(config: Config, where: Where) -> str:
    further = where.episodes if config.segment == "episode" else ()
    if config.exchange not in where.exchange + further:
        return f"runtime.exchange={config.exchange}; use --runtime.exchange {' or '.join(where.exchange)}"
    if where.asynchronous is not None and config.asynchronous != where.asynchronous:
        option = "--runtime.asynchronous" if where.asynchronous else "--runtime.no-asynchronous"
        return f"runtime.asynchronous={str(config.asynchronous).lower()}; use {option}"
    if where.server is not None and config.server != where.server:
        return f"runtime.server={config.server}; use --runtime.server {where.server}"
    return ""
