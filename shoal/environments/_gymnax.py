"""What Shoal uses of gymnax, without the plotting libraries that it imports beside its environments."""

from __future__ import annotations

from shoal.environments import _deferred

with _deferred.imports("matplotlib", "matplotlib.colors", "matplotlib.pyplot", "seaborn"):
    import gymnax
    from gymnax.environments import spaces

make = gymnax.make
registered_envs = gymnax.registered_envs

__all__ = ["make", "registered_envs", "spaces"]
