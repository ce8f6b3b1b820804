"""Decoding images: any bytes become either an RGB array or an `UndecodableImage` with a short reason."""

import io
import re
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, UnidentifiedImageError

from unic_pipe.pipeline.samples.jpegs import decode_jpeg, is_plain_jpeg
from unic_pipe.pipeline.samples.undecodable import UndecodableImage as UndecodableImage
from unic_pipe.schemas.samples import Decoding

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
"""Formats that are decoded; Pillow knows many more, with less tested code behind them."""

AS_STORED = Decoding()
_ORIENTATION_TAG = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUIET = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)


MAX_PIXELS = 178_956_970
"""Images with more pixels are void: Pillow's own limit of errors, half a gigabyte of RGB."""
_BEYOND = "more than samples.max_pixels"
_GROUNDS = {"white": 255, "grey": 128, "black": 0}


def decode_image(data: bytes, decoding: Decoding = AS_STORED) -> npt.NDArray[np.uint8]:
    """Decode to uint8 (H, W, 3), RGB, writable.

    EXIF orientation is applied; alpha is dropped, not blended (as `convert("RGB")` does), unless `decoding.background`
    names a ground to blend with; 16-bit grey is divided by 257; of an animation the first frame is taken. Images of more
    than `decoding.max_pixels` (by default `MAX_PIXELS`) pixels are refused.
    Raises UndecodableImage: for all other bytes; nothing else is raised.
    """
    if not data:
        raise UndecodableImage("empty (0 bytes)")
    _silence()
    limit = MAX_PIXELS if decoding.max_pixels is None else decoding.max_pixels
    if limit > 2 * (Image.MAX_IMAGE_PIXELS or limit):  # Pillow refuses twice its own number
        Image.MAX_IMAGE_PIXELS = limit
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, limit)
            if is_plain_jpeg(image) and _turn(image) is None and (pixels_HWC := decode_jpeg(data, image)) is not None:
                return pixels_HWC
            image.load()
            rgb, turn = _to_rgb(image, _GROUNDS.get(decoding.background)), _turn(image)
            return np.array(rgb if turn is None else rgb.transpose(turn))
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage("not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UndecodableImage(f"decompression bomb ({_BEYOND})") from None
    except MemoryError:
        raise UndecodableImage("needs too much memory") from None
    except Exception as error:  # decoders raise many kinds for damaged files
        raise UndecodableImage(_reason(error)) from None


def _check_size(image: Image.Image, limit: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UndecodableImage(f"no pixels ({width} x {height})")
    if width * height > limit:
        raise UndecodableImage(f"decompression bomb ({width:,} x {height:,} pixels, {_BEYOND})")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURN.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data says nothing about the orientation
        return None


def _to_rgb(image: Image.Image, ground: int | None) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and (ground is None or not image.has_transparency_data):
        return image
    if mode.startswith("I"):  # I;16 in its byte orders; I holds 16 bits too (PGM)
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's, which are stored inverted
    if mode in ("F", "LAB"):
        raise UndecodableImage(f"unsupported pixel format {mode}")
    if mode in ("La", "RGBa"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    if ground is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (ground, ground, ground, 255))
        return Image.alpha_composite(below, image).convert("RGB")
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = re.sub(r"\s+", " ", re.sub(r"0x[0-9a-fA-F]+|<[^>]*>", "", str(error))).strip()
    if "truncated" in text.lower():
        return "truncated"
    return f"damaged: {text[:80]}" if text else f"damaged: {type(error).__name__}"


def _silence() -> None:
    """Keep Pillow's warnings quiet (`catch_warnings` is not safe in threads)."""
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
