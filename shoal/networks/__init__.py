"""Networks: layers as data, whose they are, and the ways to run them: flax, NumPy, ONNX."""

from shoal.networks.layers import Config, Head, build, critic, specify, unfit_for_critics
from shoal.networks.scopes import is_global, join, split

__all__ = ["Config", "Head", "build", "critic", "is_global", "join", "specify", "split", "unfit_for_critics"]
