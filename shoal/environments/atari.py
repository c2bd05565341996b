"""Atari 2600 games (Bellemare et al. 2013, https://ale.farama.org) as DQN sees them: ``ALE/Pong-v5``.

An action is repeated over four frames; the agent sees the last four pictures, each the larger of two successive frames
(sprites flicker), in grey and 84 by 84 pixels; a game begins with up to 30 frames of doing nothing (Mnih et al. 2015).
Size, number and rows of the pictures are settings: 42 by 42, one at a time, of the field alone learns sooner with an
LSTM (openai/universe-starter-agent).

The emulator is driven directly. Gymnasium's `AtariPreprocessing` shows an old picture when a game ends between two
decisions, ends a step early when a life is lost, and renders every skipped frame in colour.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from etils import epy

from shoal import environments
from shoal.core import errors, options, types
from shoal.environments import _frames, _packages, _spaces

with epy.lazy_imports():
    import ale_py
    import cv2
    import gymnasium
    import numpy as np

PREFIX = "ALE"
EXTRA = "atari"


@dataclasses.dataclass(frozen=True)
class Config(environments.Config):
    """The game, and how it is shown to the agent."""

    repeat: int = options.number(4, low=1, high=64)
    """Raw frames an action is repeated for: one step."""
    noops: int = options.number(30, low=0, high=1000)
    """A game begins with one to so many raw frames of doing nothing; 0 turns this off."""
    sticky: float = options.number(0.0, low=0.0, high=1.0)
    """Probability that a raw frame repeats the action of the frame before instead; 0.25 in Machado et al. (2018)."""
    episodic_life: bool = False
    """A lost life ends the episode for learning, and the game goes on; evaluation plays whole games."""
    size: int = options.number(_frames.SIDE, low=8, high=210)
    """Pixels a side of the picture; the mean over the area of each is shown."""
    frames: int = options.number(_frames.STACK, low=1, high=16)
    """Successive pictures the agent sees at once, the newest last."""
    crop: tuple[int, int] = (0, 0)
    """Rows of the screen that are shown, the first and the one after the last; 34 194 is Pong's field. 0 0: all."""


ADAPTER = environments.Adapter(prefix=PREFIX, pure_jax=False, extra=EXTRA, config=Config)


