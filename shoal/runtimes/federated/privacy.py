"""Which promises of privacy go together; what cannot hold is refused before anything begins, both settings named.

Specification of each: `leaving` (clip and noise), `ledger` (epsilon), `masks` (secure sum).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.core import errors

if TYPE_CHECKING:
    from shoal.runtimes.federated import Config

FEW = 20  # owners below which noise on the level of owners is close to the signal
SEES_EACH = ("norm_bound", "median", "trimmed_mean", "krum", "multi_krum", "nearest_mixing")  # rules that must


def check(config: Config) -> None:
    """Refuse settings of privacy that cannot be together.

    Args:
        config: Of the runtime.

    Raises:
        Refused: Names both settings, and what to change.
    """
    for rule in (_noise, _epsilon, _central, _trajectory, _secure_sum, _outputs, _placement):
        rule(config)


def by_trajectory(config: Config) -> bool:
    """Whether the noise hides one trajectory within a party, not all that the party sends."""
    return config.privacy == "local" and config.unit == "trajectory"


def placed(config: Config, where: str) -> None:
    """Refuse what only an axis of parties does.

    Args:
        config: Of the runtime.
        where: Where parties are, e.g. "axis", "turns".

    Raises:
        Refused: It is something else.
    """
    if where != "axis":
        why = f"runtime.placement={where}: only parties on one axis of one program do that; use ones that are alike"
        if config.secure_sum:
            raise _never("runtime.secure_sum", "true", why)
        if by_trajectory(config):
            raise _never("runtime.unit", "trajectory", why)


def aggregator(config: Config) -> str:
    """The rule that "auto" stands for."""
    if config.aggregator != "auto":
        return config.aggregator
    return "nearest_mixing" if config.hostile else "mean"


def warning(config: Config) -> str:
    """What a person must be told of noise on the level of owners among few of them; "": nothing."""
    if config.privacy == "none" or config.unit == "trajectory" or config.parties >= FEW:
        return ""
    return (
        f"{config.parties} owners, fewer than {FEW}: noise on the level of owners is close to the signal; "
        "either the noise drowns what is learned, or epsilon is too large to promise much"
    )


def _never(path: str, given: object, why: str) -> errors.Refused:
    return errors.Refused(f"{path}={given} cannot be with {why}")


def _noise(config: Config) -> None:
    """Noise, its clip, and who adds it."""
    if config.noise > 0.0 and config.clip == 0.0:
        raise _never(
            "runtime.noise", f"{config.noise:g}",
            "runtime.clip=0: nothing bounds what the noise is to hide; set a clip, e.g. --runtime.clip 1",
        )  # fmt: skip
    if config.noise > 0.0 and config.privacy == "none":
        raise _never(
            "runtime.noise", f"{config.noise:g}",
            "runtime.privacy=none: say who adds it, --runtime.privacy local (each party) or central (the server)",
        )  # fmt: skip
    if config.privacy != "none" and config.noise == 0.0:
        raise _never(
            "runtime.privacy", config.privacy,
            "runtime.noise=0: a clip alone protects nothing; set a noise, e.g. --runtime.noise 1 --runtime.clip 1",
        )  # fmt: skip


def _epsilon(config: Config) -> None:
    if config.max_epsilon > 0.0 and config.noise == 0.0:
        raise _never(
            "runtime.max_epsilon", f"{config.max_epsilon:g}",
            "runtime.noise=0: without noise no epsilon holds; set a noise, or leave max_epsilon out",
        )  # fmt: skip
    if config.noise > 0.0 and not 0.0 < config.delta < 1.0:
        raise _never("runtime.delta", f"{config.delta:g}", "runtime.noise: give a delta between 0 and 1, e.g. 1e-5")


def _central(config: Config) -> None:
    """A fixed K, no weights, a sum whose sensitivity is C."""
    if config.privacy != "central":
        return
    if config.asynchronous:
        raise _never(
            "runtime.privacy", "central",
            "runtime.asynchronous=true: staleness weighs updates, and the number of owners in a step must be fixed; "
            "use --runtime.privacy local, or synchronous rounds",
        )  # fmt: skip
    if (rule := aggregator(config)) != "mean":
        raise _never(
            "runtime.privacy", "central",
            f"runtime.aggregator={rule}: only the sum of clipped updates has a sensitivity that is known; "
            "use --runtime.aggregator mean, or --runtime.privacy local",
        )  # fmt: skip
    if config.unit == "trajectory":
        raise _never(
            "runtime.privacy", "central",
            "runtime.unit=trajectory: the server sees owners, not their trajectories; use --runtime.privacy local, or "
            "--runtime.unit party",
        )  # fmt: skip
    if config.exchange == "outputs":
        raise _never("runtime.privacy", "central", "runtime.exchange=outputs: use --runtime.privacy local")


def _trajectory(config: Config) -> None:
    """The update of each stream apart is there only where one gradient is what leaves."""
    if not by_trajectory(config):
        return
    if config.exchange != "gradient":
        raise _never(
            "runtime.unit", "trajectory",
            f"runtime.exchange={config.exchange}: the part of one trajectory in several local updates has no bound; "
            "use --runtime.exchange gradient, or --runtime.unit party",
        )  # fmt: skip
    if config.local_updates != 1:
        raise _never(
            "runtime.unit", "trajectory",
            f"runtime.local_updates={config.local_updates}: every gradient is noised by itself; use "
            "--runtime.local_updates 1, or --runtime.unit party",
        )  # fmt: skip


def _secure_sum(config: Config) -> None:
    """The server sees nothing but the sum, so it cannot do what needs each update."""
    if not config.secure_sum:
        return
    if (rule := aggregator(config)) in SEES_EACH:
        raise _never(
            "runtime.secure_sum", "true",
            f"runtime.aggregator={rule}: that rule must see each update, and the server sees only their sum; "
            "use --runtime.aggregator mean, or no secure sum",
        )  # fmt: skip
    others: tuple[tuple[bool, str], ...] = (
        (config.hostile > 0, f"runtime.hostile={config.hostile}: what a hostile party sends cannot be told apart in a "
         "sum; use --runtime.hostile 0, or no secure sum"),
        (config.max_norm > 0.0, f"runtime.max_norm={config.max_norm:g}: the server cannot take the norm of what it "
         "does not see; parties clip their own, --runtime.clip"),
        (config.asynchronous, "runtime.asynchronous=true: masks cancel only among those who answer in the same round; "
         "use synchronous rounds, or no secure sum"),
        (config.clip == 0.0, "runtime.clip=0: updates are counted in steps of a range, which needs a bound; set one, "
         "e.g. --runtime.clip 1"),
        (config.exchange not in ("gradient", "delta"), f"runtime.exchange={config.exchange}: use gradient or delta"),
        (config.parties < 3, f"runtime.parties={config.parties}: of two, each knows the other's part from the sum; "
         "at least 3 are needed"),
    )  # fmt: skip
    for is_so, why in others:
        if is_so:
            raise _never("runtime.secure_sum", "true", why)


def _placement(config: Config) -> None:
    if config.placement != "auto":
        placed(config, config.placement)


def _outputs(config: Config) -> None:
    if config.exchange == "none" and (config.privacy != "none" or config.clip > 0.0):
        why = "runtime.exchange=none: nothing leaves; leave it out"
        if config.privacy != "none":
            raise _never("runtime.privacy", config.privacy, why)
        raise _never("runtime.clip", f"{config.clip:g}", why)
