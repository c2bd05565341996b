"""One run in its folder: the observer every runtime reports to, and what it keeps, a file a subject.

`observing` is the observer. `scores` counts episodes and their returns, `lives` adds up what earlier lives of the run
took, `evaluations` knows when the policy is judged on the way and which was the best, `hearing` which signal came,
`ending` why it ends early, `memory` what it took; `accounts` is all of these, `program` what several seeds share. From
them `telling` writes metrics and the status, `saving` checkpoints and the runtime's artefacts, `summary` the object of
``summary.json``.
"""

from __future__ import annotations

from shoal.runs.session.evaluations import Judge, Still
from shoal.runs.session.hearing import Heard
from shoal.runs.session.observing import Session
from shoal.runs.session.program import Program
from shoal.runs.session.saving import save_every

__all__ = ["Heard", "Judge", "Program", "Session", "Still", "save_every"]
