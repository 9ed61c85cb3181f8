"""Decoding photos of any size and cropping them to squares; the caller passes the generator.

Reference: C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6, for random
crops of varying area and aspect ratio. Ranges and rounding are those of torchvision.
"""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from harp_jax.data.images import convert

AREA = (0.08, 1.0)  # area of a random crop as a fraction of the photo's
RATIO = (3 / 4, 4 / 3)  # width of a random crop over its height
_TRIES = 10
# A centre crop keeps 224 of every 256 pixels along the shorter side.
_FRAME, _KEPT = 256, 224

Box = tuple[int, int, int, int]  # left, top, right, bottom, as in Pillow


def random_crop(
    photo: bytes, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes a random part of a photo and resizes it to a square.

    Args:
        photo: Encoded image, JPEG or another format that Pillow reads.
        size: Side of the square, in pixels.
        rng: Random generator; this call advances it.

    Returns:
        RGB pixels, uint8 [size, size, 3].

    Raises:
        OSError: If the photo cannot be decoded.
    """
    with Image.open(io.BytesIO(photo)) as image:
        full = image.size
        left, top, right, bottom = random_box(*full, rng)
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which is faster. The part must stay
        # at least as large as the square.
        width = math.ceil(full[0] * size / (right - left))
        height = math.ceil(full[1] * size / (bottom - top))
        drafted = image.draft(None, (width, height))
        shrink = 1.0 if drafted is None else drafted[1][2] / full[0]
        part = (left * shrink, top * shrink, right * shrink, bottom * shrink)
        return _resize(image, (size, size), part)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draws the part of a photo that a random crop keeps.

    The area is uniform in `AREA`, the aspect ratio log-uniform in `RATIO`. A part that does not fit
    into the photo is drawn again; after ten such draws the part is the largest centred one whose
    aspect ratio lies in `RATIO`.

    Args:
        width: Width of the photo, in pixels.
        height: Height of the photo, in pixels.
        rng: Random generator; this call advances it.

    Returns:
        Left, top, right and bottom edge, in pixels: inside the photo, at least one pixel apart.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(rng.integers(width - across + 1))
            top = int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    across = max(1, min(width, round(height * RATIO[1])))
    down = max(1, min(height, round(width / RATIO[0])))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def centre_crop(photo: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes a photo, resizes its shorter side to size * 256 / 224 and crops the centre square.

    Args:
        photo: Encoded image, JPEG or another format that Pillow reads.
        size: Side of the square, in pixels.

    Returns:
        RGB pixels, uint8 [size, size, 3].

    Raises:
        OSError: If the photo cannot be decoded.
    """
    with Image.open(io.BytesIO(photo)) as image:
        frame = size * _FRAME // _KEPT
        short = min(image.size)
        width, height = (frame * side // short for side in image.size)
        resized = _resize(image, (width, height), None)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized[top : top + size, left : left + size]


def _resize(
    image: Image.Image, size: tuple[int, int], part: tuple[float, float, float, float] | None
) -> UInt8[np.ndarray, "height width 3"]:
    # Pillow widens its bilinear filter when it shrinks an image, so there is no aliasing.
    resized = convert(image).resize(size, Image.Resampling.BILINEAR, box=part)
    return np.asarray(resized)
