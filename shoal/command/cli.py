"""The command line: usage, the verb that was typed, exit codes. Help and every error in the arguments come without JAX.

A verb is a file of `shoal.command.verbs` with ``run(typed) -> exit code``, imported when it is typed. Options are
dataclass fields read by tyro; a preset's own parts become option groups (``--algorithm.entropy-cost``). ``--json``
prints one object last on stdout; everything for people goes to stderr. Exit codes: `shoal.core.errors`.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from etils import epy

from shoal import __version__
from shoal.core import errors

with epy.lazy_imports():
    from shoal import experiment

USAGE = """\
usage: shoal VERB ...

  train PRESET      train a preset               shoal train a3c --env CartPole-v1 --workers 2 --until solved
  resume RUN        continue an interrupted run  shoal resume runs/a3c-CartPole-v1-0-...
  eval RUN          play episodes with the trained policy
  report RUN...     one HTML page about one or more runs
  replay RUN        repeat a run of several workers in its recorded order, to the same bits
  compare PRESET... train presets at equal steps, draw one figure   shoal compare a2c ppo dqn --seeds 5
  tune PRESET       search settings within a budget of steps   shoal tune ppo --env gymnax:Acrobot-v1 --budget 2e6
  federate WHO      one federation over several machines: server, party, keys   shoal federate --help
  export RUN        write the policy as an ONNX file
  check-env ID      what an agent will see of an environment, and whether it keeps its promises
  list [KIND]       presets, envs, algorithms, compressors, correctors, runtimes
  bench NAME        run a benchmark of the checkout

`shoal VERB --help` tells the options of a verb, `shoal train PRESET --help` those of a preset's parts.
"""

VERBS = (
    "train", "resume", "eval", "report", "compare", "tune", "replay", "export", "federate", "check-env", "list",
    "bench",
)  # fmt: skip
KEEPING = ("train", "resume", "compare", "federate")  # lowered programs, see `programs`


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; the process's own when None.

    Returns:
        The exit code.
    """
    typed = list(sys.argv[1:] if argv is None else argv)
    _print_anywhere()
    try:
        return _dispatch(typed)
    except errors.ShoalError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("shoal: left at once; what was saved before is intact", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _print_anywhere() -> None:
    """A terminal that cannot show a letter shows a question mark instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _dispatch(typed: list[str]) -> int:
    if not typed or typed[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if typed else 2
    if typed[0] in ("-V", "--version", "version"):
        print(f"shoal {__version__}")
        return 0
    name, rest = typed[0], typed[1:]
    if name not in VERBS:
        raise errors.unknown("command", name, VERBS, "`shoal --help` lists them.")
    verb = importlib.import_module(f"shoal.command.verbs.{name.replace('-', '_')}")
    if name not in KEEPING:
        return verb.run(rest)
    with experiment.keep_programs():  # nobody has changed code in memory: the process is ours
        return verb.run(rest)


if __name__ == "__main__":
    sys.exit(main())
