"""Augmentation on the device: pure functions that draw each example's noise from its own key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from harp_jax.data.splits import DataError
from harp_jax.types import Images, PRNGKey, RawImages


def to_unit(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Scales stored images to [0, 1]: each value is the float32 nearest to value / 255.

    Args:
        images: Pixel values, uint8, any shape.

    Returns:
        The same shape as float32, in [0, 1].
    """
    # XLA compiles a division by 255 to a multiplication by its rounded inverse, which is one ulp
    # off for half of the values. Here 1/255 = 65793/2**24 + 2**-24/255: the first product is exact.
    values = images.astype(jnp.float32)
    return values * (65793 / 2**24) + values * (2**-24 / 255)


def augment(
    images: RawImages, keys: Key[Array, " batch"], *, crop_padding: int, flip: bool
) -> Images:
    """Shifts each image at random and mirrors half of them.

    Args:
        images: Stored images, uint8 [B, H, W, C].
        keys: One key per example, so that its draw does not depend on how the batch is sharded.
        crop_padding: Number of zero pixels added to each side before a random crop to the old
            size. Shifts are uniform in [-crop_padding, crop_padding]; 0 shifts nothing.
        flip: Whether to mirror left and right with probability 1/2.

    Returns:
        Images, float32 [B, H, W, C] in [0, 1].

    Raises:
        DataError: If crop_padding is negative.
    """
    if crop_padding < 0:
        raise DataError(f"crop_padding={crop_padding}: must be at least 0")

    def one(image: UInt8[Array, "height width channels"], key: PRNGKey) -> Array:
        crop_key, flip_key = jax.random.split(key)
        image = _random_crop(image, crop_key, crop_padding)
        return jnp.where(flip & jax.random.bernoulli(flip_key), image[:, ::-1], image)

    return to_unit(jax.vmap(one)(images, keys))


def _random_crop(
    image: UInt8[Array, "height width channels"], key: PRNGKey, padding: int
) -> UInt8[Array, "height width channels"]:
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)
