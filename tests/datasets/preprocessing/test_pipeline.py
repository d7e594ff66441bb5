"""The recipe on volumes whose every voxel is known."""

from __future__ import annotations

import re
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from adbench.datasets.export import original_volume, prepared_volume
from adbench.datasets.geometry import Geometry
from adbench.datasets.preprocessing import pipeline, registration, template
from adbench.datasets.preprocessing.base import RawVolume, RecipeParams
from adbench.datasets.preprocessing.pipeline import ranges, run_recipe
from adbench.errors import UserError

SHAPE = (60, 72, 50)  # RAS voxels of 3 mm
RAS = np.array([[3.0, 0, 0, -90], [0, 3, 0, -110], [0, 0, 3, -70], [0, 0, 0, 1]])
PARAMS = RecipeParams(field_of_view=240, size=80, min_brain=0.005)


def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, brain and lesion in RAS voxels: a lesion on the left, in front, high up; every voxel of the brain differs."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.7
    image = (1000 + np.arange(brain.size).reshape(SHAPE) % 997).astype(np.int16) * brain
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[14:20, 44:50, 30:35] = 4
    return image, brain, lesion


def stored_as(array: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A RAS array in another order and direction of its axes, with the affine that says so."""
    turned = array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    to_ras = np.zeros((4, 4))
    to_ras[3, 3] = 1
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        to_ras[source, axis] = sign
        to_ras[source, 3] = 0 if sign > 0 else SHAPE[source] - 1
    return turned, RAS @ to_ras


ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS, ids=lambda value: "".join(map(str, value)))
def test_left_stays_left_in_all_48_orientations(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    image, _, lesion = head()
    stored, affine = stored_as(image, order, signs)
    mask, _ = stored_as(lesion, order, signs)
    stack = run_recipe(RawVolume("a", "T1", stored, affine, lesion=mask, skull=False), PARAMS)
    straight = run_recipe(RawVolume("a", "T1", image, RAS, lesion=lesion, skull=False), PARAMS)
    np.testing.assert_array_equal(stack.image, straight.image)
    assert stack.lesion is not None
    np.testing.assert_array_equal(stack.lesion, straight.lesion)
    planes, rows, columns = np.nonzero(stack.lesion)
    assert columns.max() < 40  # the patient's left, on the left
    assert rows.max() < 40  # anterior, at the top
    assert {stack.slices[plane] for plane in planes} == set(range(30, 35))
    assert stack.lesion.sum() == 6 * 6 * 5
    # And back: voxel for voxel.
    geometry = stack.geometry
    assert geometry is not None
    back = original_volume(geometry, stack.slices, stack.lesion, linear=False)
    np.testing.assert_array_equal(back, mask > 0)
    exported = original_volume(geometry, stack.slices, stack.image, linear=True)
    inside = original_volume(geometry, stack.slices, stack.brain, linear=False)
    low, high = stack.quality["intensity_low"], stack.quality["intensity_high"]
    expected = np.clip((stored.astype(np.float64) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(exported[inside], expected[inside], atol=1e-6)


def test_slices_read_as_a_radiologist_never_would_but_left_is_left() -> None:
    """Voxel (x, y, z) of a RAS volume is plane z, row counted from the front, column x."""
    image, _, _ = head()
    stack = run_recipe(RawVolume("a", "T1", image, RAS, skull=False), PARAMS)
    x, y, z = 21, 50, 31
    assert stack.geometry is not None
    (left, top), size = stack.geometry.corner, stack.geometry.size
    assert (left, top) == (-10, -4)
    assert size == 80
    value = stack.image[list(stack.slices).index(z), SHAPE[1] - 1 - y - top, x - left]
    low, high = stack.quality["intensity_low"], stack.quality["intensity_high"]
    assert value == pytest.approx((image[x, y, z] - low) / (high - low), abs=1e-6)


@pytest.mark.parametrize("angle", [10.0, -25.0])
def test_an_oblique_volume_keeps_its_voxels_and_its_place(angle: float) -> None:
    image, _, lesion = head()
    turn = np.eye(4)
    radian = np.deg2rad(angle)
    turn[:2, :2] = [[np.cos(radian), -np.sin(radian)], [np.sin(radian), np.cos(radian)]]
    affine = turn @ RAS
    stack = run_recipe(RawVolume("a", "T1", image, affine, lesion=lesion, skull=False), PARAMS)
    assert stack.lesion is not None
    assert stack.geometry is not None
    volume, place = prepared_volume(stack.geometry, stack.slices, stack.lesion)
    found = np.argwhere(volume).mean(axis=0) @ place[:3, :3].T + place[:3, 3]
    truth = np.argwhere(lesion).mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(found, truth, atol=1e-6)
    np.testing.assert_array_equal(original_volume(stack.geometry, stack.slices, stack.lesion, linear=False), lesion > 0)


def test_geometry_survives_json() -> None:
    import json

    image, _, _ = head()
    geometry = run_recipe(RawVolume("a", "T1", image, RAS, skull=False), PARAMS).geometry
    assert geometry is not None
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


def test_intensities_by_the_percentiles_inside_the_brain() -> None:
    rng = np.random.default_rng(0)
    image, brain, _ = head()
    image = np.where(brain, rng.normal(500, 100, SHAPE), 0).astype(np.float32)
    stack = run_recipe(RawVolume("a", "T1", image, RAS, brain=brain), PARAMS)
    low, high = np.percentile(image[brain], [0.5, 99.5])
    assert stack.quality["intensity_low"] == pytest.approx(low)
    assert stack.quality["intensity_high"] == pytest.approx(high)
    assert stack.quality["clipped_share"] == pytest.approx(0.01, abs=5e-4)
    assert stack.quality["brain_ml"] == pytest.approx(brain.sum() * 27 / 1000)
    assert stack.image.min() == 0
    assert stack.image.max() == 1
    assert not stack.image[~stack.brain].any()


def test_lesions_are_counted_before_and_after_and_what_is_lost_is_said() -> None:
    image, _, lesion = head()
    lesion[:] = 0
    lesion[30, 36, 25] = 1  # a single voxel
    lesion[30, 36, 3] = 1  # in a plane with too little brain
    lesion[2, 36, 25] = 2  # outside the brain
    raw = RawVolume("a", "T1", image, RAS, lesion=lesion, skull=False)
    same = run_recipe(raw, RecipeParams(field_of_view=240, size=80, min_brain=0.02))
    unit = 0.027
    assert same.quality["lesion_ml_source"] == pytest.approx(3 * unit)
    assert same.quality["lesion_ml"] == pytest.approx(2 * unit)
    assert same.quality["lesion_outside_brain_ml"] == pytest.approx(unit)
    assert "lesion: 1 of 3 voxels lie in slices left out (3)" in same.remarks
    assert "lesion: 1 of 2 prepared voxels lie outside the brain mask" in same.remarks
    small = run_recipe(raw, RecipeParams(field_of_view=240, size=16, min_brain=0.02))  # every fifth voxel is looked at
    lost = "slice 25: its lesion (2 voxels) was lost in resizing"
    assert small.lesion is not None
    assert (lost in small.remarks) == (not small.lesion.any())
    assert lost in small.remarks
    chosen = run_recipe(RawVolume("a", "T1", image, RAS, lesion=lesion, lesion_labels=(2,), skull=False), PARAMS)
    assert chosen.quality["lesion_ml_source"] == pytest.approx(unit)


def test_a_lesion_where_no_plane_holds_enough_brain() -> None:
    image, _, lesion = head()
    raw = RawVolume("a", "T1", image, RAS, lesion=lesion, skull=False)
    stack = run_recipe(raw, PARAMS.model_copy(update={"min_brain": 0.99}))
    assert len(stack.slices) == 0
    assert stack.quality["lesion_ml"] == 0
    assert any("voxels lie in slices left out" in remark for remark in stack.remarks)


def test_every_second_slice() -> None:
    image, _, lesion = head()
    stack = run_recipe(
        RawVolume("a", "T1", image, RAS, lesion=lesion, skull=False), PARAMS.model_copy(update={"slice_step": 2})
    )
    assert all(z % 2 == 0 for z in stack.slices)
    assert stack.geometry is not None
    assert stack.lesion is not None
    assert stack.quality["lesion_ml"] == pytest.approx(6 * 6 * 3 * 2 * 0.027)  # planes 30, 32, 34, each for two
    back = original_volume(stack.geometry, stack.slices, stack.lesion, linear=False)
    np.testing.assert_array_equal(back[:, :, ::2], (lesion > 0)[:, :, ::2])


def test_pixels_that_are_not_square_become_square() -> None:
    image, brain, _ = head()
    thin = np.diag([3.0, 1.5, 3.0, 1.0])
    stack = run_recipe(RawVolume("a", "T1", image, thin, skull=False), PARAMS)
    box = np.argwhere(stack.brain.any(axis=0))
    tall, wide = np.ptp(box, axis=0) + 1
    assert wide / tall == pytest.approx(
        np.ptp(np.nonzero(brain)[0]) * 3 / (np.ptp(np.nonzero(brain)[1]) * 1.5), rel=0.05
    )


def test_a_head_off_the_centre_stays_in_the_square() -> None:
    image, _, _ = head()
    wide = np.zeros((160, 72, 50), np.int16)
    wide[95:155] = image
    stack = run_recipe(RawVolume("a", "T1", wide, RAS, skull=False), PARAMS)
    assert stack.brain.sum() == sum((image[:, :, z] > 0).sum() for z in stack.slices)
    cropped = run_recipe(
        RawVolume("a", "T1", wide, RAS, skull=False), RecipeParams(field_of_view=160, size=30, min_brain=0.01)
    )
    assert any("brain voxels lie beyond the field of view" in remark for remark in cropped.remarks)


@pytest.mark.parametrize(
    ("params", "square", "advice"),
    [
        ({"field_of_view": 90, "size": 30}, "90 mm (30 pixels of 3 mm)", {"field_of_view": 184}),
        ({"mm": 1, "size": 64}, "64 mm (64 pixels of 1 mm)", {"mm": 2.88}),
    ],
)
def test_a_square_that_cuts_the_brain_is_refused(params: dict[str, int], square: str, advice: dict[str, float]) -> None:
    raw = RawVolume("a", "T1", head()[0], RAS, skull=False)
    with pytest.raises(UserError) as caught:
        run_recipe(raw, RecipeParams(**params, min_brain=0.01))
    (said,) = (f"{name}={value}" for name, value in advice.items())
    assert re.fullmatch(
        rf"T1 of case a: its brain is 180 mm wide, and \d\d\.\d% of it lie beyond the square of {re.escape(square)}\. "
        rf"Use at least --set dataset\.{said}\.",
        str(caught.value),
    )
    stack = run_recipe(raw, RecipeParams(**{**params, **advice}, min_brain=0.01))
    assert not any("beyond" in remark for remark in stack.remarks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros(SHAPE)}, "every voxel is 0"),
        ({"image": np.ones(SHAPE)}, "every voxel is 1"),
        ({"image": 1.0 + np.arange(np.prod(SHAPE)).reshape(SHAPE)}, "not skull-stripped with background 0"),
        ({"brain": np.zeros(SHAPE, bool), "skull": True}, "its brain mask is empty"),
        ({"brain": np.ones((2, 2, 2), bool)}, r"brain mask has shape \(2, 2, 2\)"),
        ({"lesion": np.ones((2, 2, 2), np.uint8)}, r"lesion mask has shape \(2, 2, 2\)"),
        ({"image": np.ones((4, 4))}, "expected three axes"),
        ({"image": (head()[1] * 7).astype(np.int16)}, r"constant inside the brain \(7 everywhere\)"),
    ],
)
def test_bad_volumes_are_named(change: dict, message: str) -> None:
    raw = RawVolume("case-7", "T2", head()[0], RAS, source=Path("/data/case-7_T2.nii.gz"), skull=False)
    for name, value in change.items():
        setattr(raw, name, value)
    with pytest.raises(UserError, match=rf"T2 of case case-7 \(/data/case-7_T2\.nii\.gz\).*{message}"):
        run_recipe(raw, PARAMS)


def test_a_volume_that_claims_to_lie_on_the_template() -> None:
    with pytest.raises(
        UserError, match=r"its grid of \(60, 72, 50\) voxels .* is not the template's, \(197, 233, 189\)"
    ):
        run_recipe(RawVolume("a", "T1", head()[0], RAS), PARAMS, on_template=True)


def test_the_template_mask_on_its_own_grid() -> None:
    rng = np.random.default_rng(0)
    scan = np.where(template.mask(20.0), template.brain() + rng.integers(5, 20, template.SHAPE), 0).astype(np.float32)
    params = RecipeParams(brain="template", template_margin=2.0, size=64)
    stack = run_recipe(RawVolume("a", "T1", scan[::-1], template.AFFINE @ np.diag([-1, 1, 1, 1]) @ _shift(-196)), params, on_template=True)  # fmt: skip
    assert stack.quality["brain_ml"] == pytest.approx(template.mask(2.0).sum() / 1000)
    assert stack.quality["registration_correlation"] > 0.9
    assert stack.geometry is not None
    assert stack.geometry.registration == "none"


def _shift(x: float) -> np.ndarray:
    moved = np.eye(4)
    moved[0, 3] = x
    return moved


def test_t2_takes_brain_and_place_from_the_t1_of_the_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head moved 6 mm to the right between the sequences, and the registration finds that."""
    image, brain, _ = head()
    moved = np.eye(4)
    moved[0, 3] = 6.0
    found = []

    def register(fixed, fixed_affine, mask, moving, moving_affine, initial, kind):
        found.append(kind)
        assert mask.sum() == brain.sum()
        return moved  # T1 world to T2 world

    monkeypatch.setattr(registration, "register", register)
    companion = RawVolume("a", "T1", image, RAS, brain=brain)
    t2 = RawVolume("a", "T2", np.roll(image, 2, axis=0), RAS, companion=companion)
    stack = run_recipe(t2, PARAMS)
    straight = run_recipe(companion, PARAMS)
    assert found == ["rigid"]
    np.testing.assert_array_equal(stack.brain[:, :, 2:], straight.brain[:, :, :-2])
    np.testing.assert_allclose(stack.image[:, :, 2:], straight.image[:, :, :-2], atol=1e-6)


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.datasets.preprocessing import brain_extraction

    monkeypatch.setattr(registration, "installed", lambda: False)
    for params in (RecipeParams(registration="affine"), RecipeParams(n4=True), RecipeParams(brain="template")):
        with pytest.raises(UserError, match=r'needs SimpleITK: pip install "adbench-mri\[prepare\]"'):
            pipeline.recipe_steps(params, skull=True, on_template=False)
    monkeypatch.setattr(brain_extraction, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'with deepbet needs deepbet: pip install "adbench-mri\[prepare\]"'):
        pipeline.recipe_steps(RecipeParams(brain="deepbet"), skull=True, on_template=False)
    # ATLAS (on the template) and BraTS (no skull) prepare all the same.
    assert pipeline.recipe_steps(RecipeParams(), skull=True, on_template=True)[1]["tool"] == "MNI152 2009a symmetric"
    assert pipeline.recipe_steps(RecipeParams(), skull=False, on_template=False)[1]["without a mask"] == "background"


def test_what_is_slow_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.datasets.preprocessing import brain_extraction

    image, brain, _ = head()
    made = []
    monkeypatch.setattr(brain_extraction, "extract", lambda *_: made.append(1) or brain)
    params = PARAMS.model_copy(update={"brain": "deepbet"})
    first = run_recipe(RawVolume("a", "T1", image, RAS), params, cache=tmp_path)
    smaller = run_recipe(RawVolume("a", "T1", image, RAS), params.model_copy(update={"size": 40}), cache=tmp_path)
    assert len(made) == 1
    assert first.image.shape[1:] == (80, 80)
    assert smaller.image.shape[1:] == (40, 40)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])  # half a file
    again = run_recipe(RawVolume("a", "T1", image, RAS), params, cache=tmp_path)
    np.testing.assert_array_equal(first.image, again.image)
    run_recipe(RawVolume("a", "T1", image + 1, RAS), params, cache=tmp_path)  # another head
    assert len(made) == 3


def test_a_damaged_entry_of_the_cache_is_made_again(tmp_path: Path) -> None:
    from adbench.datasets.preprocessing.pipeline import cached

    def make() -> np.ndarray:
        return np.random.default_rng(0).integers(0, 4, 20000)

    expected = cached(tmp_path, ["step"], "noise", make)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(60, len(whole) - 200, 499):  # the checksum fails, or the stream cannot be inflated at all
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        np.testing.assert_array_equal(cached(tmp_path, ["step"], "noise", make), expected)


def test_ranges() -> None:
    assert ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"
    assert ranges([]) == ""
