from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal.core import errors, tree
from shoal.runs import checkpoint
from shoal.runs.checkpoint import write


class State(NamedTuple):
    params: Any
    counters: Any


def state(value: float = 1.0) -> State:
    return State(
        {"dense": {"w": np.full((4, 3), value, np.float32), "b": np.arange(3, dtype=np.float64)}, "none": None},
        (np.int64(7), np.asarray([1, 2], np.uint8)),
    )


def newest(root: pathlib.Path, **options: Any) -> tuple[checkpoint.Loaded, list[str]]:
    said: list[str] = []
    return checkpoint.newest(root, state(), said.append, **options), said


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "checkpoints"
    for step in (100, 200):
        checkpoint.save(folder, step, state(step), {"env_steps": step})
    return folder


def rewrite(folder: pathlib.Path, **changes: Any) -> None:
    body = json.loads((folder / "manifest.json").read_bytes().partition(b"\n")[2])
    text = json.dumps({**body, **changes}).encode()
    (folder / "manifest.json").write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


# ------------------------------------------------------------------------------------------------ roundtrip


def test_roundtrip_of_every_kind_of_leaf(tmp_path: pathlib.Path) -> None:
    whole = {
        "state": state(),
        "jax": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        "half": jnp.asarray([1.5, -2.0], jnp.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float32(3.25),
        "flags": np.asarray([True, False]),
        "int": 12,
        "float": 0.1,
        "bool": True,
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "nothing": (),
    }
    meta = {"env_steps": 5, "versions": {"jax": jax.__version__}, "exact": True, "log": {"metrics.jsonl": 10}}
    saved = checkpoint.save(tmp_path / "checkpoints", 5, whole, meta)
    assert saved.folder.name == "step-000000000005"
    assert saved.bytes == tree.bytes(whole)
    assert 0 < saved.seconds < 60
    back = checkpoint.newest(tmp_path / "checkpoints", whole, pytest.fail)
    assert back.meta == meta
    assert (back.step, back.folder) == (5, saved.folder)
    assert jax.tree.structure(back.tree) == jax.tree.structure(whole)
    assert tree.sha256(back.tree) == tree.sha256(whole)
    assert (back.tree["int"], back.tree["float"], back.tree["bool"]) == (12, 0.1, True)
    assert type(back.tree["bool"]) is bool
    assert back.tree["half"].dtype == jnp.bfloat16
    back.tree["jax"][0, 0] = 9.0  # writable, and no other leaf is touched
    assert back.tree["scalar"] == 3.25


def test_abstract_example_is_enough(root: pathlib.Path) -> None:
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state())
    back = checkpoint.newest(root, like, pytest.fail)
    assert tree.sha256(back.tree) == tree.sha256(state(200))


def test_manifest_is_readable_and_its_first_line_is_the_digest(root: pathlib.Path) -> None:
    digest, _, body = (root / "step-000000000200" / "manifest.json").read_bytes().partition(b"\n")
    assert digest.decode() == hashlib.sha256(body).hexdigest()
    manifest = json.loads(body)
    data = (root / "step-000000000200" / "arrays.bin").read_bytes()
    assert manifest["schema"] == checkpoint.SCHEMA
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["bytes"] == len(data)
    assert manifest["arrays"][".params['dense']['w']"][:2] == ["float32", [4, 3]]


def test_the_last_three_stay_in_order_of_steps(tmp_path: pathlib.Path) -> None:
    for step in (5, 20, 1000, 2 * 10**11, 10**12):  # the last has a digit more than the names are padded to
        checkpoint.save(tmp_path, step, state(), {})
    assert [int(f.name[5:]) for f in checkpoint.folders(tmp_path)] == [10**12, 2 * 10**11, 1000]
    assert sorted(os.listdir(tmp_path)) == sorted(f.name for f in checkpoint.folders(tmp_path))


def test_what_was_just_saved_stays_even_behind_higher_steps(tmp_path: pathlib.Path) -> None:
    for step in (500, 600, 700, 5):
        checkpoint.save(tmp_path, step, state(), {})
    assert (tmp_path / "step-000000000005").is_dir()


