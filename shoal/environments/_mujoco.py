"""MuJoCo's habit of printing what it thinks of a model, and of writing it to a file in the working directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from etils import epy

with epy.lazy_imports():
    import mujoco


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While a library loads a model of its own: what is old-fashioned about it is for its authors to mend."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
