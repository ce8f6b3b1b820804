"""Damaged, odd and hostile tars: each gives its samples, all of them, or one clear error."""

import contextlib
import gzip
import io
import lzma
import os
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unic_pipe.pipeline.samples.shards import scan_tar
from unic_pipe.schemas.errors import UserError


@pytest.fixture
def good(tmp_path, picture, write_tar):
    members = []
    for i in range(4):
        members += [(f"dir/{i:03d}.png", picture(i)), (f"dir/{i:03d}.cls", str(i % 2).encode())]
    return write_tar(tmp_path / "good.tar", members)


def refusal(path, label_field=None):
    with pytest.raises(UserError) as caught:
        scan_tar(path, "t/x.tar", label_field)
    assert caught.value.message.startswith("t/x.tar: ")
    assert caught.value.hint
    return caught.value.message


def test_rows_point_at_the_bytes(good, picture):
    rows = scan_tar(good, "x.tar", None).to_pylist()
    data = good.read_bytes()
    assert [r["key"] for r in rows] == [f"dir/{i:03d}" for i in range(4)]
    assert [r["label"] for r in rows] == [0, 1, 0, 1]
    for i, row in enumerate(rows):
        assert data[row["offset"] : row["offset"] + row["size"]] == picture(i)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_tar_format(tmp_path, write_tar, picture, form):
    long = "d" * 60 + "/" + "e" * 60 + "/köl-" + "n" * 70
    path = write_tar(
        tmp_path / "x.tar", [(f"{long}.JPEG", picture(1)), (f"{long}.cls", b"5"), ("./b.png", picture(2))], form
    )
    rows = scan_tar(path, "x.tar", None).to_pylist()
    assert [(r["key"], r["label"]) for r in rows] == [(long, 5), ("b", None)]


def test_every_cut_is_noticed(good, tmp_path):
    data = good.read_bytes()
    end = data.rstrip(b"\0")
    content_end = -(-len(end) // 512) * 512
    path = tmp_path / "cut.tar"
    for length in {*range(0, content_end + 1024, 256), 1, 511, 513, content_end, content_end + 512, content_end + 1023}:
        path.write_bytes(data[:length])
        message = refusal(path)
        assert "cut" in message or "empty (0 bytes)" in message or "not a tar" in message, (length, message)
    path.write_bytes(data[: content_end + 1024])
    assert scan_tar(path, "x", None).num_rows == 4


def test_a_cut_names_member_and_byte(good, tmp_path):
    with tarfile.open(good) as tar:
        member = tar.getmembers()[2]
    data = good.read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(data[: member.offset])
    assert f"byte {member.offset:,}, after member 'dir/000.cls'" in refusal(path)
    path.write_bytes(data[: member.offset + 100])
    assert "cut inside a header" in refusal(path)
    path.write_bytes(data[: member.offset_data + 5])
    assert f"cut inside member 'dir/001.png' (byte {member.offset:,}" in refusal(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 511), bit=st.integers(0, 7), which=st.integers(0, 7))
def test_a_flipped_header_bit_never_changes_a_row(good, tmp_path, place, bit, which):
    expected = scan_tar(good, "t/x.tar", None)
    with tarfile.open(good) as tar:
        at = tar.getmembers()[which].offset + place
    data = bytearray(good.read_bytes())
    data[at] ^= 1 << bit
    path = tmp_path / "flipped.tar"
    path.write_bytes(data)
    if 148 <= place < 156:  # inside the checksum field a flip may leave the number as it is
        try:
            assert scan_tar(path, "t/x.tar", None).equals(expected)
        except UserError:
            return
    else:
        assert "header" in refusal(path) or "tar" in refusal(path)


def test_a_hole_of_zeros_is_not_the_end(good, tmp_path):
    with tarfile.open(good) as tar:
        member = tar.getmembers()[4]
    data = bytearray(good.read_bytes())
    data[member.offset : member.offset_data + 512] = bytes(member.offset_data + 512 - member.offset)
    path = tmp_path / "hole.tar"
    path.write_bytes(data)
    assert "data after the end" in refusal(path)
    path.write_bytes(good.read_bytes() * 2)
    assert "joined" in refusal(path)


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "./../x.png", ".."])
def test_names_that_leave_the_folder(tmp_path, write_tar, picture, name):
    path = write_tar(tmp_path / "x.tar", [("a.png", picture(1)), (name, picture(2))])
    message = refusal(path)
    assert "outside" in message
    assert "byte 1,024" in message


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
    ],
)
def test_links_and_devices(tmp_path, kind, said):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert said in refusal(path)


