"""Correctors: each file turns one stream of experience into targets, correcting for who acted (or not).

A file here offers ``Config`` (a frozen dataclass whose docstrings are the `--help`) and
``build(config) -> types.Corrector``.
"""
