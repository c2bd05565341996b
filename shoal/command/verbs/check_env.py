"""`shoal check-env ID`: what an agent will see of an environment, and whether it keeps its promises."""

from __future__ import annotations

import dataclasses

from etils import epy

from shoal import environments
from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors, options

with epy.lazy_imports():
    import tyro

    from shoal.environments import _check


@dataclasses.dataclass(frozen=True)
class CheckEnvOptions:
    """What an agent will see of an environment, and whether it keeps its promises."""

    id: tyro.conf.Positional[str]
    """Environment id."""
    steps: int = 2000
    """Random actions to take."""
    environment: environments.Config = dataclasses.field(default=environments.Config())
    """How it is shown to the agent."""
    json: bool = False
    """Print the findings as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``check-env``.

    Returns:
        The exit code: 0, 2 where it breaks a promise.

    Raises:
        Refused: No such environment, or a wrong value.
    """
    env_id = arguments.peek(typed)
    config = environments.config_class(env_id)() if env_id else environments.Config()
    fields = [("environment", type(config), dataclasses.field(default=config))]  # the adapter's own settings
    made = dataclasses.make_dataclass("CheckEnvOptions", fields, bases=(CheckEnvOptions,), frozen=True)
    made.__doc__ = CheckEnvOptions.__doc__
    given = arguments.parse(made, "check-env", typed)
    options.check(given.environment, "environment")
    if given.steps < 1:
        raise errors.Refused(f"--steps {given.steps}, but at least 1 is needed")
    found = _check.check(given.id, given.environment, given.steps)
    if given.json:
        output.print_json(found.to_json())
    else:
        print("\n".join(_check.lines(found)))
    return 0 if found.ok else 2
