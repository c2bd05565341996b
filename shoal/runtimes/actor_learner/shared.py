"""What the learner shares with its crew: queues, the board, what actors note, the compressor's teacher, bells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.core import types
from shoal.runtimes.actor_learner import actor, board, queue, teacher
from shoal.runtimes.crew import sharing

if TYPE_CHECKING:
    from shoal.runtimes import actor_learner

ROOM = 1 << 20  # bytes that a packed policy may be larger than one in full precision
SHOWN = 2048  # observations that a compressor may look at


class Shared:
    """All of it."""

    def __init__(
        self, config: actor_learner.Config, parts: types.Parts, policy: types.Policy, first: types.Packed
    ) -> None:
        """Make it.

        Args:
            config: `actor_learner.Config`.
            parts: The agent and its compressor.
            policy: The first, on the host.
            first: The same in full precision, packed.
        """
        assert parts.compressor is not None
        shapes = queue.like(parts, config.environments)
        self.queue_block = sharing.Block(queue.layout(shapes, config.workers, config.queue))
        self.queues = queue.Queues(self.queue_block.arrays, shapes)
        self.notes = sharing.Block(actor.layout(config.workers))
        self.board_block = sharing.Block(board.layout(len(first.payload) + ROOM))
        self.board = board.Board(self.board_block)
        self.bells = [sharing.Bell() for _ in range(config.workers)]  # one for each actor
        self.bell, self.press = sharing.Bell(), sharing.Bell()  # the learner's, the compressor's
        self.teacher_block: sharing.Block | None = None
        self.teacher: teacher.Teacher | None = None
        self.board.post(first)  # what takes long to compress, or needs to have seen something, begins plainly
        if not parts.compressor.here:
            memory = teacher.remembered(parts.agent, parts.compressor)
            self.teacher_block = sharing.Block(teacher.layout(policy, SHOWN, parts.spec.observation, memory))
            self.teacher = teacher.Teacher(self.teacher_block, policy, memory)

    def ring(self) -> None:
        """Wake everybody."""
        for bell in (*self.bells, self.bell, self.press):
            bell.ring()
