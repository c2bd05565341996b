"""However a run ends, nothing of it stays: no process, no shared memory, no temporary file."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests import faults

WAYS = {
    "hogwild": ("a3c", "--workers", 2),
    "host-processes": ("a2c", "--runtime.processes", 2, "--runtime.environments", 2),
    "population": (
        *(
            "pbt_ppo",
            "--members",
            2,
            "--algorithm.rollout-length",
            8,
            "--algorithm.minibatches",
            2,
            "--network.hidden",
            8,
        ),
        *("--runtime.environments", 2, "--runtime.interval", 64, "--runtime.episodes", 1, "--runtime.processes", 2),
    ),
    "parameter-server": ("gorila", "--workers", 1, "--runtime.shards", 1, "--network.hidden", 8),
}
ENDINGS = ["success", "failure", "Ctrl-C", "SIGTERM", "kill -9", "kill -9 early", "kill -9 stuck"]
QUICK = {"parameter-server": ["kill -9"], "population": ["SIGTERM"]}  # their processes are those that others tested
CASES = [
    pytest.param(way, ending, marks=[pytest.mark.slow] if ending not in QUICK.get(way, ENDINGS) else [])
    for way in WAYS
    for ending in ENDINGS
]


@pytest.mark.parametrize(("way", "ending"), CASES)
def test_nothing_stays(way, ending, tmp_path):
    out, temporary = tmp_path / "run", tmp_path / "tmp"
    temporary.mkdir()
    shared = set(Path("/dev/shm").iterdir())
    env = {"failure": "OnlyInTheParent", "kill -9 stuck": "Stuck"}.get(ending, "Slow")
    once = tmp_path / "once"
    steps = 400 if ending == "success" else 10**9
    with faults.Process(
        "train", *WAYS[way], "--env", f"tests.faults.envs:{env}-v0", "--steps", steps, "--out", out,
        "--eval-episodes", 0, TMPDIR=temporary, SHOAL_TEST_ONCE=once,
    ) as process:  # fmt: skip
        if ending == "kill -9 early":
            faults.wait(process.workers, "the first worker")
        elif ending == "kill -9 stuck":
            faults.wait(once.exists, "a worker that no word reaches")
        elif ending not in ("success", "failure"):
            faults.wait_for_training(process, out)
            assert len(process.workers()) == 2
        if ending == "Ctrl-C":
            process.ctrl_c()
        elif ending == "SIGTERM":
            process.signal(signal.SIGTERM)
        elif ending.startswith("kill -9"):
            process.signal(signal.SIGKILL)
        code = process.ended().code
        expected = {"success": 0, "failure": 3, "Ctrl-C": 75, "SIGTERM": 75}.get(ending, -signal.SIGKILL)
        assert code == expected
        faults.wait(lambda: not process.left(), "the run's processes to end", faults.ENDING)
    new = set(Path("/dev/shm").iterdir()) - shared
    assert not [path for path in new if path.name.startswith(("shoal", "psm_", "sem."))]
    assert not list(temporary.rglob("*")), "temporary files are left"