class AtariEnv:
    """One game with truthful episodes; see `types.HostEnv`."""

    def __init__(self, game: str, spec: types.EnvSpec, config: Config) -> None:
        self.spec = spec
        self._config, self._limit = config, spec.time_limit
        self._rom = ale_py.roms.get_rom_path(game)
        self._ale = _emulator(config)
        self._actions: list[Any] = []
        self._screens = np.zeros((2, 210, 160), np.uint8)  # the frame before the newest, the newest
        self._stack = np.zeros(spec.observation.shape, np.uint8)
        self._chance = np.random.default_rng()
        self._steps = self._lives = 0

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, all randomness from `seed`."""
        self._chance = np.random.default_rng(seed)
        self._ale.setInt("random_seed", int(self._chance.integers(2**31)))
        self._ale.loadROM(self._rom)  # which is when the emulator reads its seed
        self._actions = self._ale.getMinimalActionSet()
        self._screens = np.zeros((2, *self._ale.getScreenDims()), np.uint8)
        return self._begin_game()

    def _begin_game(self) -> np.ndarray:
        ale, noop = self._ale, ale_py.Action.NOOP
        ale.reset_game()
        for _ in range(int(self._chance.integers(1, self._config.noops + 1)) if self._config.noops else 0):
            ale.act(noop)
            if ale.game_over():
                ale.reset_game()
        self._steps, self._lives = 0, ale.lives()
        ale.getScreenGrayscale(self._screens[1])
        return self._begin_episode(self._shrink(self._screens[1]))

    def _begin_episode(self, frame: np.ndarray) -> np.ndarray:
        self._stack = _frames.first(frame, self._config.frames)
        return self._stack

    def step(self, action: Any) -> tuple[np.ndarray, types.Outcome]:
        """Act once; after an end the returned observation is the first of the next episode."""
        reward = self._act(self._actions[action])
        frame = self._shrink(self._screens.max(axis=0))
        self._stack = successor = _frames.follow(self._stack, frame)
        self._steps += 1
        if self._ale.game_over(with_truncation=False):
            return self._begin_game(), types.Outcome(reward, 0.0, False, successor)
        lives, before = self._ale.lives(), self._lives
        self._lives = lives
        lost = self._config.episodic_life and 0 < lives < before  # at 0 some games run on for a few frames: let them
        if self._limit and self._steps >= self._limit:
            return self._begin_game(), types.Outcome(reward, 0.0 if lost else 1.0, not lost, successor)
        if lost:
            return self._begin_episode(frame), types.Outcome(reward, 0.0, False, successor)
        return successor, types.Outcome(reward, 1.0, False, successor)

    def _act(self, action: Any) -> float:
        """Repeat the action; leaves the last two raw frames in `_screens`."""
        ale, last, reward = self._ale, self._config.repeat - 1, 0.0
        for frame in range(self._config.repeat):
            if frame == last:
                ale.getScreenGrayscale(self._screens[0])
            reward += ale.act(action)
            if ale.game_over(with_truncation=False):
                self._screens[0] = 0  # the game ended within the step: its last frame alone is shown
                break
        ale.getScreenGrayscale(self._screens[1])
        return reward

    def close(self) -> None:
        """Nothing to release but memory."""

    def _shrink(self, screen: np.ndarray) -> np.ndarray:
        """The rows that are shown, as a square of pixels, each the mean over its area."""
        top, end = self._config.crop
        side = self._config.size
        return cv2.resize(screen[top:end] if end else screen, (side, side), interpolation=cv2.INTER_AREA)


def _emulator(config: Config) -> Any:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # or it greets
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", config.sticky)
    ale.setInt("max_num_frames_per_episode", 0)  # the limit is ours: the emulator's would be counted in frames
    return ale


def _rows(config: Config, height: int) -> str:
    """The rows that are shown, for people.

    Raises:
        Refused: There are no such rows, or fewer than pixels are asked for.
    """
    top, end = config.crop
    if (top, end) == (0, 0):
        return ""
    if not 0 <= top < end <= height or end - top < 8:
        raise errors.Refused(
            f"environment.crop={top} {end}, but the screen has {height} rows: give the first and the one after the "
            "last, at least 8 apart, or leave it out"
        )
    return f" of rows {top} to {end - 1}"


def names() -> list[str]:
    """Every single-player game of the Arcade Learning Environment."""
    return sorted(_games("ALE ids"))


def _games(what: str) -> dict[str, str]:
    """Id -> the game's file name, as the library itself registers them."""
    _packages.need(what, EXTRA, "ale_py", "cv2")
    importlib.import_module("ale_py")  # which registers them
    entries = gymnasium.registry.items()
    return {env_id: entry.kwargs["game"] for env_id, entry in entries if env_id.startswith(f"{PREFIX}/")}


def open(env_id: str, config: environments.Config) -> environments.Opened:
    """Open a game (see `environments.open`)."""
    games = _games(env_id)
    if env_id not in games:
        raise errors.unknown("environment", env_id, games, "`shoal list envs` shows all.")
    chosen = environments.own(config, Config)
    seen = _frames.spec(chosen.size, chosen.frames)
    layout = _spaces.select(_spaces.Layout(seen), chosen.observe)  # refuses to pick features of a picture
    game = games[env_id]
    ale = _emulator(chosen)
    ale.loadROM(ale_py.roms.get_rom_path(game))
    rows = _rows(chosen, ale.getScreenDims()[0])
    spec = types.EnvSpec(
        id=env_id,
        observation=layout.spec,
        action=_spaces.actions(len(ale.getMinimalActionSet())),
        time_limit=_spaces.time_limit(chosen.time_limit, max(1, _frames.LONGEST // chosen.repeat)),
        solved_at=None,
        on_device=False,
        notes=_frames.notes(chosen.repeat, chosen.episodic_life, seen, rows),
        shown=_frames.notes(chosen.repeat, False, seen, rows),
    )
    whole = dataclasses.replace(chosen, episodic_life=False)
    return environments.Opened(
        spec=spec,
        device=None,
        make_host=lambda: AtariEnv(game, spec, chosen),
        make_eval=(lambda: AtariEnv(game, spec, whole)) if chosen.episodic_life else None,
    )
