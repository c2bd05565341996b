"""`shoal federate server|party|keys`: one federation over several machines, on Flower."""

from __future__ import annotations

import dataclasses
import gc
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from etils import epy

from shoal.command import arguments, seats
from shoal.command.verbs import output, train
from shoal.core import errors, files
from shoal.experiment import parties, presets

with epy.lazy_imports():
    import tyro

    from shoal import log
    from shoal.runs import federating
    from shoal.runtimes.federated.flower import attending, invitation, keys, link, node

USAGE = """\
usage: shoal federate WHO ...

  server PRESET     hold the global network and its rounds   shoal federate server collab_dqn --parties 3 --port 9100
  party             take part, with an environment of one's own
                    shoal federate party --server 127.0.0.1:9100 --env owners:CartPole-lengths/0 --out runs/one
  keys              make certificates and keys               shoal federate keys --host fed.example.org --out keys

`shoal federate WHO --help` tells the options.
"""
PORT = 9100
AGAIN = 120.0  # seconds in which a party that goes on waits for a server that is not there


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``federate``.

    Returns:
        The exit code: 0, 75 if a signal ended it.

    Raises:
        Refused: In one line, before anything is made.
    """
    gc.enable()  # not all of what follows has options to parse
    roles: dict[str, Callable[[list[str]], int]] = {"server": _server, "party": _party, "keys": _keys}
    if not typed or typed[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if typed else 2
    if typed[0] == "lasting":  # what `party` starts
        return _lasting(typed[1:])
    if typed[0] not in roles:
        raise errors.unknown("side of a federation", typed[0], roles)
    return roles[typed[0]](typed[1:])


# ------------------------------------------------------------------------------------------------ server


def _server(typed: list[str]) -> int:
    since = output.process_start()
    first = arguments.peek(typed)
    if first is None:
        if {"-h", "--help"} & set(typed):
            print(USAGE, end="")
            return 0
        raise errors.Refused(
            "give a preset, e.g. `shoal federate server collab_dqn`; `shoal list presets` has them all"
        )
    request = train.chosen(first, typed)
    request = request._replace(runtime=request.runtime or "federated")
    words = [first, *arguments.without_first(typed, first)]
    given = arguments.parse(_server_options(request), f"federate server {first}", words)
    for name in ("seeds", "until", "from_schedule", "evaluate_every"):
        if getattr(given, name) is not None:
            flag = name.replace("_", "-")
            raise errors.Refused(f"--{flag}: a federation's server sees no returns and holds one run; leave it out")
    request = train.asked_for(request, given, typed)
    where = federating.Listening(given.host, given.port, given.keys)
    made = federating.serve(
        request, given.out, where, console=log.pick(given.quiet), since=since,
        command=shlex.join(["shoal", "federate", "server", *typed]),
    )  # fmt: skip
    return output.ended(made, as_json=given.json, quiet=given.quiet)


def _server_options(request: presets.Request) -> type:
    """Those of `train`, and where to listen."""
    told = {
        "port": (int, PORT, "Port to listen on."),
        "host": (
            str,
            "127.0.0.1",
            "Address to listen on, and name that parties reach it by; off loopback with --keys.",
        ),
        "keys": (
            Path | None,
            None,
            "Folder with certificate, key and the parties' public keys (`shoal federate keys`).",
        ),
    }
    fields: list[Any] = [
        (name, Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default))
        for name, (kind, default, text) in told.items()
    ]
    made = dataclasses.make_dataclass("ServerOptions", fields, bases=(train.options(request),), frozen=True)
    made.__doc__ = f"Hold the global network of a federation that trains {request.preset}."
    return made


# ------------------------------------------------------------------------------------------------ party


@dataclasses.dataclass(frozen=True)
class PartyOptions:
    """Take part in a federation, with an environment and a private part of one's own."""

    server: str
    """HOST:PORT of the server."""
    out: Path
    """The party's run folder; where it is there already, the party goes on."""
    env: str | None = None
    """The party's environment; if not given, the one that the experiment has for it."""
    parties_file: Path | None = None
    """File of parties (owners.toml); the environment is that of the party called --name."""
    name: str | None = None
    """Which party this is; on loopback the first that nobody has taken, if not given."""
    keys: Path | None = None
    """Folder with the party's key, the authority's certificate and the invitation; on loopback it is found."""
    node_user: str | None = None
    """System user that executes what the server sends (root alone can choose one); the caller, if not given."""
    eval_episodes: int = 20
    """Episodes of the evaluation at the end, which stays here; 0 for none."""
    quiet: bool = False
    """Show nothing while training."""
    json: bool = False
    """Print the summary as one JSON object."""


