"""Decoding an image into an array, by the rules of torchvision's image folders."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# Pillow's errors for a broken file.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_DEEP = ("I", "F")  # beginnings of Pillow's modes with more than 8 bits a channel


def convert(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Converts an opened image to 8-bit colours or greys, by Pillow's rules.

    Palettes become colours, greys three equal channels; an alpha channel is dropped, not blended;
    the orientation that EXIF data ask for is ignored. torchvision's default loader does the same,
    but for greys of more than 8 bits: it makes all above 255 white.

    Args:
        image: Opened image.
        mode: 'RGB', or 'L' for one channel.

    Returns:
        The converted image.

    Raises:
        OSError: If a channel has more than 8 bits or the image cannot be decoded.
    """
    if image.mode.startswith(_DEEP):
        raise OSError(f"pixels of mode {image.mode!r}; allowed are 8 bits a channel")
    image.info.pop("transparency", None)  # changes no pixel, and Pillow would warn of it
    return image.convert(mode)


def why(error: BaseException) -> str:
    """Says why an image cannot be decoded; Pillow itself names an object in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "no format that Pillow reads"
    return str(error)


def decode(encoded: bytes, mode: str = "RGB") -> UInt8[np.ndarray, "height width channels"]:
    """Decodes an image at its own size.

    Args:
        encoded: Encoded image, PNG, JPEG or another format that Pillow reads.
        mode: 'RGB', or 'L' for one channel.

    Returns:
        Pixels, uint8 [H, W, 3] or [H, W, 1].

    Raises:
        OSError: If the image cannot be decoded; see also `UNREADABLE`.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        found = np.asarray(convert(image, mode))
    return found if found.ndim == 3 else found[..., None]
