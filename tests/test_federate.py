"""A federation over several machines, as far as it goes without Flower: its app, keys, sockets, processes, refusals."""

from __future__ import annotations

import ast
import json
import multiprocessing.connection
import pathlib
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import threading
import time
import tomllib
import types as modules

import numpy as np
import pytest

from shoal.command import cli
from shoal.core import errors
from shoal.runtimes.federated import audit, message, rounds, server, telling
from shoal.runtimes.federated.flower import carrier, children, invitation, keys, link, node, serving, tagged
from shoal.runtimes.federated.flower import door as doors

APP = pathlib.Path(link.__file__).parent / "app"


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------ the app


def test_the_app_is_three_short_files_that_carry_bytes_and_import_nothing_of_shoal(tmp_path):
    folder = link.write_app(tmp_path / "app")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["pyproject.toml", *(f"shoalfed/{name}.py" for name in ("__init__", "client", "server"))]
    imported = set()
    for path in folder.rglob("*.py"):
        for at in ast.walk(ast.parse(path.read_text())):
            imported |= {name.name for name in at.names} if isinstance(at, ast.Import) else set()
            imported |= {at.module} if isinstance(at, ast.ImportFrom) else set()
    flower = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
    assert imported == flower | {"multiprocessing.connection", "os", "struct", "time"}
    assert sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py")) < 150


