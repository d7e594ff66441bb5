"""Every reader of strangers' files, on files that were made to break it: a result or one sentence, little memory, no trace.

Each test changes honest files at random, always in the same way; with ``-m nightly`` twenty times as often.
"""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import os
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fuzzing import MEGABYTES, SECONDS, changed, held, often
from hypothesis import strategies as st
from PIL import Image

from adbench.config.yaml_text import read_yaml
from adbench.context import Context
from adbench.datasets.adapters.brats import read_mapping
from adbench.datasets.io import archive, nifti, nifti_header, png
from adbench.datasets.io.unpacking import unpack
from adbench.datasets.phantom.dataset import Phantom
from adbench.datasets.store import case_file
from adbench.errors import UserError
from adbench.evaluation.map_files import CaseFolder
from adbench.methods.simple import ZScore
from adbench.metrics.histogram import SubjectHistograms
from adbench.params import build
from adbench.utils import limits


def volume(dtype: Any = np.int16, **fields: Any) -> bytes:
    """A small uncompressed NIfTI file."""
    image = nibabel.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(dtype), np.diag([2.0, 2, 3, 1]))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    content = image.to_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    return bytes(header.binaryblock + content[348:])


def refused(read: Callable[[], object], *parts: str) -> None:
    """``read`` ends in one sentence that holds all ``parts``, soon and with little memory."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        read()
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000 < MEGABYTES
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# -- NIfTI ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vox_offset": np.inf}, "The header of"),
        ({"vox_offset": np.nan}, "The header of"),
        ({"vox_offset": -300}, "voxels start at byte -300"),
        ({"dim": [3, 32767, 32767, 3, 1, 1, 1, 1]}, "is truncated"),
        ({"dim": [7] + [32767] * 7}, "has 7 axes"),
        (
            {"magic": b"ni1"},
            "write both as one with `nib-convert a.hdr",
        ),
        ({"magic": b""}, "is not a NIfTI file"),
        ({f"srow_{axis}": np.zeros(4) for axis in "xyz"} | {"qform_code": 0}, "by its sform the affine is [[0.0"),
        ({"sform_code": 0, "pixdim": [1, 2, 0, 3, 1, 1, 1, 1]}, "correct these numbers in its header"),
        (
            {"sform_code": 0, "qform_code": 0, "pixdim": [1, 2, 0, 3, 1, 1, 1, 1]},
            "by its voxel sizes (pixdim) the affine is",
        ),
        (
            {"srow_x": [-2, 0, 0, 0], "srow_y": [0, -2, 0, 0]},
            "says in two ways how the head lies, by its sform (LPS) and by its qform (RAS)",
        ),
        ({"scl_slope": 1e38, "scl_inter": 3e38}, "holds 59 NaN or infinite voxels"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_headers_that_lie(tmp_path: Path, fields: dict[str, Any], message: str, name: str) -> None:
    content = volume(**fields)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    refused(lambda: nifti.read(tmp_path / name), name, message)


def test_a_volume_beyond_the_limit_says_how_to_raise_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(volume() + bytes(9_000_000)))  # behind the voxels
    assert nifti.read(path).data.sum() == 1770
    monkeypatch.setattr(limits, "VOLUME_BYTES", limits.Limit("VOLUME_BYTES", 1_000_000, "bytes"))
    for read in (nifti.read, nifti.checksum):
        (
            refused(
                lambda read=read: read(path),
                str(path),
                "where at most 1000000 are read",
                "set ADBENCH_MAX_VOLUME_BYTES",
            )
        )
    monkeypatch.setattr(limits, "VOLUME_BYTES", limits.Limit("VOLUME_BYTES", 471, "bytes"))
    refused(lambda: nifti.read(path), "needs for its voxels 472 bytes")
    monkeypatch.setenv("ADBENCH_MAX_VOLUME_BYTES", "10000000")
    monkeypatch.setattr(limits, "VOLUME_BYTES", limits.Limit("VOLUME_BYTES", 471, "bytes"))
    assert nifti.read(path).data.sum() == 1770


@pytest.mark.nightly
@pytest.mark.parametrize(("dtype", "side", "scale"), [(np.float32, 430, 1), (np.float64, 290, 1), (np.int16, 536, 1), (np.uint8, 399, 2)])  # fmt: skip
def test_the_largest_volumes_that_are_read(tmp_path: Path, dtype: Any, side: int, scale: int) -> None:
    path, header = tmp_path / "a.nii.gz", nibabel.Nifti1Header()
    header.set_data_shape((side, side, side))
    header.set_data_dtype(dtype)
    header["vox_offset"], header["magic"], header["scl_slope"], header["sform_code"] = 352, b"n+1", scale, 1
    header["srow_x"][0] = header["srow_y"][1] = header["srow_z"][2] = 1
    path.write_bytes(zeros(side**3 * np.dtype(dtype).itemsize + (1 << 20), header.binaryblock + bytes(4)))
    # Not ru_maxrss: that of a new process begins at what the process that started it had.
    code = (
        "import re, sys; from pathlib import Path; from adbench.datasets.io import nifti; nifti.read(Path(sys.argv[1]));"
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1000 < MEGABYTES


def test_odd_headers_are_read_as_nibabel_reads_them_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    for pixdim, odd in (
        ([1, -2, 2, -3, 1, 1, 1, 1], "voxel sizes of -2, 2, -3 mm, read without their sign"),
        ([0, 2, 2, 3, 1, 1, 1, 1], "a handedness (qfac) of 0, read as 1"),
        ([-1, 2, 2, 3, 1, 1, 1, 1], ""),
        ([-7, 2, 2, 3, 1, 1, 1, 1], "a handedness (qfac) of -7, read as -1"),
    ):
        path.write_bytes(volume(pixdim=pixdim, sform_code=0, quatern_b=0.5))
        header = nifti.read_header(path)
        path.write_bytes(
            volume(pixdim=np.abs(pixdim) * [-1 if pixdim[0] < 0 else 1, *[1] * 7], sform_code=0, quatern_b=0.5)
        )
        if abs(pixdim[0]) == 1:
            np.testing.assert_allclose(header.affine, nibabel.load(path).affine, atol=1e-6)
        assert header.odd == ((odd,) if odd else ())
    path.write_bytes(volume(srow_x=[0, 0, 0, 0]))
    assert nifti.read_header(path).odd == ("an sform that is no affine: the qform is used",)
    np.testing.assert_allclose(nifti.read_header(path).affine, np.diag([2.0, 2, 3, 1]))
    path.write_bytes(volume(quatern_b=1.1, quatern_c=1))
    assert "a qform that cannot be used" in nifti.read_header(path).odd[0]


ODD = {
    "scl_slope": (-2, "a negative scale (scl_slope -2)"),
    "intent_code": (1007, "said to be no image (vector, intent_code 1007)"),
    "xyzt_units": (1, "voxel sizes of 2 x 2 x 3 that are said to be metres, read as mm"),
    "pixdim": ([1] * 8, "states voxels of 1 x 1 x 1 mm, and its sform places them 2 x 2 x 3 mm apart"),
    "srow_x": ([2, 1.9, 0, 0], "a sheared affine: two of its axes meet at 46 degrees"),
    "srow_y": ([0, 2, 0, 9], "place a corner 9.0 mm apart"),
}


@pytest.mark.parametrize("field", ODD)
def test_findings_of_a_header(tmp_path: Path, field: str) -> None:
    path, (value, expected) = tmp_path / "a.nii", ODD[field]
    path.write_bytes(volume())
    assert list(nifti_header.header_issues(nifti.read(path).header)) == []
    path.write_bytes(volume(**{field: value}) + bytes(3))
    found = [one.text for one in nifti_header.header_issues(nifti.read(path).header) if one.severity == "warning"]
    assert any(expected in text for text in found), found
    assert found[-1] == "holds 3 bytes behind its voxels, which are not read"


def test_what_a_file_holds_is_not_quoted(tmp_path: Path) -> None:
    """It may lie behind a link that somebody else has set."""
    (tmp_path / "secret").write_text("root:x:0:0:root:/root:/bin/bash\n" * 30)
    for name in ("a.nii", "a.nii.gz", "a.png"):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        (folder / name).symlink_to(tmp_path / "secret")
        with pytest.raises(UserError) as caught:
            list(CaseFolder(folder, folder))
        assert str(folder / name) in str(caught.value)
        assert "root:" not in str(caught.value).replace(str(tmp_path), "")


def test_what_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii").symlink_to("/dev/zero")
    (tmp_path / "c.nii").mkdir()
    os.mkfifo(tmp_path / "d.png")
    for name, read in (
        ("a.nii.gz", nifti.read),
        ("b.nii", nifti.read),
        ("c.nii", nifti.read),
        ("d.png", png.read_image),
    ):
        refused(lambda read=read, name=name: read(tmp_path / name), name, "it is no regular file")


READ_NIFTI = (
    nifti.read_header,
    nifti.mask_values,
    nifti.checksum,
    nifti.read,
    lambda path: nifti.read(path, finite=False, exact=True),
)


@often
@pytest.mark.parametrize("packed", [False, True])
def test_nifti(tmp_path: Path, examples: int, packed: bool) -> None:
    big = nibabel.Nifti2Image(np.zeros((3, 4, 5), np.float64), np.eye(4)).to_bytes()
    honest = changed(volume(), volume(np.float32, scl_slope=2, scl_inter=1), volume(np.float64), bytes(big))
    files = st.one_of(honest.map(gzip.compress), changed(gzip.compress(volume()))) if packed else honest
    held(tmp_path, examples, files, "a.nii.gz" if packed else "a.nii", *READ_NIFTI)


def picture(mode: str = "L", kind: str = "PNG") -> bytes:
    pixels = Image.fromarray((np.arange(80).reshape(8, 10) * 3).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    pixels.save(buffer, kind)
    return buffer.getvalue()


@often
def test_png(tmp_path: Path, examples: int) -> None:
    files = changed(
        *(picture(mode) for mode in ("L", "1", "P", "RGB", "LA", "I;16")), picture("L", "TIFF"), picture("L", "GIF")
    )
    reads = (png.read_shape, png.read_stored, png.read_image, lambda path: png.read_mask(path, path, (8, 10)))
    held(tmp_path, examples, files, "a.png", *reads)


def test_a_png_of_more_bytes_than_pixels_can_take_is_not_looked_at(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.png", picture()
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    path.write_bytes(whole[:33] + empty * 1000 + whole[33:])
    assert png.read_image(path).ndim == 2
    path.write_bytes(whole[:33] + empty * 100_000 + whole[33:])
    refused(lambda: png.read_image(path), "a.png has 1200", " bytes for 8x10 pixels, where at most 1049216 are read")


def test_a_bit_that_flipped_in_the_pixels_of_a_png_is_noticed(tmp_path: Path) -> None:
    """The decoder gives other pixels without a word; the checksums of the chunks do not."""
    pixels = np.zeros((60, 60), np.uint8)
    pixels[20:30, 25:40] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    begin = whole.index(b"IDAT") + 4
    for at in range(begin, begin + struct.unpack(">I", whole[begin - 8 : begin - 4])[0]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        refused(lambda: png.read_mask(path, path, (60, 60)), "mask.png cannot be read as a PNG image")
    path.write_bytes(whole[: whole.index(b"IEND") - 4])
    refused(lambda: png.read_image(path), "mask.png cannot be read as a PNG image")


def test_of_an_animated_png_no_image_is_read(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((10, 8), grey, np.uint8)) for grey in (0, 90, 200)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    for read in (png.read_stored, png.read_image, lambda path: png.read_mask(path, path, (10, 8))):
        refused(lambda read=read: read(tmp_path / "a.png"), "a.png is an animated PNG of 3 images: save each as a file")


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii")
    refused(lambda: archive.digest_of(tmp_path / "scan.nii"), "scan.nii cannot be read: it is no regular file")


@pytest.mark.parametrize("content", [picture("L", "TIFF"), picture("L", "GIF"), b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9, b""])
def test_other_formats_named_png_never_reach_a_decoder(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(picture())
    refused(lambda: png.read_stored(tmp_path / "a.png"), "a.png cannot be read as a PNG image")
    refused(lambda: list(CaseFolder(tmp_path, tmp_path / "masks")), "a.png cannot be read as a PNG image")


@pytest.mark.parametrize("side", [12_000, 50_000])
def test_a_picture_that_is_too_large_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(picture()[:16] + struct.pack(">II", side, side) + picture()[24:])
    refused(
        lambda: png.read_image(tmp_path / "a.png"), f"a.png is {side}x{side}", "16777216", "ADBENCH_MAX_IMAGE_PIXELS"
    )


def test_a_case_of_many_slices_is_refused_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    large = picture()[:16] + struct.pack(">II", 4096, 4096) + picture()[24:]
    for number in range(10):
        (tmp_path / f"a_slice_{number}.png").write_bytes(large)
        (tmp_path / "masks" / f"a_slice_{number}.png").write_bytes(picture())
    folder = CaseFolder(tmp_path, tmp_path / "masks")
    refused(
        lambda: list(folder),
        "a_slice_0.png and its 9 other slices may need 335544320 bytes",
        "ADBENCH_MAX_VOLUME_BYTES",
    )


# -- archives, arrays, text, pickles -------------------------------------------------------------------------------------


def tar(kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
        for name, content in (("a/b.nii", b"voxels" * 90), ("é" * 60 + "/" + "x" * 90, b"y"), ("../c", b"bad")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return buffer.getvalue()


def zeros(size: int, head: bytes = b"") -> bytes:
    """``head`` and ``size`` zeros, gzipped."""
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(head) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sparse = tarfile.TarInfo("s.nii")
    sparse.size = 512
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.nii", "GNU.sparse.realsize": "3100000000"}  # fmt: skip
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(sparse, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
    refused(
        lambda: unpack(tmp_path / "sparse.tar", out),
        "sparse.tar unpacks to 302735 times its size",
        "ADBENCH_MAX_ARCHIVE_GROWTH",
    )
    assert archive.members(tmp_path / "sparse.tar") == []
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        zipped.writestr("a.nii", bytes(120_000_000))
    refused(lambda: unpack(tmp_path / "a.zip", out), "a.zip unpacks to", "where at most 100 are read")
    name = tarfile.TarInfo("x")
    name.type, name.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar.gz").write_bytes(zeros(1 << 20, name.tobuf()))
    refused(lambda: unpack(tmp_path / "a.tar.gz", out), "a header of more than 1048576 bytes")
    endless = tarfile.TarInfo("s.nii")
    endless.size = 1 << 30
    endless.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.nii"}
    pieces = endless.tobuf(tarfile.PAX_FORMAT) + b"999999999\n" + b"0\n" * (1 << 20)  # so many, all at 0
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(pieces, 1))
    refused(lambda: unpack(tmp_path / "b.tar.gz", out), "a header of more than 1048576 bytes")
    assert not out.exists()


def test_archives_with_too_many_files_or_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(tar())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for number in range(9):
            file.writestr(f"{number}", b"x")
    with monkeypatch.context() as few:
        few.setattr(limits, "ARCHIVE_FILES", limits.Limit("ARCHIVE_FILES", 3, "files"))
        refused(lambda: archive.members(tmp_path / "a.tar"), "a.tar holds at least 4 files, where at most 3 are read")
        refused(lambda: unpack(tmp_path / "a.zip", tmp_path / "out"), "a.zip may list 4 files")
    refused(lambda: unpack(tmp_path / "a.tar", tmp_path / "out"), "holds ../c, which would land outside")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with tarfile.open(tmp_path / "large.tar", "w") as large:
        info = tarfile.TarInfo("a/b.nii")
        info.size = 540
        large.addfile(info, io.BytesIO(b"voxels" * 90))
    refused(lambda: unpack(tmp_path / "large.tar", tmp_path / "out"), "needs 540 bytes more", "100 are free")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "b.nii").write_bytes(b"voxels" * 90)  # what is there needs no room
    assert unpack(tmp_path / "large.tar", tmp_path / "out").files == 1


def test_a_zip_that_says_a_name_is_as_long_as_the_file_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.nii", b"voxels" * 9000)
    whole = path.read_bytes()
    path.write_bytes(whole[:26] + b"\xff\x7f" + whole[28:])
    refused(lambda: unpack(path, tmp_path / "out"), "a.zip is damaged or half downloaded (File name in directory")
    with pytest.raises(UserError, match=r"^.{1,600}$"):
        unpack(path, tmp_path / "out")


@often
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_archives(tmp_path: Path, examples: int, name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/b.nii", b"voxels" * 90)
        file.writestr("../c", b"bad")
    plain = changed(tar(), tar(tarfile.GNU_FORMAT))
    files = {
        "a.tar": plain,
        "a.tar.gz": st.one_of(*(plain.map(pack) for pack in (gzip.compress, bz2.compress, lzma.compress)), changed(gzip.compress(tar()))),
        "a.zip": changed(buffer.getvalue()),
    }  # fmt: skip
    held(tmp_path, examples, files[name], name, archive.members, lambda path: unpack(path, tmp_path / "out"))


@often
def test_npz(tmp_path: Path, examples: int) -> None:
    histograms = SubjectHistograms()
    for subject in ("sub-1", "sub-2"):
        histograms.update(subject, np.array([0.1, 0.4, 0.4, 2.5]), np.array([False, True, False, True]))
    histograms.to_npz(tmp_path / "x")
    honest = (tmp_path / "x").read_bytes()
    (tmp_path / "x").unlink()
    held(tmp_path, examples, changed(honest), "a.npz", SubjectHistograms.from_npz)


_YAML = [
    "method: [zscore, histeq]\nset: {method: {sigma: 2.5}}\nseed: 3\n",
    "a: &a {x: [1, 2]}\nb: {<<: *a, y: *a}\nc: 2001-12-14\nd: !!binary aGk=\n",
    "? [x]\n: |\n  text\n---\n- !!set {a, b}\n",
]
_MARKS = st.text("[]{}:,-&*a!<#|>?%@\"'\n \t0_e.", max_size=40)


@often
def test_yaml(tmp_path: Path, examples: int) -> None:
    files = st.one_of(changed(*(text.encode() for text in _YAML)), _MARKS.map(str.encode))
    held(tmp_path, examples, files, "a.yaml", lambda path: read_yaml(path, "config file"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "goes down 51 levels"),
        ("a: &a [*a]", "holds a value within itself, by its alias *a"),
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)), "100000 are read"),
        ("a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)), "100000 are read"),
        ("a: 1\n" * 100_000, "has at least 200001 bytes"),
        ("a: !!timestamp 2001-99-99", "is not valid YAML"),
    ],
)  # fmt: skip
def test_yaml_that_stands_for_too_much(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    refused(lambda: read_yaml(tmp_path / "a.yaml", "config file"), "a.yaml", message)


def test_a_table_that_unpacks_to_far_more_than_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/worksheets/sheet1.xml", bytes(20_000_001))
    refused(lambda: read_mapping(tmp_path / "a.xlsx"), "a.xlsx unpacks to 20000001 bytes", "ADBENCH_MAX_TABLE_BYTES")


def test_a_limit_that_is_no_number_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADBENCH_MAX_YAML_DEPTH", "lots")
    refused(
        lambda: limits.Limit("YAML_DEPTH", 50, "levels"), "ADBENCH_MAX_YAML_DEPTH=lots is no whole number of levels"
    )


def test_no_number_of_subjects_takes_for_ever() -> None:
    refused(lambda: build(Phantom.Params, "phantom", {"n_test": 10**12}), "n_test", "100000")


@often
def test_safetensors(tmp_path: Path, examples: int) -> None:
    import torch
    from safetensors.torch import save

    tensors = {"heights": torch.arange(2), "mean": torch.zeros(2, 4, 4), "std": torch.ones(2, 4, 4)}
    saved = tmp_path / "out"
    context = Context(device="cpu", seed=0, workdir=saved)
    method = ZScore(build(ZScore.Params, "method zscore", {}), context)
    method.load_state(tensors)
    method.save(saved)

    def read(path: Path) -> None:
        (saved / "model.safetensors").write_bytes(path.read_bytes())
        ZScore.load(saved, context)

    held(tmp_path, examples, changed(save(tensors)), "a.safetensors", read)


@pytest.fixture(scope="module")
def converter() -> Any:
    """examples/convert_madad_vae.py."""
    path = Path(__file__).parents[2] / "examples" / "convert_madad_vae.py"
    spec = importlib.util.spec_from_file_location("hostile_converter", path)
    assert spec is not None
    assert spec.loader is not None
    script = sys.modules["hostile_converter"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_a_pickle_changes_nothing_for_the_next_file(tmp_path: Path, converter: Any) -> None:
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "honest.pt")
    (tmp_path / "a.pt").write_bytes(b"\x80\x02ctorch\nFloatStorage\n}Vdtype\nVint8\nsb.")  # float32 is called int8
    with pytest.raises(converter.ConversionError):
        converter.read(tmp_path / "a.pt")
    assert converter.read(tmp_path / "honest.pt").tensors["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02]r\xff\xff\xff\x0f.",  # a place in the memo that makes room for all before it
        *(b"\x80\x05" + code + struct.pack("<Q", 1 << 32) + b"." for code in (b"\x8e", b"\x96", b"\x95", b"\x8d")),
        b"\x80\x02" + b"]" * 200_000 + b".",
        b"\x80\x02(" + b"K\x01" * 100_000 + b"tq\0cbuiltins\nset\nq\1" + b"(h\1h\0\x85R" * 1000 + b".",
    ],
)
def test_a_pickle_takes_no_more_memory_than_its_size_allows(
    tmp_path: Path, converter: Any, monkeypatch: pytest.MonkeyPatch, program: bytes
) -> None:
    monkeypatch.setattr(converter, "PROGRAM", 199_999 if b"]]]" in program else converter.PROGRAM)
    (tmp_path / "a.pt").write_bytes(program)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(converter.ConversionError, match=r"a\.pt (is refused|cannot be read)"):
        converter.read(tmp_path / "a.pt")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000 < MEGABYTES


@often
@pytest.mark.parametrize("modern", [True, False])
def test_pickles_of_the_converter(tmp_path: Path, converter: Any, examples: int, modern: bool) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 3), buffer, _use_new_zipfile_serialization=modern)

    def read(path: Path) -> None:
        try:
            converter.read(path)
        except converter.ConversionError as error:
            raise UserError(str(error)) from None

    held(tmp_path, examples, changed(buffer.getvalue()), "a.pt", read)


@often
def test_case_files(tmp_path: Path, examples: int) -> None:
    """A case file that is not as it was written is one that is not there."""
    text = b'{"slices": [1], "shape": [1, 2, 3], "remarks": []}'
    whole = bytes(6 * 4) + text + case_file.ending(text)
    path = tmp_path / "whole"
    path.write_bytes(whole)
    assert case_file.read_case(path) == {"slices": [1], "shape": [1, 2, 3], "remarks": []}
    path.unlink()

    def read(path: Path) -> None:
        content = path.read_bytes()
        if content[-4:] != bytes(4):  # as earlier versions ended
            assert (case_file.read_case(path) is None) == (content[24:] != whole[24:] or len(content) != len(whole))

    held(tmp_path, examples, changed(whole), "a.case", read)


@often
def test_maps_and_masks(tmp_path: Path, examples: int) -> None:
    mask = nibabel.Nifti1Image((np.arange(60).reshape(3, 4, 5) > 50).astype(np.uint8), np.diag([2.0, 2, 3, 1]))
    mask.set_qform(mask.affine, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_mask.nii").write_bytes(mask.to_bytes())
    held(
        tmp_path, examples, changed(volume()), "a_map.nii", lambda path: list(CaseFolder(path.parent, tmp_path / "out"))
    )


def test_a_table_that_is_encrypted_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/worksheets/sheet1.xml", "<worksheet>" + "<row/>" * 500 + "</worksheet>")
    whole = path.read_bytes()
    data, listed = whole.index(b"sheet1.xml") + 10, whole.index(b"PK\1\2")
    damaged = whole[:data] + b"\xff" * 8 + whole[data + 8 :]
    encrypted = whole[:listed] + whole[listed : listed + 8] + b"\1" + whole[listed + 9 :]
    unknown = whole[:8] + b"\x63" + whole[9 : listed + 10] + b"\x63" + whole[listed + 11 :]
    for content in (damaged, encrypted, unknown):
        path.write_bytes(content)
        refused(lambda: read_mapping(path), "a.xlsx cannot be read", "copy it again")
