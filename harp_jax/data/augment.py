"""Augmentation on the device: pure, and drawn for each example from its own key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from harp_jax.data.splits import DataError
from harp_jax.types import Images, PRNGKey, RawImages


def to_unit(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Stored images on the [0, 1] scale: exactly the float32 nearest to value / 255.

    Args:
        images: uint8, any shape.

    Returns:
        float32 of that shape, in [0, 1].
    """
    # A compiled division by 255 becomes a multiplication by its rounded inverse, an ulp off for
    # half of the values. Here 1/255 = 65793/2**24 + 2**-24/255, and the first product is exact.
    values = images.astype(jnp.float32)
    return values * (65793 / 2**24) + values * (2**-24 / 255)


def augment(
    images: RawImages, keys: Key[Array, " batch"], *, crop_padding: int, flip: bool
) -> Images:
    """Shift each image at random, and mirror half of them.

    Args:
        images: uint8 [B, H, W, C], as stored.
        keys: one per example: what is drawn for it does not depend on how the batch is cut.
        crop_padding: pad with this many zero pixels a side and crop back at a random place, so
            shifts are uniform in [-crop_padding, crop_padding]; 0 leaves the images in place.
        flip: mirror left and right with probability 1/2.

    Returns:
        float32 [B, H, W, C] in [0, 1].

    Raises:
        DataError: a negative crop_padding.
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
