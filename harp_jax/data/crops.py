"""Photos of any size, decoded and cut to squares of one size; all that is random comes in.

Reference: C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6, for random
crops of varying area and aspect ratio. Ranges and rounding are those of torchvision.
"""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

AREA = (0.08, 1.0)  # of a random crop, as a share of the photo's
RATIO = (3 / 4, 4 / 3)  # its width over its height
_TRIES = 10
# A photo is centred in a frame of 256 of which the middle 224 are kept, or in that proportion.
_FRAME, _KEPT = 256, 224

Box = tuple[int, int, int, int]  # left, top, right, bottom, as pillow has them


def random_crop(
    photo: bytes, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Decode a random part of a photo and resize it to a square.

    Args:
        photo: an encoded image, JPEG or anything else that pillow reads.
        size: side of the square, in pixels.
        rng: what the part is drawn from.

    Returns:
        RGB, 0..255.

    Raises:
        OSError: the photo cannot be decoded.
    """
    with Image.open(io.BytesIO(photo)) as image:
        full = image.size
        left, top, right, bottom = random_box(*full, rng)
        # JPEG decodes fast to 1/2, 1/4 or 1/8 of its size; the part must not get below the square.
        width = math.ceil(full[0] * size / (right - left))
        height = math.ceil(full[1] * size / (bottom - top))
        drafted = image.draft(None, (width, height))
        shrink = 1.0 if drafted is None else drafted[1][2] / full[0]
        part = (left * shrink, top * shrink, right * shrink, bottom * shrink)
        return _resize(image, (size, size), part)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draw the part of a photo that a random crop keeps.

    Area and aspect ratio are uniform in `AREA` and, as a logarithm, in `RATIO`; a part that does
    not fit is drawn anew. After ten such draws it is the largest centred one within `RATIO`.

    Args:
        width: of the photo, in pixels.
        height: of the photo, in pixels.
        rng: what it is drawn from.

    Returns:
        Its edges, inside the photo and at least a pixel apart.
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
    """Decode a photo, resize its short side to size * 256 / 224 and keep the middle square.

    Args:
        photo: an encoded image, JPEG or anything else that pillow reads.
        size: side of the square, in pixels.

    Returns:
        RGB, 0..255.

    Raises:
        OSError: the photo cannot be decoded.
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
    # Pillow's bilinear filter is as wide as what becomes one pixel: nothing is skipped.
    resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=part)
    return np.asarray(resized)