def _party(typed: list[str]) -> int:
    given = arguments.parse(PartyOptions, "federate party", typed)
    host, port = node.split(given.server)
    link.needed()
    user = seats.user(given.node_user)
    again = (given.out / "config.json").exists()
    folder, held = seats.taken(seats.Wanted(given.server, host, port, given.out, given.name, given.keys))
    try:
        told = invitation.read(folder / invitation.FILE)
        env = given.env or seats.filed(given.parties_file, told.name)
        seats.wait(host, port, folder / keys.AUTHORITY, AGAIN if again else 0.0)
        output.say(f"party {told.name} ({told.party + 1} of {len(told.parties)}) of {given.server}")
        output.say(f"its node executes the app with SHA-256 {told.fab}")
        words = ["--invitation", folder / invitation.FILE, "--out", given.out, "--eval-episodes", given.eval_episodes]
        words += ["--env", env] if env else []
        words += ["--user", user] if user is not None else []
        words += [flag for flag in ("--quiet", "--json") if getattr(given, flag[2:])]
        plan = attending.Plan(
            lambda socket: attending.lasting([*map(str, words), "--socket", str(socket)]), given.out, folder.absolute(),
            given.server, user, held,
        )  # fmt: skip
        return attending.attend(plan, output.say)
    finally:
        os.close(held)


@dataclasses.dataclass(frozen=True)
class LastingOptions:
    """The lasting party, as `shoal federate party` starts it."""

    invitation: Path
    """File."""
    out: Path
    """The run folder."""
    socket: Path
    """Where it is asked."""
    env: str | None = None
    """Its environment."""
    user: int | None = None
    """Who may ask."""
    eval_episodes: int = 20
    """Episodes of the evaluation at the end."""
    quiet: bool = False
    """Show nothing while training."""
    json: bool = False
    """Print the summary as one JSON object."""


def _lasting(typed: list[str]) -> int:
    since = output.process_start()
    given = arguments.parse(LastingOptions, "federate lasting", typed)
    seat = federating.Seat(given.invitation, given.socket, given.user)
    made = federating.partake(
        seat, given.env, given.out, console=log.pick(given.quiet), eval_episodes=given.eval_episodes, since=since,
        command=shlex.join(["shoal", "federate", "lasting", *typed]),
    )  # fmt: skip
    return output.ended(made, as_json=given.json, quiet=given.quiet)


# ------------------------------------------------------------------------------------------------ keys


@dataclasses.dataclass(frozen=True)
class KeysOptions:
    """Make the certificates and keys of a federation: the server's with --host, a party's own with --party."""

    out: Path
    """The folder to be made; the parties' public halves go into FOLDER/parties/NAME.pub of the server's."""
    host: tuple[str, ...] = ()
    """Names and addresses that parties reach the server by."""
    party: str | None = None
    """Name of the party whose key is made."""


def _keys(typed: list[str]) -> int:
    given = arguments.parse(KeysOptions, "federate keys", typed)
    if bool(given.host) == (given.party is not None):
        raise errors.Refused("give --host NAME for the server's certificate, or --party NAME for a party's own key")
    if given.out.exists():
        raise errors.Refused(f"--out {given.out} exists, and keys are never written over; choose another folder")
    if given.party is not None:
        parties.check_name(given.party, "--party")
        _made(given.out, lambda: keys.make_party(given.out))
        output.say(
            f"made {given.out}/{keys.KEY}, which stays here; send {given.out}/{keys.PUBLIC} to the server's owner,"
        )
        output.say(f"who keeps it as {keys.PARTIES}/{given.party}.pub; put ca.crt and federation.json beside the key")
        return 0
    keys.check_hosts(given.host)
    _made(given.out, lambda: keys.make_server(given.out, given.host))
    (given.out / keys.PARTIES).mkdir()
    output.say(f"made {given.out}: send {keys.AUTHORITY} to the parties, keep {keys.SECRET}; collect their public keys")
    output.say(f"as {given.out}/{keys.PARTIES}/NAME.pub")
    return 0


def _made(folder: Path, make: Callable[[], object]) -> None:
    """Make keys in a folder that may not be possible."""
    try:
        make()
    except OSError as error:
        raise errors.Refused(
            f"cannot make the keys in {folder} ({files.reason(error)}); choose another folder with --out"
        ) from None
