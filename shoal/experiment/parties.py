"""Who trains together: owners with an environment each, from a file, from a set of environments, or copies of one.

A parties file is TOML, one table a party:

    [[party]]
    name = "clinic"
    env = "CartPole-v1"
    environment = { time_limit = 200 }
    network = { adapter = 32 }
    optimiser = { learning_rate = 5e-4 }

``environment``, ``network`` and ``optimiser`` are settings as the command line has them, for this party alone; what
they leave out is as the experiment has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epy

from shoal import environments, networks
from shoal.core import errors, options, types
from shoal.formulas import optimise

with epy.lazy_imports():
    import tomllib

    import jax

    from shoal.core import seeds
    from shoal.networks import scopes

if TYPE_CHECKING:
    from shoal.experiment import presets, wiring

TABLE = "party"
KEYS = ("name", "env", "environment", "network", "optimiser")
REMEDY = (
    "Each party is a table [[party]] with name and env, and if need be environment, network and optimiser, tables of "
    "settings."
)
SPREAD: tuple[tuple[tuple[int, ...], str, float], ...] = (  # hidden layers, activation, rate: those of FedHPD
    ((128,), "relu", 1e-3),
    ((32, 32), "relu", 2e-3),
    ((16, 16, 32), "tanh", 4e-3),
    ((8, 8, 8), "relu", 5e-4),
    ((32, 32, 32), "tanh", 3e-3),
    ((8, 8), "relu", 7e-4),
    ((64, 64), "tanh", 1e-3),
    ((16, 16), "relu", 5e-4),
    ((16, 32, 16), "tanh", 5e-4),
    ((32,), "relu", 8e-4),
)  # Kong et al. 2025, arXiv:2502.00870, their CartPole; the eleventh is as the first
SHARING = ("gradient", "delta")  # exchanges of global parameters, whose shapes are then everybody's


class Owner(NamedTuple):
    """What a parties file says of one."""

    name: str
    env: str
    environment: Mapping[str, Any]  # settings of it, by field
    network: Mapping[str, Any]  # settings of his network, by field
    optimiser: Mapping[str, Any] = MappingProxyType({})  # of his optimiser, likewise


class Each(NamedTuple):
    """One party of an experiment."""

    name: str
    made: wiring.Experiment  # as if he trained alone, but for the steps and the runtime, which are all parties'


# ------------------------------------------------------------------------------------------------ the file


def read(path: str | Path) -> tuple[Owner, ...]:
    """The parties of a file; their settings are checked once the other parts are known (`each`).

    Args:
        path: Of the file.

    Raises:
        Refused: It cannot be read, is no parties file, or names a key or an environment that is not there.
    """
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else f"no TOML: {problem}"
        raise errors.Refused(f"the parties file {path} cannot be read ({why}). {REMEDY}") from None
    try:
        return from_json(_tables(given))
    except errors.Refused as problem:
        raise errors.Refused(f"{path}: {problem}") from None


def over(request: presets.Request, given: str | Path | Sequence[Mapping[str, Any]]) -> presets.Request:
    """A request for parties of one's own.

    Args:
        request: What was asked for.
        given: A parties file, or what its tables hold.

    Raises:
        Refused: As `read`; or an environment is asked for besides.
    """
    owners = read(given) if isinstance(given, str | Path) else from_json(given)
    if not owners:
        raise errors.Refused(f"there is no party. {REMEDY}")
    if request.env is not None:
        raise errors.Refused(
            f"--env {request.env} beside a parties file: each party's table names its environment; leave --env out"
        )
    return request._replace(env=owners[0].env, parties=owners)


def from_json(given: Sequence[Any]) -> tuple[Owner, ...]:
    """Parties from plain data, as ``config.json`` has them.

    Raises:
        Refused: A key that is unknown, missing or of a wrong type, two of one name, or an unknown environment.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise errors.Refused(f"parties={given!r} is neither a number of parties nor a list of tables")
    found = tuple(_owner(at, table) for at, table in enumerate(given))
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise errors.Refused(f"two parties are called {twice!r}; give each a name of its own")
    return found


def to_json(owners: Sequence[Owner]) -> list[dict[str, Any]]:
    """Plain data, of which `from_json` makes the same."""
    return [
        {"name": one.name, "env": one.env, "environment": dict(one.environment), "network": dict(one.network)}
        | ({"optimiser": dict(one.optimiser)} if one.optimiser else {})
        for one in owners
    ]


