"""Any bytes become the right pixels, or an `UndecodableImage` with a short reason that repeats."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unic_pipe.pipeline.samples import jpegs
from unic_pipe.pipeline.samples.images import UndecodableImage, decode_image
from unic_pipe.schemas.samples import Decoding


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rgb():
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([x * 7, y * 10, (x + y) * 4], axis=-1).astype(np.uint8)


def reason(data):
    with pytest.raises(UndecodableImage) as caught:
        decode_image(data)
    assert len(str(caught.value)) < 120
    with pytest.raises(UndecodableImage) as again:
        decode_image(data)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(rgb, kind):
    out = decode_image(encode(Image.fromarray(rgb), kind))
    assert out.dtype == np.uint8
    assert out.flags.writeable
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, rgb)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(rgb), "WEBP", lossless=True)), rgb)


def test_jpeg_is_what_pillow_decodes(rgb):
    data = encode(Image.fromarray(rgb), "JPEG", quality=90)
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}])
@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_ordinary_jpegs_have_pillows_pixels_and_its_faults(rgb, sampling, options):
    """Whole, with bytes that make no sense, and with an end that is missing."""
    noise = np.random.default_rng(sampling).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=90, subsampling=sampling, **options)
    middle = len(data) // 2
    for content in (data, data[:middle] + b"\x55\xaa" + data[middle:], data + b"more"):
        out = decode_image(content)
        np.testing.assert_array_equal(out, np.asarray(Image.open(io.BytesIO(content))))
        assert out.flags.writeable
    assert reason(data[:-200]) == "truncated"


def test_jpegs_are_decoded_by_the_quicker_library_where_it_gives_the_same():
    pytest.importorskip("simplejpeg")
    assert jpegs._equal_decoder() is not None


def test_grey_one_bit_and_palette(rgb):
    grey = Image.fromarray(rgb).convert("L")
    np.testing.assert_array_equal(decode_image(encode(grey)), np.asarray(grey.convert("RGB")))
    bits = grey.convert("1")
    assert set(np.unique(decode_image(encode(bits)))) == {0, 255}
    palette = Image.fromarray(rgb).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encode(palette)), expected)
    np.testing.assert_array_equal(decode_image(encode(palette, transparency=bytes(range(16)))), expected)
    np.testing.assert_array_equal(decode_image(encode(palette, "GIF")), expected)


def test_alpha_is_dropped_not_blended(rgb):
    alpha = np.full(rgb.shape[:2], 3, np.uint8)
    image = Image.fromarray(np.dstack([rgb, alpha]))
    np.testing.assert_array_equal(decode_image(encode(image)), rgb)
    light = Image.fromarray(np.dstack([rgb[..., 0], alpha]))
    np.testing.assert_array_equal(decode_image(encode(light))[..., 1], rgb[..., 0])


def png16(values):
    """A 16-bit grey PNG, written by hand."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 128 * 257], [65_535, 300, 129]], np.uint16)
    expected = np.array([[0, 1, 128], [255, 1, 1]], np.uint8)
    for data in (png16(values), encode(Image.fromarray(values), "TIFF")):
        np.testing.assert_array_equal(decode_image(data), np.repeat(expected[..., None], 3, axis=2))
    pgm = b"P5 3 2 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(pgm)[..., 0], expected)


def without_adobe(data):
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def test_cmyk_with_and_without_adobes_inversion(rgb):
    cmyk = Image.fromarray(rgb).convert("CMYK")
    adobe = encode(cmyk, "JPEG", quality=100, subsampling=0)
    assert np.abs(decode_image(adobe).astype(int) - rgb).max() < 12
    plain = without_adobe(encode(Image.fromarray(255 - np.asarray(cmyk), "CMYK"), "JPEG", quality=100, subsampling=0))
    assert np.abs(decode_image(plain).astype(int) - rgb).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_exif_orientation(rgb, orientation, mode):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(rgb).convert(mode), "JPEG", quality=95, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode_image(data), np.asarray(expected))
    png = encode(Image.fromarray(rgb), exif=exif)
    assert decode_image(png).shape == ((24, 32, 3) if orientation < 5 else (32, 24, 3))


def test_damaged_exif_is_no_reason_to_lose_an_image(rgb):
    exif = b"Exif\0\0MM\0\x2a" + b"\xff" * 40
    assert decode_image(encode(Image.fromarray(rgb), "JPEG", exif=exif)).shape == rgb.shape


def test_first_frame_of_an_animation(rgb):
    first, second = Image.fromarray(rgb), Image.fromarray(255 - rgb)
    for kind in ("WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(first, kind, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(decode_image(data), rgb)


def test_a_png_named_jpeg_needs_no_name(rgb):
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(rgb))), rgb)


def test_reasons(rgb):
    jpeg = encode(Image.fromarray(rgb), "JPEG")
    assert reason(b"") == "empty (0 bytes)"
    assert reason(b"hello, this is not an image" * 5) == "not an image"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert reason(encode(Image.fromarray(noise))[:-5000]) == "truncated"
    assert reason(encode(Image.fromarray(rgb.astype(np.float32)[..., 0]), "TIFF")) == "unsupported pixel format F"
    assert reason(encode(Image.fromarray(rgb), "ICO", sizes=[(16, 16)])) == "not an image"
    with pytest.raises(UndecodableImage, match=r"bomb \(32 x 24 pixels, more than samples\.max_pixels\)"):
        decode_image(jpeg, Decoding(max_pixels=24 * 32 - 1))
    assert decode_image(jpeg, Decoding(max_pixels=24 * 32)).shape == (24, 32, 3)


def test_a_real_bomb_is_refused_before_it_is_decoded():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (14_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        assert reason(data).startswith("decompression bomb")


def test_no_warnings_leak_even_in_threads(rgb):
    palette = encode(Image.fromarray(rgb).quantize(16), transparency=bytes(range(16)))
    exif = encode(Image.fromarray(rgb), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\x12\x01\x03\0\xff\0\0\0" * 3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=lambda: [decode_image(d) for d in (palette, exif)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == []


SEEDS = [
    encode(Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)), kind, **options)
    for kind, options in (
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {}),
        ("PPM", {}),
        ("GIF", {}),
    )
]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
    tail=st.binary(max_size=20),
)
def test_no_bytes_raise_anything_else(seed, changes, keep, tail):
    data = bytearray(seed)
    for place, value in changes:
        data[place % len(data)] = value
    data = bytes(data[: max(1, round(len(data) * (1 if keep > 0.5 else 2 * keep)))]) + tail
    try:
        out, why = decode_image(data), "fine"
    except UndecodableImage as error:
        out, why = np.zeros((1, 1, 3), np.uint8), str(error)
    assert 0 < len(why) < 120
    assert "0x" not in why
    assert out.dtype == np.uint8
    assert out.ndim == 3
    assert out.shape[2] == 3