def test_compressed_tars_are_refused_with_the_command(good, tmp_path):
    path = tmp_path / "x.tar"
    for packed, command in ((gzip.compress, "gunzip"), (lzma.compress, "unxz")):
        path.write_bytes(packed(good.read_bytes()))
        with pytest.raises(UserError, match="compressed tar") as caught:
            scan_tar(path, "x.tar", None)
        assert command in caught.value.hint
    path.write_bytes(b"\x28\xb5\x2f\xfd" + os.urandom(2000))
    with pytest.raises(UserError, match="zstd"):
        scan_tar(path, "x.tar", None)


def test_not_a_tar_and_empty_tars(tmp_path, picture, write_tar):
    path = tmp_path / "x.tar"
    path.write_bytes(picture(1, size=64))
    assert "not a tar" in refusal(path)
    path.write_bytes(b"")
    assert "0 bytes" in refusal(path)
    write_tar(path, [])
    assert "no members" in refusal(path)
    write_tar(path, [("inner.tar", b"x"), ("readme.txt", b"x")])
    assert "no images" in refusal(path)
    assert ".tar" in refusal(path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.png", "b.png", "a.png"], "'a' appears twice"),
        (["a.png", "a.cls", "b.png", "a.cls"], "'a' appears twice"),
        (["a.png", "a.jpg"], "two images"),
        (["a.png", "a.cls", "b.cls"], "'b' has a label but no image"),
        (["a.png", "b.cls", "b.avif"], "; beside it b.avif)."),
        (["a.l.png", "a.r.png", "a.cls"], "; beside it a.l.png a.r.png)."),
    ],
)
def test_samples_that_are_not_one_image(tmp_path, write_tar, names, said):
    path = write_tar(tmp_path / "x.tar", [(name, b"3") for name in names])
    message = refusal(path)
    assert said in message
    assert "byte" in message


def test_unknown_members_are_ignored_and_interleaved_ones_joined(tmp_path, write_tar, picture):
    members = [
        ("README", b"x"),
        ("a.txt", b"x"),
        ("._a.png", b"mac"),
        ("b.json", b"{}"),
        ("a.png", picture(1)),
        ("b.PNG", picture(2)),
        ("a.seg.png", picture(3)),
        ("b.cls", b" 2\n"),
        ("a.cls", b"1"),
        ("c.txt", b"only text"),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    rows = scan_tar(path, "x.tar", None).to_pylist()
    assert [(r["key"], r["label"]) for r in rows] == [("a", 1), ("b", 2)]


def test_labels_from_json_and_bad_labels(tmp_path, write_tar, picture):
    path = tmp_path / "x.tar"
    write_tar(path, [("a.png", picture(1)), ("a.json", b'{"label": 7, "name": "x"}'), ("a.cls", b"not used")])
    assert scan_tar(path, "x.tar", "label")["label"].to_pylist() == [7]
    assert "no field 'class'" in refusal(path, "class")
    assert "no class number" in refusal(path, "name")
    assert "no class number" in refusal(path)
    for none in (b"", b"-1", b"null"):
        write_tar(path, [("a.png", picture(1)), ("a.cls", none)])
        assert scan_tar(path, "x.tar", None)["label"].to_pylist() == [None]
    for bad in (b"-2", b"1.5", b"4294967296", b"\xff"):
        write_tar(path, [("a.png", picture(1)), ("a.cls", bad)])
        assert "'a.cls' at byte 1,024 holds no class number" in refusal(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000), zeros=st.integers(0, 4))
def test_any_bytes_end_in_rows_or_a_user_error(tmp_path, data, zeros):
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("a.png")
    info.size = 3
    head = info.tobuf() if zeros else b""
    path.write_bytes(head + data + bytes(512 * zeros))
    with contextlib.suppress(UserError):
        scan_tar(path, "x.tar", None)


def test_pax_size_and_damaged_pax_fields(tmp_path, picture):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("é" * 120 + ".png")
        info.size = len(picture(1))
        tar.addfile(info, io.BytesIO(picture(1)))
    data = bytearray(buffer.getvalue())
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    assert scan_tar(path, "x.tar", None).num_rows == 1
    data[512:515] = b"zzz"
    path.write_bytes(data)
    assert "unreadable pax fields" in refusal(path)


def test_a_field_that_is_there_twice_is_named(tmp_path, write_tar, picture):
    def tar(text):
        return write_tar(tmp_path / "x.tar", [("a.png", picture(0)), ("a.json", text)])

    assert refusal(tar(b'{"y": 1, "x": 0, "y": 2}'), "y") == (
        "t/x.tar: 'a.json' at byte 1,024 has the field 'y' 2 times: which one is the class?"
    )
    inner = tar(b'{"meta": {"y": 1, "y": 2}, "x": 0, "x": 1, "y": 3}')
    assert scan_tar(inner, "x.tar", "y")["label"].to_pylist() == [3]
    for other in (b'[["y", 3]]', b'"y"', b"{}"):
        refusal(tar(other), "y")
