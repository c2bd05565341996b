"""Simulators in worker processes: what such a process imports, computes and holds."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import tomllib
import types as python_types

import numpy as np
import pytest

from shoal import environments
from shoal.runtimes.experience import pools
from tests import scripted

PLAIN = """
import time, gymnasium
env = gymnasium.make("CartPole-v1")
env.reset(seed=0)
for _ in range(100):
    if any(env.step(0)[2:4]):
        env.reset()
print(time.process_time())
"""


@contextlib.contextmanager
def pooled(env_id, count=1, processes=1):
    """Environments in worker processes; what breaks there fails the test."""
    opener = environments.Opener(env_id, environments.Config())
    parts = python_types.SimpleNamespace(environment=opener, spec=opener.open().spec)
    vector = pools.Pooled(parts, 0, count, 0, processes, lambda *fault: pytest.fail("\n".join(fault)))
    try:
        yield vector
    finally:
        vector.close()


def witnesses(count=2, steps=100):
    """What the processes of so many environments tell after some steps ``[count, len(HEAVY) + 2]``."""
    with pooled("tests.scripted:Witness-v0", count, count) as vector:
        vector.reset()
        for _ in range(steps):
            told = vector.step(np.zeros(count, int)).obs
    return told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_only_steps_simulators_imports_no_jax_and_stays_small(monkeypatch):
    """0.2 s of processor time and 40 MB where the whole experiment took 1.4 s and 190 MB."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # or each worker imports pytest again
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    told = witnesses()
    for row in told[:, :-2]:
        assert [name for name, imported in zip(scripted.HEAVY, row, strict=True) if imported] == []
    alone = float(subprocess.run([sys.executable, "-c", PLAIN], check=True, capture_output=True, text=True).stdout)
    seconds, megabytes = told[:, -2].min(), told[:, -1].max()
    assert seconds < 2.5 * alone, f"{seconds:.2f} s of processor time, CartPole without Shoal {alone:.2f} s"
    assert megabytes < 80


def test_simulators_in_jax_share_its_compilation_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path))
    with pooled("probe:constant") as vector:
        assert vector.reset().tolist() == [[1.0]]
        assert vector.step(np.zeros(1, int)).outcome.reward.tolist() == [1.0]
    assert list(tmp_path.glob("*begin*"))
    assert list(tmp_path.glob("*advance*"))


def test_the_command_is_imported_by_its_workers_at_no_cost():
    """Spawned processes run the parent's main module once more, under another name."""
    code = "import runpy, sys; runpy.run_module('shoal.__main__', run_name='__mp_main__'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {name for name in done.stdout.split() if name.startswith("shoal.")} <= {"shoal.__main__"}
    project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"shoal": "shoal.__main__:main"}
