"""NIfTI reading against nibabel, and every way in which a file can be broken."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from adbench.datasets.io import nifti
from adbench.datasets.io.archive import FileError

OBLIQUE = np.array([[0.02, -0.003, 1.2, -90], [-0.93, 0.13, 0.02, 102], [0.13, 0.93, 0.0, -114], [0, 0, 0, 1]])


def save(path: Path, data: np.ndarray, affine: np.ndarray = OBLIQUE, **fields: float) -> Path:
    """Written by nibabel."""
    image = nibabel.Nifti1Image(data, affine)
    if fields:
        image.header.set_slope_inter(fields["slope"], fields["inter"])
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2", ">f4"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_agrees_with_nibabel(tmp_path: Path, dtype: str, suffix: str) -> None:
    data = np.random.default_rng(0).integers(0, 200, (5, 7, 6)).astype(np.dtype(dtype).newbyteorder("="))
    image = nibabel.Nifti1Image(data, OBLIQUE)
    if dtype.startswith(">"):
        image = nibabel.Nifti1Image(data, OBLIQUE, image.header.as_byteswapped(">"))
    path = tmp_path / f"x{suffix}"
    nibabel.save(image, path)
    volume = nifti.read(path)
    reference = nibabel.load(path)
    np.testing.assert_array_equal(volume.data, np.asarray(reference.dataobj))
    np.testing.assert_array_equal(volume.affine, reference.affine)
    assert volume.data.dtype.isnative
    assert volume.header.orientation == "".join(nibabel.aff2axcodes(reference.affine)) == "PSR"
    assert volume.header.bytes == len(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
    np.testing.assert_allclose(volume.header.zooms, reference.header.get_zooms(), rtol=1e-6)
    assert nifti.read_header(path).shape == (5, 7, 6)


def test_scaling_of_the_header_is_applied(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", np.linspace(-3, 9, 60).reshape(3, 4, 5).astype(np.int16), slope=0.5, inter=-4.0)
    volume = nifti.read(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data, nibabel.load(path).get_fdata(), atol=1e-6)


def test_scores_keep_the_precision_of_their_file(tmp_path: Path) -> None:
    """What nibabel gives, to the last bit: float64 as stored, and scaled integers in float64."""
    scores = np.random.default_rng(0).random((3, 4, 5))
    save(tmp_path / "f.nii.gz", scores)
    np.testing.assert_array_equal(nifti.read(tmp_path / "f.nii.gz", exact=True).data, scores)
    assert nifti.read(tmp_path / "f.nii.gz").data.dtype == np.float32
    path = save(tmp_path / "i.nii.gz", np.arange(60, dtype=np.int16).reshape(3, 4, 5), slope=0.1, inter=-4.0)
    found, expected = nifti.read(path, exact=True).data, np.asarray(nibabel.load(path).dataobj)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_nifti2_several_members_and_a_trailing_axis(tmp_path: Path) -> None:
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5, 1)
    raw = nibabel.Nifti2Image(data, np.eye(4)).to_bytes()
    path = tmp_path / "two.nii.gz"
    path.write_bytes(gzip.compress(raw[:700]) + gzip.compress(raw[700:]))
    np.testing.assert_array_equal(nifti.read(path).data, data[..., 0])


def test_writing_is_atomic_deterministic_and_read_back(tmp_path: Path) -> None:
    data = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write(tmp_path / name, data, OBLIQUE, codes=(2, 0))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), data)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 0)


def test_checksum_is_that_of_the_uncompressed_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    raw = gzip.decompress(path.read_bytes())
    import zlib

    assert nifti.checksum(path) == (zlib.crc32(raw), len(raw))
    plain = tmp_path / "x.nii"
    plain.write_bytes(raw)
    assert nifti.checksum(plain) == (zlib.crc32(raw), len(raw))
    assert nifti.checksum(plain, plain=False) is None
    several = tmp_path / "y.nii.gz"
    several.write_bytes(b"".join(gzip.compress(part) for part in (raw[:360], raw[360:], b"")))
    assert nifti.checksum(several) == (zlib.crc32(raw), len(raw))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (np.array([0, 1, 4], np.uint8), "the values 0, 1, 4 alone"),
        (np.array([0.0, 2.0], np.float32), "the values 0, 2 alone"),
        (np.array([0.0], np.float32), ""),
        (np.array([0.0, 0.5], np.float32), "values from 0 to 1, most of them 0"),
        (np.linspace(0, 1, 64_800), "values from 0 to 1, most of them 0"),
        (np.linspace(0, 1, 64_900), ""),  # more than a tenth is not 0
        (np.array([0.5, 1.1], np.float32), ""),
        (np.array([0.5, -0.1], np.float32), ""),
        (np.arange(17, dtype=np.int16), "17 whole numbers from 0 to 16 alone"),  # lesions, numbered
        (np.arange(256, dtype=np.int16), "256 whole numbers from 0 to 255 alone"),
        (np.arange(257, dtype=np.int16), ""),
        (np.arange(-8, 9, dtype=np.int16), ""),
        (np.arange(17) + 0.5, ""),
        (np.repeat(np.arange(1, 41, dtype=np.uint8), 2000), "41 whole numbers from 0 to 40 alone"),  # parts of a brain
        (np.arange(1, 80_001).astype(np.uint8), ""),  # a brain in 8 bits
        (np.array([0, np.nan], np.float32), ""),
    ],
)
@pytest.mark.parametrize("name", ["m.nii.gz", "m.nii"])
def test_values_tell_a_mask_from_an_image(tmp_path: Path, data: np.ndarray, expected: str, name: str) -> None:
    volume = np.zeros((90, 80, 90), data.dtype).T  # longer than the block that is looked at first
    volume.T.reshape(-1)[-len(data) :] = data  # x fastest
    image = nibabel.Nifti1Image(volume, np.eye(4))
    nibabel.save(image, tmp_path / name)
    assert nifti.mask_values(tmp_path / name) == expected


def broken(path: Path) -> FileError:
    with pytest.raises(FileError) as caught:
        nifti.read(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.fixture
def good(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    return save(tmp_path / "größe x.nii.gz", rng.integers(0, 3000, (20, 21, 22)).astype(np.int16))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_gzip(good: Path, share: float) -> None:
    content = good.read_bytes()
    good.write_bytes(content[: int(len(content) * share)])
    assert broken(good).code in ("truncated", "unreadable")
    if share > 0.4:
        assert "truncated" in str(broken(good))
        nifti.read_header(good)  # the header alone is whole


def test_truncated_plain_file_says_both_lengths(good: Path) -> None:
    raw = gzip.decompress(good.read_bytes())
    plain = good.with_suffix("").with_suffix(".nii")
    plain.write_bytes(raw[:-100])
    error = broken(plain)
    assert error.code == "truncated"
    assert f"{len(raw) - 100} bytes where its header announces {len(raw)}" in str(error)


def test_damaged_bytes_empty_file_and_other_formats(good: Path) -> None:
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 0xFF
    good.write_bytes(content)
    assert "damaged" in str(broken(good))
    good.write_bytes(b"")
    assert "is empty" in str(broken(good))
    good.write_bytes(b"\x89PNG\r\n\x1a\n" * 60)
    assert "is not a NIfTI file" in str(broken(good))


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    data = np.zeros((4, 5, 6), np.float32)
    data[1, 2, 3] = np.nan
    data[3, 4, 5] = np.inf
    error = broken(save(tmp_path / "nan.nii.gz", data))
    assert error.code == "nonfinite"
    assert "holds 2 NaN or infinite voxels, the first at (1, 2, 3)" in str(error)
    assert nifti.nonfinite(nifti.read(tmp_path / "nan.nii.gz", finite=False).data) == (2, (1, 2, 3))
    assert "stores complex voxels" in str(broken(save(tmp_path / "c.nii.gz", np.zeros((3, 3, 3), np.complex64))))
    colour = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "stores colour voxels" in str(broken(save(tmp_path / "rgb.nii.gz", colour)))


def test_huge_finite_floats_are_finite() -> None:
    assert nifti.nonfinite(np.full((2, 2, 2), 3e38, np.float32)) is None


def test_not_three_axes(tmp_path: Path) -> None:
    assert "has 4 axes" in str(broken(save(tmp_path / "x.nii.gz", np.zeros((3, 3, 3, 2), np.int16))))


def test_singular_affine_is_damage(good: Path) -> None:
    raw = bytearray(gzip.decompress(good.read_bytes()))
    raw[280:328] = struct.pack("<12f", *[0.0] * 12)
    good.write_bytes(gzip.compress(bytes(raw)))
    assert "header" in str(broken(good))


def test_a_quaternion_that_rounding_made_too_long(good: Path) -> None:
    """The sform says where the head lies; without one the header is damaged."""
    raw = bytearray(gzip.decompress(good.read_bytes()))
    raw[252:256] = struct.pack("<2h", 1, 1)  # codes of qform and sform
    raw[256:268] = struct.pack("<3f", 0.0, 0.0, 1.0000002)
    good.write_bytes(gzip.compress(bytes(raw)))
    np.testing.assert_allclose(nifti.read(good).affine, OBLIQUE, atol=1e-6)
    assert nifti.read_header(good).codes == (1, 0)
    raw[254:256] = struct.pack("<h", 0)
    good.write_bytes(gzip.compress(bytes(raw)))
    assert "The header of" in str(broken(good))


def test_errors_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(FileError("truncated", "x is truncated")))
    assert (error.code, str(error)) == ("truncated", "x is truncated")


def test_sform_and_qform_that_disagree(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((11, 5, 5), np.int16), np.eye(4))
    image.set_sform(np.diag([1, 1, 1, 1]), 1)
    image.set_qform(np.diag([2, 1, 1, 1]), 1)
    nibabel.save(image, tmp_path / "x.nii.gz")
    assert nifti.read_header(tmp_path / "x.nii.gz").disagreement == pytest.approx(10.0)  # 10 voxels, 1 mm a voxel


@pytest.mark.parametrize("forms", [("sform", "qform"), ("sform",), ("qform",), ()])
@pytest.mark.parametrize(("unit", "to_mm"), [("meter", 1000), ("micron", 0.001)])
def test_a_header_in_another_unit_is_read_in_mm(
    tmp_path: Path, unit: str, to_mm: float, forms: tuple[str, ...]
) -> None:
    affine = np.diag([-1.0, 1, 2.5, 1])
    affine[:3, 3] = 90, -126, -72
    scaled = affine.copy()
    scaled[:3] /= to_mm
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), scaled)
    image.header.set_xyzt_units(unit)
    for form in ("sform", "qform"):
        getattr(image, f"set_{form}")(scaled if form in forms else None, code=int(form in forms))
    nibabel.save(image, tmp_path / "x.nii.gz")
    header = nifti.read_header(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(header.zooms, (1, 1, 2.5), rtol=1e-5)
    if forms:
        np.testing.assert_allclose(header.affine, affine, rtol=1e-5)
    assert header.disagreement < 1e-3
    assert "read as 1 x 1 x 2.5 mm" in " ".join(header.odd)


def test_a_unit_that_is_stated_and_not_meant(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([1.0, 1, 2.5, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "x.nii.gz")
    header = nifti.read_header(tmp_path / "x.nii.gz")
    assert (header.zooms, header.odd) == ((1.0, 1.0, 2.5), ())