def test_a_saved_step_is_never_written_again(root: pathlib.Path) -> None:
    before = {p: p.stat().st_ino for p in root.rglob("*")}
    checkpoint.save(root, 200, state(-1), {})
    assert {p: p.stat().st_ino for p in root.rglob("*")} == before
    assert newest(root)[0].meta == {"env_steps": 200}


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_non_finite_leaves_are_never_written(root: pathlib.Path, bad: float, dtype: str) -> None:
    poisoned = {"w": np.asarray([1.0, bad]).astype(jnp.dtype(dtype))}
    with pytest.raises(checkpoint.NonFiniteError, match=r"\['w'\]"):
        checkpoint.save(root, 300, poisoned, {})
    assert sorted(os.listdir(root)) == ["step-000000000100", "step-000000000200"]


def test_meta_must_be_json(root: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(root, 300, state(), {"loss": float("nan")})
    with pytest.raises(TypeError):
        checkpoint.save(root, 300, state(), {"loss": object()})
    with pytest.raises(TypeError, match="typed PRNG key"):
        checkpoint.save(root, 300, {"key": jax.random.key(0)}, {})
    assert len(os.listdir(root)) == 2


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (state()._replace(params={}), "unknown leaf"),
        (state()._replace(counters=(np.int64(0), np.zeros(2, np.uint8), 1)), "lacks leaf .counters"),
        (state()._replace(counters=(np.int32(0), np.zeros(2, np.uint8))), "needed is int32"),
        (state()._replace(counters=(np.int64(0), np.zeros(3, np.uint8))), r"needed is uint8\[3\]"),
    ],
)
def test_an_intact_checkpoint_of_another_configuration_is_named_and_kept(
    root: pathlib.Path, like: Any, words: str
) -> None:
    with pytest.raises(errors.NoCheckpoint, match=words):
        checkpoint.newest(root, like, pytest.fail)
    assert sorted(os.listdir(root)) == ["step-000000000100", "step-000000000200"]


def test_newer_schema_ends_with_exit_code_4_and_nothing_set_aside(root: pathlib.Path) -> None:
    rewrite(root / "step-000000000200", schema=checkpoint.SCHEMA + 1)
    with pytest.raises(errors.NoCheckpoint, match="schema 2") as caught:
        newest(root)
    assert caught.value.exit_code == 4
    assert sorted(os.listdir(root)) == ["step-000000000100", "step-000000000200"]


def test_none_usable(tmp_path: pathlib.Path, root: pathlib.Path) -> None:
    with pytest.raises(errors.NoCheckpoint, match="none was saved"):
        newest(tmp_path / "elsewhere")
    for folder in checkpoint.folders(root):
        (folder / "arrays.bin").unlink()
    with pytest.raises(errors.NoCheckpoint, match="all 2 found are damaged"):
        newest(root)


# ------------------------------------------------------------------------------------------------ damage (fault 2)


def flip(folder: pathlib.Path, rng: np.random.Generator) -> None:
    path = folder / str(rng.choice(["arrays.bin", "manifest.json"]))
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def truncate(folder: pathlib.Path, rng: np.random.Generator) -> None:
    path = folder / str(rng.choice(["arrays.bin", "manifest.json"]))
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def empty(folder: pathlib.Path, rng: np.random.Generator) -> None:
    os.truncate(folder / str(rng.choice(["arrays.bin", "manifest.json"])), 0)


def missing(folder: pathlib.Path, rng: np.random.Generator) -> None:
    (folder / str(rng.choice(["arrays.bin", "manifest.json"]))).unlink()


