"""A federation over several machines: the run of its server, and the run of each party, in folders of their own.

Both are runs like any other: their observer, checkpoints, metrics, summary and report are `session`'s. What is special
is that they are saved after every round, and that the same command goes on where its folder is there already.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal import environments, experiment
from shoal.core import errors, files, types
from shoal.experiment import parties, presets
from shoal.runs import run_folder, training
from shoal.runtimes.federated.flower import deploying, invitation, keys, link

with epy.lazy_imports():
    from shoal.runtimes.federated.flower import opening, partaking, serving

NAME = "run-name"  # a file of the server's: 32 hexadecimal digits that no other run has
CLEARING = 20.0  # seconds in which what is left of a server that was killed gives its port back
DEPLOYED = {"exchange": ("gradient", "delta"), "privacy": ("none", "local"), "unit": ("party",)}


class Listening(NamedTuple):
    """Where a server is to listen, and with which keys."""

    host: str
    port: int
    keys: Path | None  # None: made in the run folder, which loopback alone is good enough for


# ------------------------------------------------------------------------------------------------ the server


def serve(request: presets.Request, out: Path | None, where: Listening, **asked: Any) -> training.Run:
    """Train a preset with parties that come over the network; where the folder is there, go on.

    Args:
        request: What is trained; its runtime is federated.
        out: The run folder; None: as `training.train` names it.
        where: It listens.
        asked: As of `training.train`.

    Raises:
        Refused: The request, the address or the keys; nothing was made.
        GaveUp: Flower could not be kept running.
    """
    link.needed()
    request = _placed(request, "server")
    made, _ = presets.resolve(request)
    named = [one.name for one in _each(made)]
    _check_server(made, named, where, again=out is not None and out.exists())
    folder = out or run_folder.named(made, [made.seed], None)
    side = _Server(made, folder, where, named)
    asked |= {"builder": side.built, "eval_episodes": 0}
    if not (folder / "config.json").exists():
        return training.train(request, folder, **asked)
    kept = run_folder.unedited(folder, run_folder.read_config(folder))
    if run_folder.digest(kept) != run_folder.digest(made):
        raise errors.Refused(
            f"{folder} holds another experiment than this command asks for: {_differing(kept, made)}; type what was "
            "typed at first, or choose another --out"
        )
    return _resumed(folder, asked)


def _resumed(folder: Path, asked: dict[str, Any]) -> training.Run:
    run = training.resume(folder, **{name: value for name, value in asked.items() if name != "command"})
    assert isinstance(run, training.Run)
    return run


def _each(made: experiment.Experiment) -> tuple[parties.Each, ...]:
    return parties.each(made, experiment.ways(made.runtime, made.configs["runtime"]))


def _placed(request: presets.Request, placement: str) -> presets.Request:
    """The request with one side of a deployment as its runtime.

    Raises:
        Refused: Its runtime is another.
    """
    name = presets.parts(request)["runtime"]
    if name != "federated":
        raise errors.Refused(f"--runtime {name} trains no parties; leave it out, or give --runtime federated")
    config = request.configs.get("runtime", presets.config(request, "runtime"))
    return request._replace(configs={**request.configs, "runtime": dataclasses.replace(config, placement=placement)})


def _differing(kept: experiment.Experiment, made: experiment.Experiment) -> str:
    """The settings in which two experiments differ, the first few."""
    one, other = _flat(kept.to_json()), _flat(made.to_json())
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name))[:4])


def _flat(data: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {name: data}
    return {
        path: leaf for key, value in data.items() for path, leaf in _flat(value, f"{name}.{key}".strip(".")).items()
    }


def _check_server(made: experiment.Experiment, named: list[str], where: Listening, *, again: bool) -> None:
    config = made.configs["runtime"]
    for field in ("exchange", "privacy", "unit", "secure_sum", "attack", "paces", "join"):
        value, allowed = dataclasses.asdict(config)[field], DEPLOYED.get(field, ((), False))
        if value not in allowed:
            usable = " or ".join(map(str, filter(None, allowed)))
            raise errors.Refused(
                f"--runtime.{field.replace('_', '-')} {value} is for simulations on one machine (`shoal train`); no "
                f"deployment has it, so {f'use {usable}' if usable else 'leave it out'}"
            )
    if where.keys is None and not keys.loopback(where.host):
        raise errors.Refused(
            f"--host {where.host} is reached from other machines, and there a server needs a certificate and the "
            "parties' keys: make them with `shoal federate keys`, and give --keys FOLDER"
        )
    if where.keys is not None:
        wanted = [keys.AUTHORITY, keys.CERTIFICATE, keys.SECRET, *(f"{keys.PARTIES}/{name}.pub" for name in named)]
        if missing := [name for name in wanted if not (where.keys / name).is_file()]:
            raise errors.Refused(
                f"--keys {where.keys} lacks {', '.join(missing)}; `shoal federate keys` makes the server's, and the "
                "owner of each party sends the public half of theirs"
            )
    link.free(where.host, where.port, CLEARING if again else 0.0)


class _Server:
    """What the server's runtime needs of its folder."""

    def __init__(self, made: experiment.Experiment, folder: Path, where: Listening, named: list[str]) -> None:
        self._made, self._where, self._named = made, where, named
        self._home = folder / deploying.FOLDER
        self._folder = folder
        self._spec = ""

    def built(
        self, made: experiment.Experiment, opened: environments.Opened, start: types.Tree | None
    ) -> experiment.Built:
        """The parts, with the server as their runtime."""
        experiment.cache()
        built = experiment.build(made, opened, start)
        return built._replace(runtime=serving.Serving(self._opening, self._ready, self._invite))

    def _opening(self, parts: types.Parts, seed: int, begin: bool) -> opening.Opening:
        told = {"carrier": f"flwr {serving.version()}", "host": self._where.host}
        found = opening.opened(self._made.configs["runtime"], parts, seed, self._name(), told, begin=begin)
        self._spec = found.channel.spec.digest.hex()
        return found

    def _name(self) -> bytes:
        """Of the run; drawn once."""
        path = self._home / NAME
        if not path.exists():
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.replace(path, os.urandom(16).hex().encode())
        return bytes.fromhex(path.read_text())

    def _ready(self) -> deploying.Place:
        """Keys and certificates are there."""
        where, own = self._where, self._home / "keys"
        if where.keys is None and not (own / keys.CERTIFICATE).exists():
            shutil.rmtree(own, ignore_errors=True)  # of a life that ended while it made them
            shutil.rmtree(self._home / keys.PARTIES, ignore_errors=True)
            keys.make_all(own, self._home / keys.PARTIES, [where.host, "localhost"], self._named)
        return deploying.Place(self._folder, where.keys or own, where.host, where.port, gate=where.keys is not None)

    def _invite(self, fab: str) -> None:
        """Tell every party what it takes part in; on loopback it finds that by the port."""
        for number, name in enumerate(self._named):
            folder = self._home / keys.PARTIES / name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            told = invitation.Invitation(
                name=name, party=number, parties=tuple(self._named), run=self._name().hex(), spec=self._spec, fab=fab,
                experiment=self._made.to_json(),
            )  # fmt: skip
            invitation.write(folder, told)
        if self._where.keys is None:
            invitation.announce(self._where.port, (self._home / keys.PARTIES).absolute())