def test_the_app_declares_its_two_sides_and_no_setting_that_could_be_overridden():
    project = tomllib.loads((APP / "pyproject.toml").read_text())
    about = project["tool"]["flwr"]["app"]
    assert about["components"] == {"serverapp": "shoalfed.server:app", "clientapp": "shoalfed.client:app"}
    assert (about["config"], about["fab-include"]) == ({}, ["**/*.py"])
    ours = tomllib.loads((APP.parents[4] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert project["project"]["dependencies"][0] in ours["federated"]


class Record(dict):
    pass


class Message:
    def __init__(self, content, reply_to=None, **to):
        self.content, self.reply_to, self.to = content, reply_to, to


class App:
    def train(self):
        return lambda function: function

    main = train


@pytest.fixture
def app(monkeypatch):
    """The two files of the app, with flwr played."""
    flwr = {name: modules.ModuleType(name) for name in ("flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp")}
    kinds = modules.SimpleNamespace(TRAIN="train")
    flwr["flwr.app"].__dict__.update(ConfigRecord=Record, RecordDict=Record, Message=Message, Context=object)
    flwr["flwr.app"].__dict__.update(MessageType=kinds)
    flwr["flwr.clientapp"].ClientApp = flwr["flwr.serverapp"].ServerApp = App
    flwr["flwr.serverapp"].Grid = object
    for name, module in flwr.items():
        monkeypatch.setitem(sys.modules, name, module)
    made = {}
    for name in ("client", "server"):
        made[name] = modules.ModuleType(name)
        exec((APP / "shoalfed" / f"{name}.py").read_text(), made[name].__dict__)
    return modules.SimpleNamespace(**made)


def test_the_client_hands_over_bytes_and_never_the_text_of_an_exception(app, tmp_path, monkeypatch):
    monkeypatch.setattr(app.client, "PATIENCE", 0.1)
    asked = Message(Record(job=Record(body=b"down")))
    context = modules.SimpleNamespace(node_config={"socket": str(tmp_path / "s")})
    assert app.client.train(asked, context).content == {"job": {"body": b""}}, "nobody listens"
    with doors.Door(tmp_path / "s") as door:

        def party():
            visitor = door.visitor(5.0)
            doors.given(visitor, doors.taken(visitor) + b" up")

        thread = threading.Thread(target=party)
        thread.start()
        assert app.client.train(asked, context).content == {"job": {"body": b"down up"}}
        thread.join()


def test_the_server_of_the_app_tells_who_sent_what_as_the_transport_says(app):
    ours, theirs = multiprocessing.connection.Pipe()
    sent = []
    grid = modules.SimpleNamespace(push_messages=lambda every: sent.extend(every) or ["m1"])
    waiting = app.server.push(grid, struct.pack(">QQ", 7, 42) + b"job")
    assert (waiting, sent[0].to, sent[0].content) == (
        {"m1": (7, 42)},
        {"dst_node_id": 42, "message_type": "train"},
        {"job": {"body": b"job"}},
    )

    def answer(source, content, *, error=False):
        about = modules.SimpleNamespace(reply_to_message_id="m1", src_node_id=source)
        reply = modules.SimpleNamespace(metadata=about, content=content, has_error=lambda: error)
        app.server.hand_back(theirs, reply, {"m1": (7, 42)})
        return ours.recv_bytes()

    assert answer(43, {"job": {"body": b"up"}}) == b"R" + struct.pack(">QQ", 7, 43) + b"up", "not whom it was sent to"
    assert answer(0, None, error=True) == b"R" + struct.pack(">QQ", 7, 42)
    for odd in ({}, {"job": {}}, {"job": {"body": "text"}}):
        assert answer(42, odd) == b"R" + struct.pack(">QQ", 7, 42)


# ------------------------------------------------------------------------------------------------ keys


def handshake(folder, host, authority=None):
    """A TLS handshake with the server's certificate, in memory; raises where the client would."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(folder / keys.CERTIFICATE, folder / keys.SECRET)
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(authority or folder / keys.AUTHORITY))
    sides = [client.wrap_bio(one, two, server_hostname=host), theirs.wrap_bio(two, one, server_side=True)]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass


def test_keys_let_a_client_know_its_server_and_nobody_read_them(tmp_path):
    keys.make_all(tmp_path / "server", tmp_path / "parties", ["127.0.0.1", "fed.example.org"], ["a", "b"])
    for host in ("127.0.0.1", "fed.example.org"):
        handshake(tmp_path / "server", host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "server", "10.0.0.1")
    keys.make_server(tmp_path / "other", ["127.0.0.1"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "server", "127.0.0.1", tmp_path / "other" / keys.AUTHORITY)
    secret = [path for path in tmp_path.rglob("*") if path.suffix == ".key"]
    assert len(secret) == 4, "the server's, two parties', the other server's; the authority's is not kept"
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    public = (tmp_path / "server" / "parties" / "a.pub").read_bytes()
    assert public == (tmp_path / "parties" / "a" / keys.PUBLIC).read_bytes()
    assert public.startswith(b"ecdsa-sha2-nistp384 ")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_ssh_private_key((tmp_path / "parties" / "a" / keys.KEY).read_bytes(), None)
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    assert key.public_key().public_bytes(*form) == public.strip()
    with pytest.raises(FileExistsError):
        keys.make_party(tmp_path / "parties" / "a")


@pytest.mark.parametrize(
    ("host", "is_one"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True),
                         ("0.0.0.0", False), ("fed.example.org", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host, is_one):
    assert keys.loopback(host) is is_one


# ------------------------------------------------------------------------------------------------ refusals


REFUSED = [
    ("", "usage"),
    ("sever a2c", "did you mean 'server'?"),
    ("server", "give a preset"),
    ("server a2c --host 0.0.0.0 --out {tmp}/s", "`shoal federate keys`"),
    ("server a2c --host 0.0.0.0 --keys {tmp} --out {tmp}/s", "lacks ca.crt, server.crt, server.key, parties/"),
    ("server a2c --port {port} --out {tmp}/s", "cannot be had on 127.0.0.1"),
    ("server a2c --runtime host --out {tmp}/s", "trains no parties"),
    ("server a2c --until 100 --out {tmp}/s", "--until"),
    ("server a2c --federation.exchange none --out {tmp}/s", "--runtime.exchange none is for simulations"),
    ("server a2c --federation.attack 1:sign_flip --out {tmp}/s", "--runtime.attack"),
    ("server a2c --prot 1 --out {tmp}/s", "did you mean --port?"),
    ("party --server here --out {tmp}/p", "no HOST:PORT"),
    ("party --server 127.0.0.1:99999 --out {tmp}/p", "no HOST:PORT"),
    ("party --server 127.0.0.1:{port} --out {tmp}/p", "has made keys for parties"),
    ("party --server fed.example.org:9100 --out {tmp}/p", "give --keys FOLDER"),
    ("party --server 127.0.0.1:9 --keys {tmp}/none --out {tmp}/p", "is no folder of this user's"),
    ("party --server 127.0.0.1:9 --keys {tmp} --out {tmp}/p", "there is no {tmp}/federation.json"),
    ("party --server 127.0.0.1:9 --keys {tmp} --node-user nobody-of-that-name --out {tmp}/p", "no such user"),
    ("keys --out {tmp}/k", "give --host NAME"),
    ("keys --out {tmp} --party a", "never written over"),
    ("keys --out {tmp}/k --party ../a", "--party: the name '../a' is to stand in files"),
    ("keys --out {tmp}/k --host=", "--host '' is neither a name nor an address"),
    ("keys --out {tmp}/k --host fed.example.org:9100", "without port"),
    ("keys --out /proc/none/k --host fed.example.org", "cannot make the keys in /proc/none/k"),
]


@pytest.mark.parametrize(("typed", "said"), REFUSED, ids=[typed or "nothing" for typed, _ in REFUSED])
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_made(typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(link, "needed", bool)
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fill = {"tmp": tmp_path, "port": taken.getsockname()[1]}
        code = cli.main(["federate", *typed.format(**fill).split()])
    told = capsys.readouterr()
    assert code == 2
    if typed:
        assert len(told.err.strip().splitlines()) == 1, told.err
    assert said.format(**fill) in told.err + told.out
    assert not list(tmp_path.glob("[spk]"))


def test_without_flower_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(link.util, "find_spec", {}.get)
    with pytest.raises(errors.Refused, match=r"pip install 'shoal-rl\[federated\]'"):
        link.needed()


def test_a_server_that_is_not_there_and_one_that_is_another_are_told_apart(tmp_path):
    keys.make_server(tmp_path / "one", ["127.0.0.1"])
    keys.make_server(tmp_path / "two", ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "one" / keys.CERTIFICATE, tmp_path / "one" / keys.SECRET)

        def serve():
            for _ in range(2):
                plain, _ = listening.accept()
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:
                    plain.close()

        thread = threading.Thread(target=serve)
        thread.start()
        node.reachable("127.0.0.1", port, tmp_path / "one" / keys.AUTHORITY)
        with pytest.raises(errors.Refused, match="vouches for"):
            node.reachable("127.0.0.1", port, tmp_path / "two" / keys.AUTHORITY)
        thread.join()
    with pytest.raises(errors.Refused, match="cannot be reached"):
        node.reachable("127.0.0.1", port, tmp_path / "one" / keys.AUTHORITY)


def test_a_node_that_is_never_taken_is_given_up_with_both_causes(tmp_path, monkeypatch):
    started = []
    log = tmp_path / "log"
    log.write_text("exit 305")

    def start(name, *command, **_):
        started.append(command)
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        return children.Child(name, process, log)

    clock = [0.0]
    monkeypatch.setattr(node.time, "monotonic", lambda: clock[0])
    one = node.Node(modules.SimpleNamespace(start=start), tmp_path / "n", tmp_path, "127.0.0.1:9", tmp_path / "s")

    def watch():
        while clock[0] < 2000:
            clock[0] += 1.0
            one.watch()

    with pytest.raises(errors.GaveUp, match=r"key is not registered.*was killed and the server has not missed it"):
        watch()
    assert node.PATIENCE < clock[0] < 2 * node.PATIENCE
    assert len(started) > 10


def test_an_invitation_is_read_as_it_was_written_and_a_wrong_one_refused(tmp_path):
    told = invitation.Invitation("b", 1, ("a", "b"), "0" * 32, "f" * 64, "", {"preset": "a2c"})
    invitation.write(tmp_path, told)
    assert invitation.read(tmp_path / invitation.FILE) == told
    data = json.loads((tmp_path / invitation.FILE).read_text())
    for wrong in ({"party": 0}, {"party": 7}, {"run": "12"}, {"schema": 99}, {"name": None}):
        (tmp_path / "wrong.json").write_text(json.dumps(data | wrong))
        with pytest.raises(errors.Refused):
            invitation.read(tmp_path / "wrong.json")


# ------------------------------------------------------------------------------------------------ sockets, processes


def test_a_door_is_one_users_and_gone_afterwards(tmp_path):
    path = tmp_path / "door"
    path.write_text("left by one that was killed")
    with doors.Door(path) as door:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert door.visitor(0.0) is None
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(path))
            visitor = door.visitor(1.0)
            rude.sendall(struct.pack("!i", 100) + b"half of it")
            rude.close()
            assert doors.taken(visitor) is None
    assert not path.exists()


SLEEPS = "import time; time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, '-c', {SLEEPS!r}], start_new_session=True)
time.sleep(60)
"""
LAUNCHER = """
import pathlib, sys, time
from shoal.runtimes.federated.flower import children
with children.Children(pathlib.Path(sys.argv[1])) as made:
    made.start("parent", [sys.executable, "-c", sys.argv[2]], 0)
    (made.sockets / "party").touch()
    print(made.mark, made.sockets, flush=True)
    time.sleep(60)
"""


def test_what_was_started_is_ended_in_order_with_what_it_started(tmp_path):
    with children.Children(tmp_path) as made:
        nodes = made.start("node", [sys.executable, "-c", PARENT], 0)
        link_ = made.start("link", [sys.executable, "-c", SLEEPS], 1)
        until(lambda: len(tagged.bearing(made.mark)) == 3)
        assert made.sockets.is_dir()
        assert stat.S_IMODE(made.sockets.stat().st_mode) == 0o700
    assert not tagged.bearing(made.mark)
    assert not made.sockets.exists()
    assert nodes.process.wait() == link_.process.wait() == -signal.SIGTERM


def test_a_launcher_that_is_killed_leaves_no_process_and_no_socket(tmp_path):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), PARENT], stdout=subprocess.PIPE, text=True
    )
    with launcher:
        mark, sockets = launcher.stdout.readline().split()
        until(lambda: len(tagged.bearing(mark)) == 2)
        assert pathlib.Path(sockets, "party").exists()
        launcher.kill()
    until(lambda: not tagged.bearing(mark) and not pathlib.Path(sockets).exists())