def _tables(given: Mapping[str, Any]) -> list[Any]:
    if unknown := next((key for key in given if key != TABLE), None):
        raise errors.unknown("key", unknown, [TABLE], REMEDY)
    tables = given.get(TABLE)
    if not isinstance(tables, list) or not tables:
        raise errors.Refused(f"it holds no party. {REMEDY}")
    return tables


def _owner(at: int, table: Any) -> Owner:
    called = f"party {at + 1}"
    if not isinstance(table, dict):
        raise errors.Refused(f"{called} is no table. {REMEDY}")
    if unknown := next((key for key in table if key not in KEYS), None):
        raise errors.unknown(f"key of {called}", unknown, KEYS)
    for key in ("name", "env"):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise errors.Refused(f'{called}: {key}={table.get(key)!r}, but a text is needed; give {key} = "..."')
    for key in ("environment", "network", "optimiser"):
        if not isinstance(table.get(key, {}), dict):
            raise errors.Refused(f"{called}: {key}={table[key]!r} is no table of settings; e.g. {key} = {{ ... }}")
    env = environments.full(table["env"])
    check_name(table["name"], called)
    return Owner(table["name"], env, table.get("environment", {}), table.get("network", {}), table.get("optimiser", {}))


def check_name(name: str, called: str) -> None:
    """Refuse a party's name that could not be part of a file's.

    Args:
        name: It.
        called: Where it was given, for the message.

    Raises:
        Refused: It is empty, has a / or blanks around, or what cannot be printed.
    """
    if not name or name != name.strip() or "/" in name or not name.isprintable():
        raise errors.Refused(f"{called}: the name {name!r} is to stand in files; leave / and blanks around out")


# ------------------------------------------------------------------------------------------------ an experiment's


def count(made: wiring.Experiment, how: types.Ways) -> int:
    """How many there are.

    Raises:
        Refused: The runtime has another number than the file or the set of environments.
    """
    if made.parties and len(made.parties) != how.parties:
        raise errors.Refused(
            f"--parties {how.parties}, but the parties file has {len(made.parties)}; leave --parties out"
        )
    owners = () if made.parties else _owned(made).owners
    if owners and len(owners) != how.parties:
        raise errors.Refused(
            f"--parties {how.parties}, but {made.env} is to have {len(owners)} owners; leave --environment.parties out"
        )
    return how.parties


def fitted(environment: environments.Config, env: str, how: types.Ways) -> environments.Config:
    """The settings of a set of environments with as many owners as there are parties, where nobody said otherwise.

    Args:
        environment: Its settings.
        env: Its id.
        how: What the runtime declares.
    """
    if not how.parties or not environments.owned(env, environment).owners:
        return environment
    field = type(environment).__dataclass_fields__.get("parties")
    if field is None or options.plain(environment)["parties"] != field.default:
        return environment
    given: dict[str, Any] = {"parties": how.parties}
    return dataclasses.replace(environment, **given)


def each(made: wiring.Experiment, how: types.Ways) -> tuple[Each, ...]:
    """The parties of an experiment, in their order: from the file, the owners of the set, or copies.

    Args:
        made: The experiment.
        how: What its runtime declares.

    Raises:
        Refused: A setting of one is unknown or wrong; names the party.
    """
    return tuple(one(made, how, at) for at in range(count(made, how)))


def one(made: wiring.Experiment, how: types.Ways, at: int) -> Each:
    """One of them, for which the others are not looked at.

    Args:
        made: The experiment.
        how: What its runtime declares.
        at: Its number, from 0.

    Raises:
        Refused: A setting of it is unknown or wrong; names the party.
    """
    if made.parties:
        return _filed(made, made.parties[at])
    owners = _owned(made).owners
    found = Each(owners[at].name, dataclasses.replace(made, env=owners[at].env)) if owners else Each(str(at), made)
    return _spread(found, at) if how.spread else found


def named(made: wiring.Experiment, how: types.Ways) -> list[tuple[str, str]]:
    """Of each its name and the id of its environment, in their order; arguments as in `each`."""
    whose = made.parties or _owned(made).owners
    return [(one.name, one.env) for one in whose] or [(str(at), made.env) for at in range(how.parties)]


def _spread(one: Each, at: int) -> Each:
    """A party with a network and a rate of its own (`SPREAD`)."""
    hidden, activation, rate = SPREAD[at % len(SPREAD)]
    configs = one.made.configs
    own = {
        "network": dataclasses.replace(configs["network"], hidden=hidden, activation=activation),
        "optimiser": dataclasses.replace(configs["optimiser"], learning_rate=rate),
    }
    return Each(one.name, dataclasses.replace(one.made, configs={**configs, **own}))


