"""Every example runs to its end, as a person would start it, with few steps."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))
STEPS = 2000
DEADLINE = 150  # seconds, on a machine that has other things to do


def test_examples_are_there():
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    command = [sys.executable, str(path), "--steps", str(STEPS)]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example prints what it found"
    assert list((tmp_path / "runs").iterdir()), "an example leaves its run where it was started"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert f"python examples/{path.name}" in lines[2], "the docstring shows the command"