def test_what_the_children_see_has_every_switch_against_telemetry():
    seen = children.environment("m", None)
    assert (seen["FLWR_TELEMETRY_ENABLED"], seen["FLWR_DISABLE_UPDATE_CHECK"], seen["UV_OFFLINE"]) == ("0", "1", "1")


# ------------------------------------------------------------------------------------------------ the network


def hello(door, nodes):
    """A ServerApp that comes in and tells who is there."""
    came = multiprocessing.connection.Client(str(door.path), "AF_UNIX")
    came.send_bytes(b"N" + struct.pack(f">{len(nodes)}Q", *nodes))
    return came


def test_jobs_survive_the_carrier_and_answers_are_taken_from_whom_they_were_asked(tmp_path, monkeypatch):
    with doors.Door(tmp_path / "d") as door:
        net = carrier.Carrier(["a", "b"], {11: 0, 22: 1}, door, bool)
        first = net.send(0, b"zero")
        app = hello(door, [11, 22, 99])
        until(lambda: net.poll(0.01) or net.present == {0, 1})
        second = net.send(1, b"one")
        frames = [app.recv_bytes() for _ in range(2)]
        assert frames == [struct.pack(">QQ", first, 11) + b"zero", struct.pack(">QQ", second, 22) + b"one"]
        app.send_bytes(b"R" + struct.pack(">QQ", second, 11) + b"forged")
        app.send_bytes(b"R" + struct.pack(">QQ", 77, 11) + b"never asked")
        app.send_bytes(b"R" + struct.pack(">QQ", second, 22) + b"up")
        replies = net.poll(2.0)
        assert [tuple(reply) for reply in replies] == [(1, second, b"up")]
        assert net.foreign == 1
        app.close()  # the app is lost, the first job was not answered
        until(lambda: net.poll(0.01) or not net.carried)
        again = hello(door, [11])
        until(lambda: net.poll(0.01) or net.carried)
        assert again.recv_bytes() == struct.pack(">QQ", first, 11) + b"zero"
        monkeypatch.setattr(carrier, "PAUSE", 0.0)
        until(lambda: net.poll(0.01) or net.present == {0})
        for turn in range(carrier.TRIES):  # it comes back without an answer: the party, or what carries, was lost
            assert not net.poll(0.0)
            again.send_bytes(b"R" + struct.pack(">QQ", first, 11))
            if turn < carrier.TRIES - 1:
                assert not net.poll(0.1)
                assert again.recv_bytes() == struct.pack(">QQ", first, 11) + b"zero"
        assert [tuple(reply) for reply in net.poll(2.0)] == [(0, first, None)], "then it has failed"
        monkeypatch.setattr(carrier, "MISSED", -1.0)
        lost = net.send(1, b"to one that is away")
        assert [tuple(reply) for reply in net.poll(0.0)] == [(1, lost, None)]
        again.close()


