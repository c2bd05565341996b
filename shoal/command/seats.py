"""Which party a process is, and what it needs for that: its folder, its environment, its server, its node's user."""

from __future__ import annotations

import fcntl
import os
import pwd
import time
from pathlib import Path
from typing import NamedTuple

from etils import epy

from shoal.core import errors
from shoal.experiment import parties

with epy.lazy_imports():
    from shoal.runtimes.federated.flower import attending, invitation, keys, node


CLEARING = 20.0  # seconds in which what is left of a party that was killed is cleared up, by its keeper


class Wanted(NamedTuple):
    """What was typed about a party."""

    server: str
    host: str
    port: int
    out: Path  # its run folder
    name: str | None
    keys: Path | None


def taken(given: Wanted) -> tuple[Path, int]:
    """The party's folder, which no other process has now; a party that goes on has the one it had.

    Raises:
        Refused: There is none, or it is in use.
    """
    mine = given.out / attending.SEAT
    if given.keys is not None:
        found = [given.keys]
    elif mine.exists():
        found = [Path(mine.read_text())]
    else:
        found = _nearby(given)
    until = time.monotonic() + CLEARING
    while True:
        for folder in found:
            if (held := _held(folder)) is not None:
                return folder, held
        if time.monotonic() > until:
            break
        time.sleep(0.5)
    whose = (
        f"party {given.name} is" if given.name else "all parties are" if len(found) > 1 else f"the key in {found[0]} is"
    )
    raise errors.Refused(f"{whose} in use by another process; end it, or take part as another (--name)")


def _held(folder: Path) -> int | None:
    """The lock of a party's folder as an open file; None: it is another's.

    Raises:
        Refused: There is no such folder.
    """
    try:
        held = os.open(folder / ".taken", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        raise errors.Refused(f"--keys {folder} is no folder of this user's; `shoal federate keys` makes one") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return held
    except OSError:
        os.close(held)
        return None


def _nearby(given: Wanted) -> list[Path]:
    """What a server on loopback has made for its parties."""
    if not keys.loopback(given.host):
        raise errors.Refused(
            f"--server {given.server} is another machine: give --keys FOLDER with the party's key (`shoal federate "
            "keys --party NAME`), the server's certificate authority (ca.crt) and invitation (federation.json)"
        )
    place = invitation.nearby(given.port)
    if place is None:
        raise errors.Refused(
            f"no server of this user on port {given.port} has made keys for parties; start `shoal federate server "
            f"PRESET --port {given.port}` and wait until it waits for parties, or give --keys FOLDER"
        )
    every = invitation.read(next(place.iterdir()) / invitation.FILE).parties
    if given.name is None:
        return [place / name for name in every]
    if given.name not in every:
        raise errors.unknown("party", given.name, every)
    return [place / given.name]


def filed(file: Path | None, name: str) -> str | None:
    """The environment that a parties file has for a party."""
    if file is None:
        return None
    owners = {one.name: one.env for one in parties.read(file)}
    if name not in owners:
        raise errors.unknown(f"party of {file}", name, owners)
    return owners[name]


def wait(host: str, port: int, authority: Path, seconds: float) -> None:
    """Wait for a server that is not there.

    Raises:
        Refused: It does not come.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            node.reachable(host, port, authority)
            return
        except errors.Refused:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def user(name: str | None) -> int | None:
    """The number of a system user.

    Raises:
        Refused: There is none of the name, or only root may choose.
    """
    if name is None:
        return None
    try:
        found = pwd.getpwnam(name).pw_uid
    except KeyError:
        raise errors.Refused(
            f"--node-user {name}: this system knows no such user; make one, e.g. with useradd"
        ) from None
    if os.geteuid() not in (0, found):
        raise errors.Refused(
            f"--node-user {name}: only root can start a process as another user; run as root, or leave it out"
        )
    return found
