"""Compressors: each file makes a policy smaller or cheaper, and knows how an actor runs the result.

A file here offers ``Config`` (a frozen dataclass whose docstrings are the `--help`) and
``build(config, agent) -> types.Compressor``.
"""