SPEC = message.Spec((("trunk/kernel", (3, 2)), ("trunk/bias", (2,))))


class Beyond:
    """A network of parties that answer what numbers decide; it can lose its carrier for a while."""

    def __init__(self, run, count=3):
        self.run, self.count, self.jobs, self.out, self.bodies = run, count, 0, [], []
        self.present, self.carried, self.foreign = frozenset(range(count)), True, 0
        self.farewells = 0

    def send(self, party, body):
        self.jobs += 1
        self.bodies.append(body)
        down = message.decode_down(SPEC, body)
        if not down.settings.local_updates:
            self.farewells += 1
            self.present -= {party}
        vector = (0.1 * (party + 1) - 0.01 * down.vector + down.header.base).astype(np.float32)
        up = message.encode_up(SPEC, message.Up(down.header, vector, env_steps=10, updates=1))
        self.out.append(modules.SimpleNamespace(party=party, job=self.jobs, body=up))
        return self.jobs

    def poll(self, _):
        out, self.out = self.out[:1], self.out[1:]
        return out


def going(progress):
    return progress is not None


def life(run, steps, kept=None, observe=going):
    about = telling.About(("a", "b", "c"), ("e",) * 3, "A", "delta", SPEC.size, 0, {})
    rules = rounds.Rules(mode="delta", env_steps=10, updates=1)
    log = audit.Audit()
    served = server.Server(SPEC, np.zeros(SPEC.size, np.float32), about.names, rules, run, log=log)
    if kept is not None:
        served.resume(kept)
        served.forget()
    opening = modules.SimpleNamespace(names=about.names, about=about, run=run, policy=lambda theta: theta.copy())
    network = Beyond(run)
    made = serving.Life(served, network, lambda: None, opening, log, steps, observe)
    return made, network, served