def _filed(made: wiring.Experiment, owner: Owner) -> Each:
    """One of a file's, with his own settings over the experiment's."""
    kind = environments.config_class(owner.env)
    shown = environments.own(made.configs["environment"], kind)
    try:
        own = {
            "environment": options.build(kind, owner.environment, "environment", shown),
            "network": options.build(networks.Config, owner.network, "network", made.configs["network"]),
            "optimiser": options.build(optimise.Config, owner.optimiser, "optimiser", made.configs["optimiser"]),
        }
    except errors.Refused as problem:
        raise errors.Refused(f"party {owner.name}: {problem}") from None
    return Each(owner.name, dataclasses.replace(made, env=owner.env, configs={**made.configs, **own}, parties=()))


def lead(made: wiring.Experiment, how: types.Ways) -> wiring.Experiment:
    """Whose environment and agent stand for the run's: the set itself where one program serves all, else the first's.

    Args:
        made: The experiment.
        how: What its runtime declares.
    """
    if not how.parties or (not made.parties and not how.spread and _owned(made).alike):
        return made
    count(made, how)
    return one(made, how, 0).made


def _owned(made: wiring.Experiment) -> environments.Owned:
    return environments.owned(made.env, made.configs["environment"])


def kinds(made: wiring.Experiment, how: types.Ways) -> list[Each]:
    """One party of each kind; those that are not told apart by a setting, or that one program serves, are of one kind.

    Args:
        made: The experiment.
        how: What its runtime declares.
    """
    if not made.parties and _owned(made).alike:
        count(made, how)
        return [one(made, how, 0)]
    first: list[Each] = []
    for other in each(made, how):
        if not any(_same(other.made, seen.made) for seen in first):
            first.append(other)
    return first


def _same(one: wiring.Experiment, other: wiring.Experiment) -> bool:
    return (one.env, one.configs) == (other.env, other.configs)


def ids(made: wiring.Experiment, how: types.Ways) -> list[str]:
    """The environments of a run, each once: of all parties, or the one there is."""
    if not how.parties or not made.parties:
        return [made.env]
    return list(dict.fromkeys(env for _, env in named(made, how)))


def alike(made: wiring.Experiment, how: types.Ways, device: types.Env | None) -> bool:
    """Whether one compiled program can serve all of them (`types.Parts.alike`).

    Args:
        made: The experiment.
        how: What its runtime declares.
        device: The environment that stands for all.
    """
    if device is None or how.spread:
        return False
    if made.parties:
        return len(kinds(made, how)) == 1
    return _owned(made).alike


# ------------------------------------------------------------------------------------------------ what must agree


def check(agents: Sequence[tuple[str, types.Agent, types.EnvSpec]], exchange: str) -> None:
    """Refuse parties who could not exchange anything.

    Args:
        agents: Of each kind of party: his name, his agent and his environment.
        exchange: What crosses; "outputs" are of the same actions, gradients and deltas of the same global layers.

    Raises:
        Refused: Names the two parties, and the layer or the actions in which they differ.
    """
    name, agent, spec = agents[0]
    if exchange == "outputs":
        for other, _, does in agents[1:]:
            if _choices(does) != _choices(spec):
                raise errors.Refused(
                    f"party {other} chooses among {does.action.n} actions, and party {name} among {spec.action.n}; who "
                    "agrees on decisions has the same ones, so give them environments of the same actions"
                )
    if exchange not in SHARING:
        return
    layout = _layout(agent)
    if not layout:
        raise errors.Refused(
            "no layer is everybody's, so there is nothing to exchange; give --network.form A, or --runtime.exchange "
            "none"
        )
    for other, different, _ in agents[1:]:
        for layer, here, there in _differences(layout, _layout(different)):
            raise errors.Refused(
                f"the global layer {layer} is {_shown(there)} at party {other}, and {_shown(here)} at party {name}; "
                "global layers must have the same shape, so keep what differs local (--network.form C), or give both "
                "the same network"
            )


def _choices(spec: types.EnvSpec) -> tuple[str, int, tuple[int, ...], tuple[int, ...]]:
    return spec.action.kind, spec.action.n, spec.action.sizes, spec.action.shape


def _layout(agent: types.Agent) -> dict[str, tuple[int, ...]]:
    return dict(scopes.layout(jax.eval_shape(agent.init, seeds.key(0)).params))


def _differences(
    layout: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None]]:
    for name in sorted({*layout, *other}, key=lambda name: (name.rpartition("/")[0], name.endswith("bias"))):
        if layout.get(name) != other.get(name):
            yield name.rpartition("/")[0], layout.get(name), other.get(name)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
