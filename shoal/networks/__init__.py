"""Networks: layers as data, and the ways to run them: flax, NumPy, ONNX."""

from shoal.networks.layers import Config, Head, build, critic, specify, unfit_for_critics

__all__ = ["Config", "Head", "build", "critic", "specify", "unfit_for_critics"]
