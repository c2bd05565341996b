"""Members over the devices of a machine: each computes its share, and they have nothing to tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

AXIS = "members"


class Cut:
    """Several members spread over the devices."""

    def __init__(self, members: int, *, fill: bool) -> None:
        """Args: `fill`, shares are made equal by twins of the last member; else there are fewer of them."""
        devices = min(members, jax.local_device_count())
        if not fill:
            devices = next(count for count in range(devices, 0, -1) if members % count == 0)
        self.members, self.devices, self._lanes = members, devices, members + -members % devices
        self._axis = jax.sharding.PartitionSpec(AXIS)
        auto = (jax.sharding.AxisType.Auto,)  # where what is gathered from all of them lies, the compiler knows
        mesh = jax.make_mesh((devices,), (AXIS,), devices=jax.local_devices()[:devices], axis_types=auto)
        self._where = jax.sharding.NamedSharding(mesh, self._axis)
        self._everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    @property
    def each(self) -> int:
        """Members on one device."""
        return self._lanes // self.devices

    def over(
        self, every: Callable, given: Sequence[bool] = (True, True), back: Sequence[bool] = (True, True)
    ) -> Callable:
        """A function of every member, on each device of those of its share.

        Args:
            every: Of trees; returns a tuple of trees.
            given: Of each argument, whether its leaves have the members in front; else every device has all of it.
            back: Likewise of what it returns.
        """
        if self.devices == 1:
            return every
        whole = jax.sharding.PartitionSpec()
        # Unchecked: the check wants every branch of a rule to say that its numbers differ between devices.
        return jax.shard_map(
            every, mesh=self._where.mesh,
            in_specs=tuple(self._axis if cut else whole for cut in given),
            out_specs=tuple(self._axis if cut else whole for cut in back),
            check_vma=False,
        )  # fmt: skip

    def put(self, tree: types.Tree) -> types.Tree:
        """Leaves ``[members, ...]`` to their devices."""
        if self.devices == 1:
            return tree
        if self._lanes > self.members:
            which = jnp.minimum(jnp.arange(self._lanes), self.members - 1)
            tree = jax.tree.map(lambda leaf: leaf[which], tree)
        return jax.device_put(tree, self._where)

    def held(self, tree: types.Tree) -> types.Tree:
        """Inside a compiled function of all members: its leaves ``[members, ...]`` stay where they belong."""
        return tree if self.devices == 1 else jax.lax.with_sharding_constraint(tree, self._where)

    def copied(self, tree: types.Tree) -> types.Tree:
        """Leaves without members to every device."""
        return tree if self.devices == 1 else jax.device_put(tree, self._everywhere)

    def share(self, tree: types.Tree, at: int) -> tuple[types.Tree, int]:
        """What the device of a member holds, and the member's place in it."""
        if self.devices == 1:
            return tree, at
        begins = at // self.each * self.each

        def held(leaf: Any) -> Any:
            return next(part.data for part in leaf.addressable_shards if (part.index[0].start or 0) == begins)

        return jax.tree.map(held, tree), at - begins

    def like(self, tree: types.Tree) -> types.Tree:
        """What `put` makes of ShapeDtypeStructs."""
        if self.devices == 1:
            return tree
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self._lanes, *leaf.shape[1:]), leaf.dtype, sharding=self._where), tree
        )

    def like_copied(self, tree: types.Tree) -> types.Tree:
        """What `copied` makes of ShapeDtypeStructs."""
        if self.devices == 1:
            return tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._everywhere), tree)
