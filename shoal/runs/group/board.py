"""One status on the screen from those of several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal import log
from shoal.report import statistics

EARLIER = 100  # points of the curve of earlier lives


class Board:
    """One status on the screen from those of all seeds."""

    def __init__(self, console: log.Console, seeds: Sequence[int]) -> None:
        """Args: `console`, what a person sees; `seeds` in the order of their lanes."""
        self._console, self._seeds = console, tuple(seeds)
        self._running = set(range(len(seeds)))
        self._latest: dict[int, log.Status] = {}

    def lane(self, at: int) -> log.Console:
        """The console that one seed's session is given."""
        return _Lane(self, at, self._seeds[at], self._console)

    def done(self, at: int) -> None:
        """A seed has ended; what it showed last stays in the sums."""
        self._running.discard(at)

    def show(self, at: int, status: log.Status) -> None:
        """Take one seed's status; the screen is told once a round, and at once of what a seed does between two."""
        self._latest[at] = status
        if at == max(self._running, default=at) or status.stage is not None:
            self._console.show(self._together()._replace(stage=status.stage, stage_s=status.stage_s))

    def close(self) -> None:
        """The last status, and the terminal as it was."""
        self._console.close()

    def _together(self) -> log.Status:
        every = list(self._latest.values())
        going = [status for at, status in self._latest.items() if at in self._running] or every
        returns = [status.return_mean for status in every if status.return_mean is not None]
        evaluated = [status.evaluated for status in every if status.evaluated is not None]
        middle = statistics.iqm(returns) if returns else None
        return every[0]._replace(
            step=sum(status.step for status in every),
            steps=sum(s.steps if at in self._running else s.step for at, s in self._latest.items()),
            steps_per_s=_over(sum, [status.steps_per_s for status in going]),
            return_mean=sum(returns) / len(returns) if returns else None,
            evaluated=sum(evaluated) / len(evaluated) if evaluated else None,
            best=_over(max, [status.best for status in every]),
            episodes=sum(status.episodes for status in every),
            restarts=sum(status.restarts for status in every),
            checkpoint_age_s=_over(max, [status.checkpoint_age_s for status in every]),
            eta_s=_over(max, [status.eta_s for status in going]),
            earlier=_merged([status.earlier for status in every]),
            together=log.Together(seeds=self._seeds, finished=len(self._seeds) - len(self._running), iqm=middle),
        )


def _over(how: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return how(known) if known else None


def _merged(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[tuple[int, float], ...]:
    """What the seeds told in earlier lives as one curve: steps are sums, values means, as in a status of all."""
    told = [curve for curve in curves if curve]
    if not told:
        return ()
    count = min(EARLIER, *(len(curve) for curve in told))
    picked = [[curve[(i + 1) * len(curve) // count - 1] for i in range(count)] for curve in told]
    seeds = zip(*picked, strict=True)
    return tuple((sum(step for step, _ in at), sum(value for _, value in at) / len(at)) for at in seeds)


class _Lane:
    """A `log.Console`: statuses go to the board; what is said names the seed."""

    def __init__(self, board: Board, at: int, seed: int, console: log.Console) -> None:
        self._board, self._at, self._seed, self._console = board, at, seed, console

    def show(self, status: log.Status) -> None:
        """To the board."""
        self._board.show(self._at, status)

    def note(self, text: str) -> None:
        """With the seed's name."""
        self._console.note(f"seed {self._seed}: {text}")

    def fault(self, kind: str, text: str) -> None:
        """Likewise."""
        self._console.fault(f"seed {self._seed}: {kind}", text)

    def close(self) -> None:
        """The board closes the screen."""