# ------------------------------------------------------------------------------------------------ a party


class Seat(NamedTuple):
    """Where a party is asked, and what it was told."""

    invitation: Path  # file
    socket: Path
    user: int | None  # whose node may ask


def partake(seat: Seat, env: str | None, out: Path, **asked: Any) -> training.Run:
    """One party's run, until the server says farewell; where the folder is there, go on.

    Args:
        seat: Of the party.
        env: Its environment; None: the one that the experiment has for it.
        out: The run folder.
        asked: As of `training.train`.

    Raises:
        Refused: The environment does not fit the global part, or the folder is another run's.
    """
    told = invitation.read(seat.invitation)
    request = _request(told, env)

    def built(made: experiment.Experiment, opened: environments.Opened, start: types.Tree | None) -> experiment.Built:
        experiment.cache()
        whole = experiment.build(made, opened, start)
        config = made.configs["runtime"]
        _check_fits(told, made, config, whole.parts)
        place = partaking.Seat(told.party, bytes.fromhex(told.run), seat.socket, out / deploying.FOLDER, seat.user)
        return whole._replace(runtime=partaking.Partaking(config, place))

    asked |= {"builder": built}
    if not (out / "config.json").exists():
        return training.train(request, out, **asked)
    made, _ = presets.resolve(request)
    kept = run_folder.unedited(out, run_folder.read_config(out))
    if run_folder.digest(kept) != run_folder.digest(made):
        raise errors.Refused(
            f"{out} holds another party's run, or another experiment: {_differing(kept, made)}; choose another --out"
        )
    return _resumed(out, asked)


def _request(told: invitation.Invitation, env: str | None) -> presets.Request:
    """What a party trains: its share of the steps, in its own environment; rates fall as they do for all."""
    whole = experiment.from_json(told.experiment)
    one = _each(whole)[told.party].made
    configs = dict(one.configs)
    if env is not None and environments.full(env) != one.env:
        configs["environment"] = environments.own(one.configs["environment"], environments.config_class(env))
    request = presets.Request(
        preset=whole.preset, env=env or one.env, steps=-(-whole.steps // len(told.parties)), seed=whole.seed,
        runtime=whole.runtime, corrector=whole.corrector, compressor=whole.compressor, configs=configs,
        anneal=experiment.horizon(whole),
    )  # fmt: skip
    return _placed(request, "party")


def _check_fits(told: invitation.Invitation, made: experiment.Experiment, config: Any, parts: types.Parts) -> None:
    """Refuse an environment whose spaces make another global part than everybody has."""
    spec = opening.channel(config, parts, made.seed).spec
    if spec.digest.hex() != told.spec:
        raise errors.Refused(
            f"--env {made.env}: the global part of the network would have other shapes than the federation's; give an "
            "environment of the same spaces, or let what differs be local (--network.form C at the server)"
        )
