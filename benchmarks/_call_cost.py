"""What the calls of a hogwild worker cost: `python benchmarks/_call_cost.py`, one JSON object.

The gradient of A3C over a segment of five CartPole-v1 steps, 64 hidden units, by the very function the workers call;
and a compiled call that adds two numbers, which is the least any call can take. Medians, in microseconds, and how
often the process gave up its core of its own will in 6,400 gradients: each time it waits for another thread.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import _threads

CALLS = 3000
BEFORE = 200  # calls that are not counted
SWITCHED = 6_400  # calls over which context switches are counted


def main() -> None:
    """Measure once."""
    os.environ.update(_threads.ALONE)  # as the workers
    taken, switches = gradient()
    print(json.dumps({"gradient_us": taken, "call_us": call(), "context_switches": switches}))


def gradient() -> tuple[float, int]:
    """Of a worker that never acts: its segment stays the same."""
    from shoal import experiment
    from shoal.core import compilation
    from shoal.experiment import presets
    from shoal.runtimes.hogwild import learning, parent

    compilation.call_here()
    compilation.share()
    settings: Any = {"algorithm": {"rollout_length": 5}, "network": {"hidden": (64,)}, "runtime": {"workers": 1}}
    made, _ = presets.resolve(presets.Request("a3c", "CartPole-v1", 1000, settings=settings))
    parts = experiment.build(made).parts
    run = parent.Run(made.configs["runtime"], parts, 0, 1000, None, None)
    job = run.job(0, 0)
    learner = learning.Learner(learning.Compiled(parts, job.start), 0, 0)
    learner.warm_up(job.block)
    learner.read(job.block)
    learner.compute()

    def once() -> None:
        learner._compiled.gradient(learner._words, learner._apart)

    found = median(once)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(SWITCHED):
        once()
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before
    learner.segments.close()
    run._block.close()
    return found, switches


def call() -> float:
    """Of two numbers in, one out, waited for."""
    import jax
    import numpy as np

    add = jax.jit(lambda a, b: a + b)
    one = np.float32(1.0)
    return median(lambda: np.asarray(add(one, one)))


def median(called: Callable[[], Any]) -> float:
    """Microseconds of a call."""
    for _ in range(BEFORE):
        called()
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        called()
        taken.append(time.perf_counter() - began)
    return 1e6 * statistics.median(taken)


if __name__ == "__main__":
    main()
