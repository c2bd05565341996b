"""Where worker processes cannot start that is found out before any does, and before a folder is made."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import faults

TRAIN = 'shoal.train("a3c", env="CartPole-v1", workers=2, steps=200, quiet=True, eval_episodes=0)'
SLOW = 'shoal.train("a2c", env="tests.faults.envs:Slow-v0", steps=80, eval_episodes=0, runtime={"environments": 2})'
MINE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
class Cell(CartPoleEnv): pass
gymnasium.register("Cell-v0", entry_point=Cell)
"""


def run(text, tmp_path, *, name="script.py", typed=None):
    (tmp_path / name).write_text(text)
    return subprocess.run(
        [sys.executable, name] if typed is None else [sys.executable, *typed], cwd=tmp_path, check=False, text=True,
        capture_output=True, timeout=faults.LONGEST, input=text, env={**os.environ, "PYTHONPATH": str(faults.ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "typed", "words"),
    [
        (f"import shoal\n\n{TRAIN}\n", None, "line 3 of script.py is not under `if __name__"),
        (f"import shoal\n{TRAIN}\n", ["-"], "read from standard input"),
        (
            "import multiprocessing, shoal\n"
            f"def one(_):\n    {TRAIN}\n"
            "if __name__ == '__main__':\n"
            "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        pool.map(one, [0])\n",
            None,
            "daemonic",
        ),
    ],
    ids=["no guard", "standard input", "pool"],
)
def test_it_is_refused_in_one_line_and_nothing_is_left(text, typed, words, tmp_path):
    done = run(text, tmp_path, typed=typed)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("shoal.core.errors.Refused: the hogwild runtime starts worker processes, but ")
    assert words in last
    assert not (tmp_path / "runs").exists()


def test_where_processes_are_only_measured_simulators_are_stepped_here_and_that_is_said(tmp_path):
    done = run(f"import shoal\nprint({SLOW}.summary['status'])\n", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "completed\n"
    assert "simulators are stepped in this process: line 2 of script.py" in done.stderr


def test_what_is_defined_at_a_prompt_stays_there(tmp_path):
    """As `python -c` and a notebook have it: a main module without a file."""
    code = f"""{MINE}
import shoal
from shoal.core import errors
from shoal import environments
for env in ("Cell-v0", Cell):
    try:
        shoal.train("a3c", env=env, workers=2, steps=100)
    except errors.Refused as refused:
        print(refused)
assert environments.elsewhere("CartPole-v1") == environments.elsewhere("tests.faults.envs:Slow-v0") == ""
print(shoal.train("a2c", env=Cell, steps=80, quiet=True, eval_episodes=0).summary["status"])
"""
    done = run("", tmp_path, typed=["-c", code])
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert "Cell-v0 is known to this prompt or notebook alone" in first
    assert "give my_envs:Cell" in second
    assert third == "completed"


@pytest.mark.slow
def test_a_notebook_is_a_place_like_any_other(tmp_path):
    """An environment of a cell trains and is evaluated; what needs workers says where to put it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        MINE,
        "import shoal\nrun = shoal.train('a2c', env=Cell, steps=400, eval_episodes=2)\nrun",
        "run.act(Cell().reset(seed=0)[0])",
        "try:\n    shoal.train('a3c', env='Cell-v0', steps=100)\nexcept Exception as refused:\n    print(refused)",
        "shoal.train('a3c', env='CartPole-v1', workers=2, steps=400, eval_episodes=0).summary['status']",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    nbclient.NotebookClient(book, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        "".join(out.get("text") or out["data"]["text/plain"] for out in cell.outputs if out.get("name") != "stderr")
        for cell in book.cells
    ]
    assert shown[1].startswith("Run of a2c on __main__:Cell")
    assert shown[2] in ("0", "1")
    assert "is known to this prompt or notebook alone" in shown[3]
    assert shown[4] == "'completed'"
