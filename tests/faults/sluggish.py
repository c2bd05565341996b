"""Shoal where something takes a minute that knows no signals: ``python -m tests.faults.sluggish VERB ...``.

The environment variable SHOAL_TEST_SLOW says what: ``update``, compiling what A2C learns with; ``greedy``, the compiled
games of an evaluation.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from shoal.algorithms import actor_critic
from shoal.runs import evaluation

LONG = 60.0  # seconds; as in XLA, nobody who waits for it hears anything

_build, _playing = actor_critic.build, evaluation._playing


def _learns_late(*given: Any) -> Any:
    agent = _build(*given)

    def update(*learning: Any) -> Any:
        time.sleep(LONG)
        return agent.update(*learning)

    return agent._replace(update=update)


def _plays_late(*given: Any) -> Any:
    play = _playing(*given)

    def late(*arguments: Any) -> Any:
        time.sleep(LONG)
        return play(*arguments)

    return late


if os.environ["SHOAL_TEST_SLOW"] == "update":
    actor_critic.build = _learns_late
else:
    evaluation._playing = _plays_late

if __name__ == "__main__":
    from shoal.__main__ import main

    sys.exit(main())
