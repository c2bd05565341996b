"""Ways of training: each file or folder is one, and receives algorithm, simulator, corrector and compressor as values.

A choice here offers

* ``Config``: a frozen dataclass whose docstrings are the `--help`;
* ``ways(config) -> types.Ways``: what the runtime can do with these settings, declared;
* ``check(config, experiment, opened) -> None``: refuses what does not fit, before any process starts;
* ``build(config) -> types.Runtime``; where `ways` says ``seeds`` it is a `types.ManySeeds`, where it says ``records``
  a `types.Recording`.

Concurrency lives only here. What several share are the folders ``crew`` (supervised workers, shared memory),
``experience`` (rollouts, segments, simulators stepped as one) and ``members`` (one axis over seeds).
"""
