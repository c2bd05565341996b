"""Which corrector serves which learning rule: both declare it, and what does not fit is refused at the start."""

from __future__ import annotations

from typing import Any

from shoal.core import errors, registry, types

VALUES = {"v": "values of states", "q": "values of actions"}  # `types.Corrector.of`, in words
NONE = "none"  # the corrector that every rule may be given


def build(name: str, config: Any = None) -> types.Corrector:
    """A corrector.

    Args:
        name: Its name.
        config: Its settings; None: as they come.

    Raises:
        Refused: No such corrector, or its settings contradict each other.
    """
    module = registry.load("corrector", name)
    made: types.Corrector = module.build(module.Config() if config is None else config)
    return made


def check(name: str, config: Any, algorithm: str, rule: types.Traits, spec: types.EnvSpec) -> None:
    """Refuse a corrector that cannot serve a rule.

    Args:
        name: The corrector's.
        config: Its settings.
        algorithm: The rule's name.
        rule: What that declares.
        spec: The environment.

    Raises:
        Refused: Says why, and which correctors fit.
    """
    made = build(name, config)
    if name == NONE:
        return
    if not rule.corrects:
        memory = "it learns from a replay memory of transitions out of their order" if rule.capacity else ""
        why = rule.uncorrected or memory
        raise errors.Refused(
            f"{algorithm} has no use for a corrector{f' ({why})' if why else ''}, but --corrector {name} was given; "
            "drop it"
        )
    if reason := unsuited(made, algorithm, rule, spec):
        fitting = ", ".join(suited(algorithm, rule, spec))
        raise errors.Refused(f"--corrector {name} {reason}; correctors that fit: {fitting}")


def suited(algorithm: str, rule: types.Traits, spec: types.EnvSpec) -> list[str]:
    """The correctors that can serve a rule in an environment, with the settings that they come with."""
    others = [name for name in registry.names("corrector") if name != NONE]
    return [NONE, *(name for name in others if not unsuited(build(name), algorithm, rule, spec))]


def unsuited(made: types.Corrector, algorithm: str, rule: types.Traits, spec: types.EnvSpec) -> str:
    """Why a corrector cannot serve a rule that learns through one; "" if it can."""
    if made.of != rule.corrects:
        return f"corrects {VALUES[made.of]}, but {algorithm} learns {VALUES[rule.corrects]}"
    if made.needs_mu and not rule.tells_mu:
        return f"needs the probability of each action under the policy that acted, which {algorithm} does not tell"
    if not made.densities and not spec.action.discrete:
        return f"compares probabilities of choices, but the actions of {spec.id} are vectors, which have densities"
    return ""