def longer(folder: pathlib.Path, rng: np.random.Generator) -> None:
    with open(folder / str(rng.choice(["arrays.bin", "manifest.json"])), "ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 9))))


def foreign(folder: pathlib.Path, rng: np.random.Generator) -> None:
    name = str(rng.choice(["arrays.bin", "manifest.json"]))
    if rng.random() < 0.5:
        shutil.copy(folder.with_name("step-000000000100") / name, folder / name)
    else:
        (folder / name).write_bytes(rng.bytes(int(rng.integers(1, 300))))


def no_folder(folder: pathlib.Path, rng: np.random.Generator) -> None:
    shutil.rmtree(folder)
    if rng.random() < 0.5:
        folder.mkdir()
    else:
        folder.write_bytes(b"not a folder")


def wrong_name(folder: pathlib.Path, _: np.random.Generator) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-000000000100"), folder)


def malformed(folder: pathlib.Path, rng: np.random.Generator) -> None:
    key = str(rng.choice(["schema", "step", "arrays", "bytes", "sha256", "meta"]))
    rewrite(folder, **{key: [None, "x", [], -1][int(rng.integers(4))]})


DAMAGE = (flip, flip, flip, truncate, truncate, empty, missing, longer, foreign, no_folder, wrong_name, malformed)


def test_every_damage_is_detected_named_and_set_aside(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    latest, copy = root / "step-000000000200", tmp_path / "copy"
    shutil.copytree(latest, copy)
    for trial in range(20 * len(DAMAGE)):  # 240
        harm = DAMAGE[trial % len(DAMAGE)]
        harm(latest, rng)
        assert checkpoint.verify(latest), harm.__name__
        loaded, said = newest(root)
        assert loaded.step == 100, harm.__name__
        assert tree.sha256(loaded.tree) == tree.sha256(state(100))
        assert len(said) == 1
        assert "step-000000000200 is damaged" in said[0]
        assert "\n" not in said[0]
        (bad,) = root.glob("bad-step-000000000200-*")
        assert bad.name in said[0]
        shutil.rmtree(bad) if bad.is_dir() else bad.unlink()
        shutil.copytree(copy, latest)
    assert newest(root)[0].step == 200


def test_a_step_may_go_bad_more_than_once(root: pathlib.Path) -> None:
    for _ in range(3):
        empty(root / "step-000000000200", np.random.default_rng(0))
        assert newest(root)[0].step == 100
        checkpoint.save(root, 200, state(200), {})
    assert len(list(root.glob("bad-*"))) == 3
    assert newest(root)[0].step == 200


def test_readers_that_do_not_own_the_run_rename_nothing(root: pathlib.Path) -> None:
    empty(root / "step-000000000200", np.random.default_rng(0))
    before = sorted(os.listdir(root))
    loaded, said = newest(root, set_aside=False)
    assert loaded.step == 100
    assert "left in place" in said[0]
    assert sorted(os.listdir(root)) == before
    with pytest.raises(errors.NoCheckpoint, match="damaged"):
        checkpoint.load(root / "step-000000000200", state())
    assert checkpoint.load(root / "step-000000000100", state()).step == 100
    assert checkpoint.verify(root / "step-000000000100") is None


def test_foreign_names_are_left_alone(root: pathlib.Path) -> None:
    (root / "notes.txt").write_text("mine")
    (root / "step-abc").mkdir()
    loaded, said = newest(root)
    assert (loaded.step, said) == (200, [])
    assert (root / "notes.txt").exists()


def test_stale_temporaries_are_ignored_and_removed(root: pathlib.Path) -> None:
    (root / ".tmp-000000000300-abc").mkdir()
    (root / ".tmp-000000000300-abc" / "arrays.bin").write_bytes(b"half")
    (root / ".tmp-file").write_bytes(b"")
    loaded, said = newest(root)
    assert (loaded.step, said) == (200, [])
    assert checkpoint.remove_stale(root) == 2
    assert sorted(os.listdir(root)) == ["step-000000000100", "step-000000000200"]
    assert checkpoint.remove_stale(root / "nowhere") == 0


# ------------------------------------------------------------------------------------------------ failures (fault 3)


class Failing:
    """Counts file operations and makes one of them fail."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def wrap(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return call

    def open(self, *args: Any) -> Any:
        file = self.wrap(open)(*args)
        outer = self

        class File:
            write = staticmethod(outer.wrap(file.write))
            flush = staticmethod(outer.wrap(file.flush))
            fileno = file.fileno

            def __enter__(self) -> File:
                return self

            def __exit__(self, *_: Any) -> None:
                file.close()
                outer.wrap(lambda: None)()

        return File()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        class System:
            O_RDONLY = os.O_RDONLY
            open, fsync, rename = map(staticmethod, map(self.wrap, (os.open, os.fsync, os.rename)))
            close = staticmethod(os.close)

        patch.setattr(write, "os", System)
        patch.setattr(write, "open", self.open, raising=False)
        patch.setattr(pathlib.Path, "mkdir", self.wrap(pathlib.Path.mkdir))


@pytest.mark.parametrize("fresh", [False, True])
def test_every_file_operation_may_fail(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, fresh: bool) -> None:
    at, said_of_save = 0, []
    while True:
        at += 1
        root = tmp_path / f"{fresh}-{at}" / "checkpoints"
        root.parent.mkdir()
        for step in () if fresh else (1, 2, 3):
            checkpoint.save(root, step, state(step), {})
        failing = Failing(at)
        with monkeypatch.context() as patch:
            failing.install(patch)
            try:
                checkpoint.save(root, 4, state(4), {})
            except checkpoint.NotSaved as error:
                said_of_save.append(str(error))
        assert not list(root.glob(".tmp-0*"))
        try:
            loaded, said = newest(root)
        except errors.NoCheckpoint:
            assert fresh
        else:
            assert said == []
            assert loaded.step in ((4,) if fresh else (3, 4))
            assert tree.sha256(loaded.tree) == tree.sha256(state(loaded.step))
        if failing.calls < at:
            break
    assert all("No space left" in line and "\n" not in line for line in said_of_save)
    assert (
        len(said_of_save) >= 12
    )  # mkdir, two files of open + writes + flush + fsync + close, two directory syncs, rename
    assert newest(root)[0].step == 4


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs the names of open files")
def test_everything_is_on_the_disk_before_and_after_the_rename(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(handle: int) -> None:
        name = pathlib.Path(os.readlink(f"/proc/self/fd/{handle}")).name
        done.append("temporary folder" if name.startswith(".tmp-") else name)
        fsync(handle)

    def record_rename(source: pathlib.Path, target: pathlib.Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    checkpoint.save(tmp_path / "run" / "checkpoints", 1, state(), {})
    assert done == ["run", "arrays.bin", "manifest.json", "temporary folder", "rename", "checkpoints"]


def test_a_read_only_folder_is_one_clear_line(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(checkpoint.NotSaved, match="Read-only file system; earlier checkpoints are untouched"):
            checkpoint.save(root, 300, state(), {})
        empty(root / "step-000000000200", np.random.default_rng(0))
        loaded, said = newest(root)  # cannot be set aside either: said, and the one before is used
        assert loaded.step == 100
        assert "could not be set aside" in said[0]
    with pytest.raises(errors.ShoalError, match="was not saved"):
        checkpoint.save(root / "step-000000000100" / "arrays.bin", 1, state(), {})


SAVER = """
import sys, pathlib, itertools, numpy as np
from shoal.runs import checkpoint
root = pathlib.Path(sys.argv[1])
first = int(sys.argv[2])
with checkpoint.lock(root.parent):
    checkpoint.remove_stale(root)
    print("ready", flush=True)
    for step in itertools.count(first):
        checkpoint.save(root, step, {"w": np.full(50_000, step, np.float32)}, {"step": step})
"""


def test_a_kill_at_any_moment_leaves_a_loadable_newest(tmp_path: pathlib.Path) -> None:
    root, like = tmp_path / "checkpoints", {"w": np.zeros(50_000, np.float32)}
    delays = np.random.default_rng(1).uniform(0.02, 0.3, size=5)
    reached = 0
    for delay in delays:
        command = [sys.executable, "-c", SAVER, str(root), str(reached + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            while not any(int(folder.name[5:]) > reached for folder in checkpoint.folders(root)):
                time.sleep(0.005)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        loaded = checkpoint.newest(root, like, pytest.fail)
        assert loaded.step > reached
        assert loaded.meta == {"step": loaded.step}
        assert (loaded.tree["w"] == loaded.step).all()
        reached = loaded.step


# ------------------------------------------------------------------------------------------------ owning a run


def test_two_processes_never_hold_one_folder(tmp_path: pathlib.Path) -> None:
    with checkpoint.lock(tmp_path):
        with pytest.raises(errors.Refused, match=f"in use by another process .id {os.getpid()}") as caught:
            checkpoint.lock(tmp_path).__enter__()
        assert "\n" not in str(caught.value)
        code = (
            "import sys, pathlib; from shoal.runs import checkpoint\n"
            "with checkpoint.lock(pathlib.Path(sys.argv[1])): pass"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
        assert b"Refused" in done.stderr
    with checkpoint.lock(tmp_path):
        pass
    with pytest.raises(errors.Refused, match="cannot lock"):
        checkpoint.lock(tmp_path / "nowhere").__enter__()


def test_saving_costs_two_percent_at_most() -> None:
    assert checkpoint.due(0.0, 0.0)
    assert not checkpoint.due(1.0, 49.9)
    assert checkpoint.due(1.0, 50.0)
    assert not checkpoint.due(0.1, 20.0, every=30.0)
    assert checkpoint.due(0.1, 30.0, every=30.0)
