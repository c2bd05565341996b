"""Convolutions of images whose gradients XLA's CPU compiler turns into fast code wherever they stand.

XLA brings a convolution into the form that its CPU library takes, but only in a program's outermost computation
(https://github.com/jax-ml/jax/issues/12868). The gradient with respect to a kernel is a convolution in another form:
inside `lax.scan` or `lax.cond`, where every learner with several gradient steps or a replay memory has it, it ran 10 to
30 times slower than outside. Here it is written in that form to begin with. See decision 0026.
"""

from __future__ import annotations

import functools
from typing import Any

from etils import epy

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    from flax import linen
    from jax.extend import core
    from jax.interpreters import ad, batching, mlir

FORM = ("NHWC", "HWIO", "NHWC")  # of images, kernels and results: what the CPU library takes


@functools.cache
def module() -> Any:
    """`linen.Conv` for one image ``[H, W, C]``, with its parameters; made here so that importing imports no flax."""

    class Convolution(linen.Module):
        channels: int
        side: int  # of the kernel
        stride: int
        kernel_init: Any
        bias_init: Any

        @linen.compact
        def __call__(self, image: Any) -> Any:
            shape = (self.side, self.side, image.shape[-1], self.channels)
            kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
            bias = self.param("bias", self.bias_init, (self.channels,), jnp.float32)
            return convolve(image[None], kernel, self.stride)[0] + bias[None, None]

    return Convolution


def convolve(images: Any, kernel: Any, stride: int) -> Any:
    """Slide a square kernel over images, without padding.

    Args:
        images: ``[N, H, W, C]``.
        kernel: ``[k, k, C, O]``.
        stride: Pixels between two places, along both sides.

    Returns:
        ``[N, (H - k) // stride + 1, (W - k) // stride + 1, O]``.
    """
    return _primitive().bind(images, kernel, stride=stride)


def _plain(images: Any, kernel: Any, *, stride: int) -> Any:
    return jax.lax.conv_general_dilated(images, kernel, (stride, stride), "VALID", dimension_numbers=FORM)


def _by_kernel(images: Any, back: Any, stride: int, side: int) -> Any:
    """The gradient with respect to the kernel: channels take the place of the batch, and the batch that of channels."""
    height, width = (stride * (n - 1) + side for n in back.shape[1:3])  # pixels that any place of the kernel covers
    turned = jax.lax.conv_general_dilated(
        images[:, :height, :width].transpose(3, 1, 2, 0),
        back.transpose(1, 2, 0, 3),
        (1, 1),
        "VALID",
        rhs_dilation=(stride, stride),
        dimension_numbers=FORM,
    )
    return turned.transpose(1, 2, 0, 3)


def _by_images(back: Any, kernel: Any, stride: int, shape: tuple[int, ...]) -> Any:
    """The gradient with respect to the images: the kernel, turned round, slides over the spread gradient."""
    side = kernel.shape[0]
    padding = [
        (side - 1, side - 1 + pixels - (stride * (n - 1) + side))
        for pixels, n in zip(shape[1:3], back.shape[1:3], strict=True)
    ]
    around = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return jax.lax.conv_general_dilated(
        back, around, (1, 1), padding, lhs_dilation=(stride, stride), dimension_numbers=FORM
    )


@functools.cache
def _primitive() -> Any:
    """`convolve` as JAX knows it: a product of images and kernel, each with a gradient of its own."""
    made = core.Primitive("shoal_convolve")
    made.def_impl(jax.jit(_plain, static_argnames="stride"))

    def shaped(images: Any, kernel: Any, *, stride: int) -> Any:
        out = jax.eval_shape(functools.partial(_plain, stride=stride), images, kernel)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def by_images(back: Any, images: Any, kernel: Any, *, stride: int) -> Any:
        return _by_images(back, kernel, stride, images.aval.shape)

    def by_kernel(back: Any, images: Any, kernel: Any, *, stride: int) -> Any:
        return _by_kernel(images, back, stride, kernel.aval.shape[0])

    def over(batched: Any, dims: Any, *, stride: int) -> Any:
        images, kernel = batched
        at, turned = dims
        if turned is not None:  # kernels of their own, as several seeds have
            return jax.vmap(functools.partial(_plain, stride=stride), dims)(images, kernel), 0
        images = jnp.moveaxis(images, at, 0)
        lead = images.shape[:2]
        out = made.bind(images.reshape(-1, *images.shape[2:]), kernel, stride=stride)
        return out.reshape(*lead, *out.shape[1:]), 0

    made.def_abstract_eval(shaped)
    ad.defbilinear(made, by_images, by_kernel)
    batching.primitive_batchers[made] = over
    mlir.register_lowering(made, mlir.lower_fun(_plain, multiple_results=False))
    return made
