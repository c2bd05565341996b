"""What hogwild's workers would do as threads of one process: `python benchmarks/_threads.py WORKERS STEPS`.

The very code of the workers on the very arrays, but for the processes. Prints environment steps per second, start-up
and compilation apart; why there are processes (`hogwild.py`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

ALONE = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1", "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Measure once."""
    os.environ.update(ALONE)  # as the workers, before anything is compiled
    workers, steps = map(int, sys.argv[1:])
    print(rate(workers, steps))


def rate(workers: int, steps: int) -> float:
    """Environment steps per second of A3C on CartPole-v1."""
    from shoal import experiment, presets
    from shoal.runtimes import _actor_learner, _learner, hogwild

    experiment.cache()
    settings = {"runtime": {"workers": workers}}
    made, _ = presets.resolve(presets.Request("a3c", "CartPole-v1", steps, settings=settings))
    parts = experiment.build(made).parts
    run = hogwild._Run(made.configs["runtime"], parts, 0, steps, None, None)
    link: Any = SimpleNamespace(orphaned=lambda: False, send=lambda _: None)  # nobody is told
    crew = []
    for worker in range(workers):
        (job,) = run._job(worker, 0)
        learner = _learner.Learner(_learner.Compiled(job.rebuild(), job.start), worker, job.incarnation)
        learner.warm_up(job.block)
        crew.append(_actor_learner._Worker(learner, job, link))

    def work(one: Any) -> None:
        while not one.over():
            one.cycle()
            one.tell()

    threads = [threading.Thread(target=work, args=(one,)) for one in crew]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = int(run._block["steps"].sum())
    seconds = time.perf_counter() - began
    for one in crew:
        one.learner.segments.close()
    run._block.close()
    return done / seconds


if __name__ == "__main__":
    main()
