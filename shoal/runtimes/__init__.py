"""Ways of training: each file is one, and receives algorithm, simulator, corrector and compressor as values.

A file here offers ``Config`` (a frozen dataclass whose docstrings are the `--help`), ``CAPTURES`` (True when gradients
are to be left in the state for the runtime to apply), ``EXACT_RESUME`` (True when a resumed run has the bits of an
uninterrupted one), ``streams(config)`` (environments that one learner learns from), ``check(config, experiment, opened)
-> None`` (refuses what does not fit, before any process starts) and ``build(config) -> types.Runtime``; where there is
need also ``pads(config)`` (whether rollouts may end in padding: `types.Rollout.used`), ``SEEDS`` (True when it can run
several seeds in one program: `types.ManySeeds`) and ``prepare(config, algorithm, network)`` (what is to be settled
before the first array is made), ``prepare_seeds(seeds)`` (before JAX is imported), ``LEARNS`` (of runtimes for rules
that do not learn from rollouts: see `algorithms`), ``RULES`` (the optimisers it applies, if not all), ``races(config)``
(what keeps workers from racing; "" where none do), and ``replays(config)`` with ``replay`` (of races that are recorded:
see `hogwild`). Concurrency lives only here. Files that begin with an underscore are what runtimes share: rollouts, the
supervised pool of processes, shared memory.
"""
