"""What a party is told before it takes part, as a file: the experiment, its number, and whose key is whose.

It goes by hand, not over the wire: what runs at the party is what its owner has read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shoal.core import compilation, errors, files, types

FILE = "federation.json"
SCHEMA = 1


class Invitation(NamedTuple):
    """All of it is public."""

    name: str  # of the party
    party: int  # its number: every random number of it is derived from that, and sums go by it
    parties: tuple[str, ...]
    run: str  # 32 hexadecimal digits: the run
    spec: str  # SHA-256 of the global part's names and shapes
    fab: str  # SHA-256 of the app that the SuperNode will execute; "" before it was packed
    experiment: Mapping[str, types.Tree]  # as in ``config.json``


def write(folder: Path, invitation: Invitation) -> None:
    """Write it, in one step."""
    data = {"schema": SCHEMA, **invitation._asdict(), "parties": list(invitation.parties)}
    files.replace(folder / FILE, (json.dumps(data, indent=1) + "\n").encode())


def read(path: Path) -> Invitation:
    """Read one.

    Raises:
        Refused: It is not there, or is none.
    """
    try:
        data = json.loads(path.read_text())
        if data["schema"] > SCHEMA:
            raise errors.Refused(
                f"{path} has schema {data['schema']}, this Shoal reads up to {SCHEMA}; install a newer one"
            )
        made = Invitation(**{field: data[field] for field in Invitation._fields})
        made = made._replace(parties=tuple(made.parties))
        if made.parties[made.party] != made.name or len(bytes.fromhex(made.run)) != 16:
            raise ValueError("its parts contradict each other")
        return made
    except FileNotFoundError:
        raise errors.Refused(
            f"there is no {path}: ask the server's owner for it; `shoal federate server` writes one for every party"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise errors.Refused(f"{path} is no invitation of Shoal's ({type(error).__name__}: {error})") from None


def announce(port: int, folder: Path) -> None:
    """Say where a server on loopback keeps what its parties need, for `nearby`."""
    place = _places() / str(port)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(place, str(folder).encode())


def nearby(port: int) -> Path | None:
    """The folder of the parties' folders of a server of this user on loopback; None: there is none."""
    try:
        found = Path((_places() / str(port)).read_text())
    except OSError:
        return None
    return found if found.is_dir() else None


def _places() -> Path:
    return compilation.folder().parent / "federations"