def test_a_server_goes_on_from_its_last_round_with_the_same_bits():
    run, kept = bytes(16), []
    whole, network, served = life(run, 150)
    straight = whole(0.0)
    assert (served.version, straight.final.env_steps, network.farewells) == (5, 150, 3)

    def stop(progress):
        if progress.stage is None:
            kept.append((progress.updates, progress.save()))
        return len(kept) < 2

    life(run, 150, observe=stop)[0](0.0)
    assert [version for version, _ in kept][:2] == [1, 2], "every round was there to be saved before the next began"
    second, network, served = life(run, 150, kept[1][1])
    resumed = second(0.0)
    assert served.version == 5
    np.testing.assert_array_equal(resumed.policy, straight.policy)


def test_no_deadline_runs_while_the_carrier_is_lost_or_parties_come_back(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(serving.time, "monotonic", lambda: now[0])
    made, network, _ = life(bytes(16), 30)

    def passed(seconds):
        before = made._now()
        now[0] += seconds
        return made._now() - before

    assert passed(5.0) == 5.0
    network.carried, network.present = False, frozenset()
    assert passed(100.0) == 0.0
    network.carried = True
    assert passed(50.0) == 0.0, "parties are on their way back"
    network.present = frozenset(range(3))
    assert passed(7.0) == 7.0
    network.present = frozenset(range(2))
    assert passed(9.0) == 9.0, "one that stays away is the deadline's business"


# ------------------------------------------------------------------------------------------------ the lasting party


ARGUMENTS = [
    "--env",
    "gymnax:CartPole-v1",
    "--parties",
    "2",
    "--steps",
    "400",
    "--network.form",
    "A",
    "--network.hidden",
    "8",
]


def experiment_of():
    from shoal import experiment
    from shoal.command import arguments
    from shoal.command.verbs import train
    from shoal.experiment import presets

    words = [
        "a2c",
        *ARGUMENTS,
        "--runtime",
        "federated",
        "--runtime.placement",
        "server",
        "--runtime.local-updates",
        "2",
    ]
    request = train.chosen("a2c", words)
    given = arguments.parse(train.options(request), "train a2c", words)
    made, opened = presets.resolve(train.asked_for(request, given, words))
    return made, experiment.build(made, opened)


@pytest.fixture(scope="module")
def seat(tmp_path_factory):
    """The invitation of the second of two parties, and what the server would begin with."""
    from shoal.runtimes.federated.flower import opening

    folder = tmp_path_factory.mktemp("seat")
    made, built = experiment_of()
    run = bytes(range(16))
    begun = opening.opened(made.configs["runtime"], built.parts, made.seed, run, {})
    told = invitation.Invitation("1", 1, begun.names, run.hex(), begun.channel.spec.digest.hex(), "", made.to_json())
    assert begun.names == ("0", "1")
    invitation.write(folder, told)
    return folder, begun, made


class Lasting:
    """The real process."""

    def __init__(self, folder, out):
        self.socket, self.out = folder / "s", out
        words = [
            "--invitation",
            folder / invitation.FILE,
            "--out",
            out,
            "--socket",
            self.socket,
            "--eval-episodes",
            "0",
        ]
        command = [sys.executable, "-m", "shoal", "federate", "lasting", *map(str, words), "--quiet"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        until(lambda: self.listens() or self.process.poll() is not None, 120)
        if self.process.poll() is not None:
            pytest.fail(self.end())

    def listens(self):
        try:
            multiprocessing.connection.Client(str(self.socket), "AF_UNIX").close()
            return True
        except OSError:
            return False

    def ask(self, body):
        with multiprocessing.connection.Client(str(self.socket), "AF_UNIX") as party:
            party.send_bytes(body)
            return party.recv_bytes()

    def end(self, seconds=0.0):
        """What it said; killed where it goes on."""
        try:
            return self.process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.communicate()[1]


def test_a_lasting_party_that_is_killed_goes_on_and_says_the_same_again(seat, tmp_path):
    folder, begun, _ = seat
    spec, run = begun.channel.spec, begun.run

    def job(number, version, theta, updates=2):
        head = message.Header(run, 1, number, version, message.GRADIENT)
        return message.encode_down(spec, message.Down(head, theta, message.Settings(local_updates=updates)))

    theta = begun.theta
    one = Lasting(folder, tmp_path / "p")
    assert stat.S_IMODE(one.socket.stat().st_mode) == 0o600
    first = one.ask(job(1, 0, theta))
    up = message.decode_up(spec, first)
    assert (up.outcome, up.updates, up.header.party) == (message.OK, 2, 1)
    assert np.abs(up.vector).max() > 0
    assert message.decode_up(spec, one.ask(b"no message")).outcome == message.FAILED, "one verb, and it is checked"
    assert message.decode_up(spec, one.ask(job(1, 0, theta)[:-1])).outcome == message.FAILED
    second = one.ask(job(2, 1, theta * 0.5))
    one.end()
    assert one.socket.exists(), "what a kill leaves, the next life replaces"
    two = Lasting(folder, tmp_path / "p")
    assert two.ask(job(2, 1, theta * 0.5)) == second
    third = two.ask(job(3, 2, theta * 0.25))
    assert message.decode_up(spec, third).outcome == message.OK
    assert two.ask(job(4, 3, theta, updates=0)) == b"farewell"
    told = two.end(60)
    assert two.process.returncode == 0, told
    assert not two.socket.exists()
    summary = json.loads((tmp_path / "p" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["env_steps"] == 3 * up.env_steps
    # Undisturbed, in this process, the same party says the same.
    from shoal import experiment
    from shoal.runs import run_folder
    from shoal.runtimes.federated.flower import partaking

    mine = run_folder.unedited(tmp_path / "p", run_folder.read_config(tmp_path / "p"))
    assert mine.configs["runtime"].placement == "party"
    place = partaking.Seat(1, run, tmp_path / "s", tmp_path / "own")
    party = partaking.Partaking(mine.configs["runtime"], place)._party(experiment.build(mine).parts, mine.seed)
    assert [party.handle(job(at, at - 1, theta * 0.5 ** (at - 1))) for at in (1, 2, 3)] == [first, second, third]


def test_a_party_whose_global_part_would_be_another_is_refused(seat, tmp_path):
    from shoal.runs import federating

    folder, _, _ = seat
    place = federating.Seat(folder / invitation.FILE, tmp_path / "s", None)
    with pytest.raises(errors.Refused, match="other shapes than the federation's"):
        federating.partake(place, "gymnax:Acrobot-v1", tmp_path / "p", eval_episodes=0)
    assert not (tmp_path / "p").exists()


# ------------------------------------------------------------------------------------------------ the gate


@pytest.fixture
def gatekeeper(tmp_path):
    """(method, path, changes of the headers) -> status, for a request as a registered node signs it."""
    import base64
    import datetime

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from shoal.runtimes.federated.flower import gate

    keys.make_all(tmp_path / "server", tmp_path / "parties", ["127.0.0.1"], ["a"])
    keys.make_party(tmp_path / "stranger")
    known = gate.registered(tmp_path / "server" / keys.PARTIES)
    assert len(known) == 1
    now = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

    def asked(method="POST", path="/v1/fleet/pull-messages", who="parties/a", late=0.0, **changed):
        key = serialization.load_ssh_private_key((tmp_path / who / keys.KEY).read_bytes(), None)
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        time = (now - datetime.timedelta(seconds=late)).isoformat().encode()
        headers = {
            gate.KEY: base64.b64encode(key.public_key().public_bytes(*form)), gate.TIME: time,
            gate.SIGNATURE: base64.b64encode(key.sign(time, ec.ECDSA(hashes.SHA256()))), b"content-length": b"10",
        }  # fmt: skip
        headers |= {name.replace("_", "-").encode(): value for name, value in changed.items() if value is not None}
        for name, value in changed.items():
            if value is None:
                del headers[name.replace("_", "-").encode()]
        return gate.judged(method, path, headers, known, now)

    return asked


def test_the_gate_lets_registered_nodes_do_their_work_and_nobody_anything_else(gatekeeper):
    assert gatekeeper() == 0
    assert gatekeeper(path="/v1/fleet/activate-node") == 0
    control = ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/pull-task-input", "/docs", "/health")
    for path in (*control, "/v1/fleet/register-node", "/v1/fleet/../control/start-run", "/v1/fleet/pull-messages/"):
        assert gatekeeper(path=path) == 404
    assert gatekeeper(method="GET") == 404
    assert gatekeeper(who="stranger") == 401
    assert gatekeeper(late=301.0) == gatekeeper(late=-301.0) == 401
    assert gatekeeper(flwr_timestamp=b"2030-01-01T00:00:01+00:00") == 401, "another time than was signed"
    for odd in (None, b"", b"!", b"AAAA"):
        assert (
            gatekeeper(flwr_signature=odd) == gatekeeper(flwr_public_key=odd) == gatekeeper(flwr_timestamp=odd) == 401
        )
    assert gatekeeper(content_length=None) == gatekeeper(transfer_encoding=b"chunked") == 411
    assert gatekeeper(content_length=b"1" * 12) == 413


def test_what_the_gate_turns_away_is_not_read_and_never_reaches_the_server():
    import asyncio

    from shoal.runtimes.federated.flower import gate

    sent = []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/control/start-run", "headers": [(b"Content-Length", b"9")]}
    asyncio.run(gate.Gate(frozenset(), None)(scope, receive, send))
    assert [message.get("status") for message in sent] == [404, None]
    assert (b"connection", b"close") in sent[0]["headers"]
