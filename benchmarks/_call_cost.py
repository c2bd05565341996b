"""What the calls of a hogwild worker cost: `python benchmarks/_call_cost.py`, one JSON object.

The gradient of A3C over a segment of five CartPole-v1 steps, 64 hidden units, by the very function the workers call;
and a compiled call that adds two numbers, which is the least any call can take. Medians, in microseconds.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import _threads

CALLS = 3000
BEFORE = 200  # calls that are not counted


def main() -> None:
    """Measure once."""
    os.environ.update(_threads.ALONE | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"})  # as the workers
    print(json.dumps({"gradient_us": gradient(), "call_us": call()}))


def gradient() -> float:
    """Of a worker that never acts: its segment stays the same."""
    from shoal import experiment, presets
    from shoal.runtimes import _learner, hogwild

    experiment.cache()
    settings: Any = {"algorithm": {"rollout_length": 5}, "network": {"hidden": (64,)}, "runtime": {"workers": 1}}
    made, _ = presets.resolve(presets.Request("a3c", "CartPole-v1", 1000, settings=settings))
    parts = experiment.build(made).parts
    run = hogwild._Run(made.configs["runtime"], parts, 0, 1000, None, None)
    (job,) = run._job(0, 0)
    learner = _learner.Learner(_learner.Compiled(job.rebuild(), job.start), 0, 0)
    learner.warm_up(job.block)
    learner.read(job.block)
    learner.compute()
    found = median(lambda: learner._compiled.gradient(learner._words, learner._apart))
    learner.segments.close()
    run._block.close()
    return found


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
