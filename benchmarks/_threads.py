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

from shoal.core import compilation

ALONE = {
    "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen=false {compilation.SCHEDULER}",
    "NPROC": "1",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    """Measure once."""
    os.environ.update(ALONE)  # as the workers, before anything is compiled
    workers, steps = map(int, sys.argv[1:])
    print(rate(workers, steps))


def rate(workers: int, steps: int) -> float:
    """Environment steps per second of A3C on CartPole-v1."""
    from shoal import experiment
    from shoal.experiment import presets
    from shoal.runtimes.hogwild import parent, process

    compilation.call_here()
    compilation.share()
    settings = {"runtime": {"workers": workers}}
    made, _ = presets.resolve(presets.Request("a3c", "CartPole-v1", steps, settings=settings))
    parts = experiment.build(made).parts
    run = parent.Run(made.configs["runtime"], parts, 0, steps, None, None)
    nobody: Any = SimpleNamespace(stopped=False, gone=lambda: False)  # is told
    crew = [process.ActorLearner(run.job(worker, 0), nobody) for worker in range(workers)]

    def work(one: Any) -> None:
        while not one.over:
            if not one.turn():
                one.wait()

    threads = [threading.Thread(target=work, args=(one,)) for one in crew]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = int(run._block["steps"].sum())
    seconds = time.perf_counter() - began
    for one in crew:
        one.close()
    run._block.close()
    return done / seconds


if __name__ == "__main__":
    main()
