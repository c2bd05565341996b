"""Several seeds in one program: a session each in a folder each, one line on the screen, one summary.

The group's folder holds ``config.json`` with the list of ``seeds``, ``seed-<s>/`` for each (an ordinary run folder),
``summary.json`` and ``report.html``.
"""

from __future__ import annotations

from shoal.runs.group.board import Board
from shoal.runs.group.sessions import Asked, Ended, Sessions, run, seed_folder, summary

__all__ = ["Asked", "Board", "Ended", "Sessions", "run", "seed_folder", "summary"]
