"""The phantom: exact, repeatable, invertible, and neither trivial nor hopeless."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_features__
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score

from adbench.config.run_config import default_cache
from adbench.datasets.phantom import anatomy, contrast, fields, lesions
from adbench.datasets.phantom.dataset import Phantom, PhantomSubject
from adbench.datasets.phantom.template import PhantomGrid
from adbench.datasets.preprocessing import template as templates
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.params import build

COARSE = PhantomGrid(4.0)


def phantom(**params: object) -> Phantom:
    return Phantom(build(Phantom.Params, "dataset phantom", params), None)


PIXELS = "9acd9b3ff920ca7b"  # of four subjects at the default resolution, float32: the same on every machine
SMALL = {"n_train": 2, "n_val": 2, "n_test": 4, "slices": 4, "resolution": 4.0}


@pytest.fixture(scope="module")
def flair() -> SliceStore:
    """The default phantom, as `adbench run` prepares it, where other tests of this session find it."""
    return prepare(phantom(), "FLAIR", default_cache())


# ---- fields and deformations


def test_spline_weights_are_a_partition_of_unity():
    spacing = 17.0
    constant = np.full(fields.control_shape(spacing, COARSE.bounds), 2.5)
    np.testing.assert_allclose(fields.evaluate_spline(constant, COARSE.axes, spacing, COARSE.bounds), 2.5, rtol=1e-5)


def test_spline_is_the_cardinal_cubic_b_spline():
    from scipy.interpolate import BSpline

    positions = np.linspace(-30, 30, 121)
    expected = BSpline.basis_element(np.arange(-2, 3) * 10.0, extrapolate=False)(positions)
    got = fields._weights(positions, -20.0, 10.0, 5)[:, 2]
    np.testing.assert_allclose(got, np.nan_to_num(expected), atol=1e-6)


def test_random_fields_have_zero_mean_and_unit_variance():
    values = [fields.random_field(np.random.default_rng(i), COARSE.axes, 9.0, COARSE.bounds) for i in range(4)]
    assert np.mean(values) == pytest.approx(0, abs=0.02)
    assert np.std(values) == pytest.approx(1, abs=0.03)


def test_fields_are_the_same_at_every_resolution():
    coarse, fine = (
        fields.random_field(np.random.default_rng(3), frame.axes, 11.0, frame.bounds)
        for frame in (COARSE, PhantomGrid(2.0))
    )
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-4)


def jacobian(coordinates: np.ndarray, step: float) -> np.ndarray:
    """Determinant of the derivative of a (3, X, Y, Z) map, by central differences."""
    derivative = np.stack([np.stack(np.gradient(component, step)) for component in coordinates])
    return np.linalg.det(np.moveaxis(derivative, (0, 1), (-2, -1)))[1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("seed", range(10))
def test_deformations_are_invertible(seed):
    rng = np.random.default_rng(seed)
    frame = PhantomGrid(3.0)
    coordinates = anatomy.deformation(rng, frame)
    determinant = jacobian(coordinates, 3.0)
    assert 0.08 < determinant.min() < 1 < determinant.max() < 3.5
    mass = anatomy.MassEffect((25.0, -10.0, 20.0), 30.0, 0.7)
    moved = mass.apply(coordinates.reshape(3, -1)).reshape(coordinates.shape)
    assert jacobian(moved, 3.0).min() > 0.003  # the tumour alone: at least (1 - strength)**3 = .027


def test_deformations_move_but_not_far():
    grid = np.stack(np.meshgrid(*COARSE.axes, indexing="ij"))
    moves = [np.linalg.norm(anatomy.deformation(np.random.default_rng(i), COARSE) - grid, axis=0) for i in range(5)]
    assert 1 < np.mean(moves) < 6
    assert np.max(moves) < 25


def test_spline_levels_at_their_limit_do_not_fold():
    frame = PhantomGrid(3.0)
    for spacing, share, _ in anatomy.LEVELS:
        assert share <= 1
        limit = share * anatomy.INJECTIVE * spacing
        coordinates = np.stack(np.meshgrid(*frame.axes, indexing="ij"))
        for i in range(3):
            signs = np.random.default_rng(i).choice([-limit, limit], fields.control_shape(spacing, frame.bounds))
            coordinates[i] += fields.evaluate_spline(signs, frame.axes, spacing, frame.bounds)
        assert jacobian(coordinates, 3.0).min() > 0.1


def test_mass_effect_pushes_outward_and_fades():
    mass = anatomy.MassEffect((10.0, 0.0, 20.0), 24.0, 0.6)
    radii = np.linspace(0, 120, 500)
    points = np.stack([10 + radii, np.zeros_like(radii), np.full_like(radii, 20)])
    before = mass.apply(points)[0] - 10
    assert np.all(np.diff(before) > 0)  # monotone along a ray: invertible
    assert np.all(before <= radii + 1e-9)  # tissue came from nearer the centre
    shift = radii - before
    assert radii[shift.argmax()] == pytest.approx(24 / np.sqrt(2), abs=0.5)
    assert shift.max() == pytest.approx(0.6 * 24 / np.sqrt(2 * np.e), rel=1e-3)
    assert shift[-1] < 1e-6


# ---- subjects


@pytest.mark.parametrize("kind", [None, *lesions.KINDS])
def test_a_plane_alone_is_the_plane_of_the_volume(kind):
    subject = PhantomSubject(0, "someone", kind)
    planes = (20, 24)
    whole, alone = PhantomGrid(4.0), PhantomGrid(4.0, planes)
    results = []
    for frame in (whole, alone):
        body, pathology = subject.draw(frame)
        signal = contrast.tissue_signal(np.random.default_rng(1), body, pathology, "FLAIR")
        results.append([body.brain, body.volume(pathology.mask), body.volume(signal)])
    for i, name in enumerate(("brain", "mask", "signal")):
        np.testing.assert_allclose(results[0][i][:, :, planes], results[1][i], atol=2e-4, err_msg=name)


def test_no_head_is_cut_off():
    frame = PhantomGrid(4.0, tuple(range(18, 34)))
    for index in range(30):
        brain = anatomy.build_anatomy(np.random.default_rng(index), frame).brain
        assert not brain[[0, -1]].any()
        assert not brain[:, [0, -1]].any()


def test_tissues_are_fractions():
    body = anatomy.build_anatomy(np.random.default_rng(0), COARSE)
    np.testing.assert_allclose(body.gm + body.wm + body.csf, 1, atol=1e-5)
    assert min(body.gm.min(), body.wm.min(), body.csf.min()) >= 0
    litres = body.brain.sum() * 4.0**3 / 1e6
    assert 1.5 < litres < 2.5
    assert 0.3 < body.gm.mean() < 0.6
    assert 0.2 < body.wm.mean() < 0.5
    assert 0.05 < body.csf.mean() < 0.3


def test_anatomy_lesion_and_brain_are_shared_by_the_modalities():
    dataset = phantom(**SMALL)
    case = dataset.discover("T1")[-1]
    scans = {modality: dataset.load(case, modality) for modality in dataset.info.modalities}
    for other in ("T1", "T2"):
        np.testing.assert_array_equal(scans["FLAIR"].brain, scans[other].brain)
        np.testing.assert_array_equal(scans["FLAIR"].lesion, scans[other].lesion)
    brain = scans["T1"].brain & ~scans["T1"].lesion
    t1, t2 = scans["T1"].image[brain], scans["T2"].image[brain]
    assert np.corrcoef(t1, t2)[0, 1] < -0.4  # fluid is dark on one and bright on the other


@pytest.mark.parametrize("kind", lesions.KINDS)
def test_lesions_are_bright_on_flair_and_t2_and_dark_on_t1(kind):
    for name in ("p", "q", "r"):
        body, pathology = PhantomSubject(1, name, kind).draw(COARSE)
        healthy = lesions.Pathology(
            np.zeros_like(pathology.water), np.zeros_like(pathology.fluid), np.zeros_like(pathology.mask)
        )
        solid = pathology.mask & (pathology.fluid < 0.1) & (body.wm > 0.7)
        for modality, sign in (("FLAIR", 1), ("T2", 1), ("T1", -1)):
            ill, well = (
                contrast.tissue_signal(np.random.default_rng(0), body, p, modality)[solid] for p in (pathology, healthy)
            )
            assert (sign * (ill - well) > 0).all()


def lesion_components(kind: lesions.Kind, count: int) -> list[np.ndarray]:
    """Volumes (ml) of the connected lesions of ``count`` subjects, each in descending order."""
    result = []
    for index in range(count):
        body, pathology = PhantomSubject(2, f"{kind}{index}", kind).draw(PhantomGrid(3.0))
        labels, _ = ndimage.label(body.volume(pathology.mask), np.ones((3, 3, 3)))
        result.append(np.sort(np.bincount(labels.ravel())[1:])[::-1] * 0.027)
    return result


def test_lesion_statistics():
    volumes = {kind: lesion_components(kind, 6) for kind in lesions.KINDS}
    total = {kind: np.array([v.sum() for v in found]) for kind, found in volumes.items()}
    for kind in lesions.KINDS:
        assert total[kind].min() > 0.3
        assert total[kind].max() < 350
    assert np.median(total["tumour"]) > 15 > np.median(total["ms"])
    for v in volumes["ms"]:
        assert len(v) >= 6  # many,
        assert v[0] < 12  # and small
    for v in volumes["tumour"]:
        assert v[0] / v.sum() > 0.8  # one mass
    for v in volumes["stroke"]:
        assert v[:4].sum() / v.sum() > 0.8  # one to three


def test_rician_noise_has_the_distribution_of_the_paper():
    noisy = contrast.add_noise(np.full(200_000, 0.3, np.float32), 0.2, np.random.default_rng(0))
    expected = stats.rice(0.3 / 0.2, scale=0.2)
    assert noisy.mean() == pytest.approx(expected.mean(), rel=5e-3)
    assert noisy.std() == pytest.approx(expected.std(), rel=1e-2)


def test_normalisation_is_the_shared_recipe():
    rng = np.random.default_rng(0)
    volume, brain = rng.normal(5, 2, (10, 10, 10)).astype(np.float32), rng.random((10, 10, 10)) < 0.6
    result = contrast.normalise(volume, brain)
    low, high = np.percentile(volume[brain], [0.5, 99.5])
    np.testing.assert_allclose(result[brain], np.clip((volume[brain] - low) / (high - low), 0, 1), atol=1e-5)
    assert not result[~brain].any()


# ---- the dataset


def test_the_same_seed_gives_the_same_pixels_in_any_order():
    first, second = phantom(**SMALL), phantom(**SMALL)
    forward = {case.id: first.load(case, "T1") for case in first.discover("T1")}
    for case in reversed(second.discover("T1")):
        stack = second.load(case, "T1")
        for name in ("image", "brain", "lesion"):
            assert getattr(stack, name).tobytes() == getattr(forward[case.id], name).tobytes()
    images = [stack.image.tobytes() for stack in forward.values()]
    assert len(set(images)) == len(images)


def test_more_subjects_leave_the_others_as_they_are():
    few, many = phantom(**SMALL), phantom(**{**SMALL, "n_train": 5})
    for a, b in zip(few.discover("T2")[:2], many.discover("T2")[:2], strict=True):
        assert a.id == b.id
        np.testing.assert_array_equal(few.load(a, "T2").image, many.load(b, "T2").image)


def test_another_seed_gives_other_people():
    one, other = phantom(**SMALL), phantom(**SMALL, seed=1)
    case = one.discover("T1")[0]
    assert not np.array_equal(one.load(case, "T1").brain, other.load(case, "T1").brain)
    assert one.recipe() != other.recipe()


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    first, second = (prepare(phantom(**SMALL), "FLAIR", tmp_path / name) for name in "xy")
    assert [file.read_bytes() for file in first.files] == [file.read_bytes() for file in second.files]
    assert first.healthy("train").digest == second.healthy("train").digest


def test_splits_and_flags():
    cases = phantom().discover("FLAIR")
    kinds = {
        split: [c.flags[0] if c.flags else "" for c in cases if c.split == split] for split in ("train", "val", "test")
    }
    assert kinds["train"] == [""] * 24
    assert kinds["val"] == [""] * 6 + ["stroke", "tumour", "ms"] * 2
    assert kinds["test"] == [""] * 4 + (["stroke", "tumour", "ms"] * 6)[:16]
    assert len({case.subject for case in cases}) == len(cases)
    only = phantom(kinds=["ms"]).discover("FLAIR")
    assert {flag for case in only for flag in case.flags} == {"ms"}


def test_slices_are_evenly_spaced_and_in_the_head():
    dataset = phantom()
    planes = np.array(dataset.planes())
    assert len(planes) == 10
    assert np.ptp(np.diff(planes)) == 0
    heights = PhantomGrid(1.7).axes[2][planes]
    assert heights.min() > 0
    assert heights.max() < 56


@pytest.mark.parametrize("slices", [1, 2, 7, 20, 60])
@pytest.mark.parametrize("resolution", [0.8, 1.7, 4.0])
def test_slices_have_one_distance_at_every_number_and_resolution(slices, resolution):
    planes = np.array(phantom(slices=slices, resolution=resolution).planes())
    heights = PhantomGrid(resolution).axes[2][planes]
    assert len(set(np.diff(planes))) <= 1
    assert len(planes) == slices or np.diff(planes)[0] == 1  # every plane there is
    assert heights.min() > -2
    assert heights.max() < 56


def test_default_store(flair):
    assert flair.shape == (128, 128)
    assert len(flair) == 560
    images, brains = flair.images[:], flair.brains[:]
    lesion = flair.lesions[:]
    assert images.min() == 0
    assert images.max() <= 1
    assert not images[~brains].any()
    assert not (lesion & ~brains).any()
    border = np.ones((128, 128), bool)
    border[1:-1, 1:-1] = False
    assert not (brains & border).any()  # nobody is cut off
    assert (brains.mean(axis=(1, 2)) > 0.2).all()


def test_default_roles(flair):
    assert len(flair.healthy("train")) == 240
    assert not any(sum(c.lesion_voxels) for c in flair.cases if c.split == "train" or not c.flags)
    ill = [case for case in flair.cases if case.flags]
    assert len(ill) == 22
    assert all(sum(case.lesion_voxels) > 0 for case in ill)


def test_healthy_people_have_bright_spots_without_a_mask(flair):
    healthy = flair.healthy("train")
    bright = healthy.images()[healthy.brains()] > 0.9
    assert 0.003 < bright.mean() < 0.08


def scores(store: SliceStore) -> dict[str, float]:
    """Pooled AUPRC on the brain voxels of test, by scikit-learn."""
    test = store.labelled("test")
    image, brain, lesion = test.images().astype(np.float32), test.brains(), test.lesions()
    ranked = np.zeros_like(image)
    for i in range(len(image)):
        values = image[i][brain[i]]
        ranked[i][brain[i]] = stats.rankdata(values, "max") / len(values)
    smooth = ndimage.gaussian_filter(ranked, (0, 2, 2))
    truth = lesion[brain]
    return {
        "prevalence": float(truth.mean()),
        "plain": float(average_precision_score(truth, image[brain])),
        "smoothed": float(average_precision_score(truth, smooth[brain])),
    }


def test_flair_is_neither_trivial_nor_hopeless(flair):
    found = scores(flair)
    assert 0.01 < found["prevalence"] < 0.06
    assert 5 * found["prevalence"] < found["plain"] < 0.7
    assert found["plain"] + 0.05 < found["smoothed"] < 0.8


def test_t1_lesions_are_not_bright(tmp_path):
    found = scores(prepare(phantom(n_train=1, n_val=2, slices=5, resolution=2.5), "T1", tmp_path))
    assert found["plain"] < found["prevalence"]


# ---- bad input, and what importing costs


def test_unknown_modality():
    with pytest.raises(UserError, match=r"Unknown modality of phantom 'FLAR'\. Did you mean 'FLAIR'"):
        phantom().discover("FLAR")


@pytest.mark.parametrize("params", [{"kinds": ["strok"]}, {"kinds": []}, {"resolution": 0}, {"n_val": 1}, {"sed": 1}])
def test_bad_parameters(params):
    with pytest.raises(UserError, match="dataset phantom"):
        phantom(**params)


def test_missing_template_is_said(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(templates, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install nilearn"):
        templates.template_files()
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(templates, "find_spec", lambda _: spec)
    with pytest.raises(UserError, match="reinstall nilearn"):
        templates.template_files()


def test_importing_the_datasets_is_cheap():
    code = (
        "import sys, adbench.datasets.adapters.folder, adbench.datasets.phantom.dataset\n"
        "print([m for m in ('torch', 'scipy', 'nilearn', 'nibabel', 'PIL', 'sklearn') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("without", ["nothing", "vector units"])
def test_pixels_do_not_depend_on_threads_or_cpu(without: str) -> None:
    """Two threads here; tests run with one, and the slices of tests/results/test_known.py are made with that.

    numpy takes other loops for powers, tangents and logarithms where a CPU has AVX-512, with other last digits.
    """
    dispatched = {"X86_V4", "AVX512_ICL", "AVX512_SPR"} & {name for name, has in __cpu_features__.items() if has}
    script = (
        "import hashlib, json, sys\n"
        "from adbench.datasets.phantom.dataset import Phantom\n"
        "from adbench.params import build\n"
        "data = Phantom(build(Phantom.Params, 'dataset phantom', {}), None)\n"
        "cases = [c for c in data.discover('FLAIR') if c.subject in sys.argv[1:]]\n"
        "stacks = [data.load(c, 'FLAIR') for c in cases]\n"
        "parts = [a.tobytes() for s in stacks for a in (s.image, s.brain, s.lesion)]\n"
        "print(json.dumps([len(parts), hashlib.sha256(b''.join(parts)).hexdigest()[:16]]))\n"
    )
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    who = ["phantom-train-000", "phantom-test-004", "phantom-test-005", "phantom-test-006"]
    done = subprocess.run(
        [sys.executable, "-c", script, *who],
        env={
            **os.environ,
            **variables,
            "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched if without != "nothing" else ()),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [12, PIXELS]
