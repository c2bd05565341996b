"""Peak memory of a run: of this process and of its workers."""

from __future__ import annotations

import time

from shoal.core import types
from shoal.runtimes.crew.messages import peak_mb

EVERY = 1.0  # seconds a look is good for: it takes a millisecond


class Memory:
    """Looks at it now and then."""

    def __init__(self) -> None:
        self._looked_at, self._own = 0.0, 0.0  # when, and megabytes

    def lately_mb(self, progress: types.Progress) -> float:
        """Megabytes: of this process as of a second ago at most, and of its workers."""
        if not self._looked_at or time.monotonic() - self._looked_at >= EVERY:
            self._own, self._looked_at = peak_mb(), time.monotonic()
        return self._own + progress.workers.get("rss_mb", 0.0)
