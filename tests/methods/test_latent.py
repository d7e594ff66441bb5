"""``latent`` and the autoencoder it shares with MAD-AD, against NumPy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_sets import SMALL, make_set
from scipy.ndimage import gaussian_filter

from adbench.context import Context
from adbench.errors import UserError
from adbench.methods.latent import Latent, LatentParams
from adbench.methods.madad.autoencoder import Healthy, Latents
from adbench.methods.madad.method import MADAD
from adbench.methods.simple import HistEq

SMALLER = {"image_size": 64, "ae_channels": (8, 16), "ae_steps": 3, "ae_batch": 4}  # 8 x 8 cells
CODE = {"ae_base": False, "latent_channels": 3}


def params(**values: object) -> LatentParams:
    found = Latent.resolve("tiny", {**SMALLER, **CODE, **values})
    assert isinstance(found, LatentParams)
    return found


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Latent, Path]:
    torch.set_num_threads(1)
    method = Latent(params(), Context(seed=2))
    method.fit(make_set(12), None)
    folder = tmp_path_factory.mktemp("latent")
    method.save(folder)
    return method, folder


def test_healthy_latents_against_numpy() -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(2, 4, 3, 5, 5)), rng.uniform(0.1, 0.5, size=(2, 4, 3, 5, 5))
    mean[..., 0, :, :] *= 5
    allowed = rng.random((2, 4, 1, 5, 5)) < 0.6
    healthy = Healthy.of(Latents(*(torch.from_numpy(part) for part in (mean, std, allowed))), 0.5)
    inside = allowed[0, :, 0]
    values = np.moveaxis(mean[0], 1, -1)[inside] * 0.5  # the plain copy alone
    expected = np.cov(values.T)
    np.testing.assert_allclose(healthy.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(healthy.covariance, expected, rtol=1e-12)
    np.testing.assert_allclose(healthy.spectrum, np.linalg.eigvalsh(expected)[::-1], rtol=1e-9)
    np.testing.assert_allclose(healthy.factor @ healthy.factor.T, expected + 1e-6 * np.eye(3), rtol=1e-9)
    assert healthy.cells == inside.sum()
    again = Healthy.from_notes(json.loads(json.dumps(healthy.to_notes())))
    assert torch.equal(again.covariance, healthy.covariance)


def test_latents_that_say_nothing_are_refused() -> None:
    mean, allowed = torch.randn(1, 4, 3, 4, 4), torch.zeros((1, 4, 1, 4, 4), dtype=torch.bool)
    allowed[0, 0, 0, :2] = True
    with pytest.raises(
        UserError, match=r"have 8 latent cells inside the brain, .* 3 channels needs 30: give more slices"
    ):
        Healthy.of(Latents(mean, mean.abs(), allowed), 1.0)
    with pytest.raises(UserError, match="gives all healthy cells the same latent"):
        Healthy.of(Latents(torch.full_like(mean, 0.3), mean.abs(), ~allowed), 1.0)


@pytest.mark.parametrize("distance", ["norm", "origin", "component", "mahalanobis"])
def test_map_against_numpy(fitted: tuple[Latent, Path], distance: str) -> None:
    method = Latent.load(fitted[1], Context(seed=2))
    method.params = params(distance=distance)
    batch = make_set(3, size=(64, 64), seed=6, name="t").batch(slice(None))
    from adbench.methods.common.preprocess import preprocess

    image = preprocess(batch, 64, True).image * 2 - 1
    with torch.inference_mode():
        latent = method._codec.encode(image)[0].double().numpy() * method._scale
    healthy = method._healthy
    apart = np.moveaxis(latent, 1, -1) - healthy.mean.numpy()
    sigma = healthy.covariance.numpy()
    values, vectors = np.linalg.eigh(sigma)
    expected = {
        "norm": np.sqrt((apart**2).sum(-1)),
        "origin": np.sqrt((latent**2).sum(1)),
        "component": np.abs(apart @ vectors[:, -1]) / np.sqrt(values[-1]),
        "mahalanobis": np.sqrt(np.einsum("...c,cd,...d", apart, np.linalg.inv(sigma + 1e-6 * np.eye(3)), apart)),
    }[distance]
    found = method.score(batch)
    larger = torch.nn.functional.interpolate(torch.from_numpy(expected)[:, None], size=(64, 64), mode="bilinear")
    blurred = [gaussian_filter(one[0], 2.5, mode="constant") for one in larger.numpy()]
    np.testing.assert_allclose(found[:, 0], blurred, rtol=2e-3, atol=2e-4)
    assert method.reconstruct(batch) is None


def test_the_main_component_points_to_what_is_brighter(fitted: tuple[Latent, Path]) -> None:
    method, _ = fitted
    step = torch.linalg.pinv(method._component[None])[:, 0]  # the shift that raises the component by one
    ends = torch.stack([method._healthy.mean + step, method._healthy.mean - step]).float() / method._scale
    with torch.inference_mode():
        up, down = method._codec.decode(ends[:, :, None, None].expand(-1, -1, 8, 8)).mean(dim=(1, 2, 3))
    assert up > down
    batch = make_set(3, seed=6, name="t").batch(slice(None))
    sides = {}
    for sign in ("abs", "positive", "negative"):
        method.params = params(distance="component", sign=sign, sigma=0.0)
        sides[sign] = method.score(batch)
    method.params = params()
    assert torch.allclose(sides["abs"], sides["positive"] + sides["negative"], atol=1e-5)
    assert float(sides["positive"].max()) > 0
    assert float(sides["negative"].max()) > 0


def test_it_is_saved_and_loaded(fitted: tuple[Latent, Path]) -> None:
    method, folder = fitted
    batch = make_set(3, seed=6, name="t").batch(slice(None))
    assert torch.equal(Latent.load(folder, Context()).score(batch), method.score(batch))


def test_madad_from_a_saved_autoencoder_equals_one_that_trains_it(fitted: tuple[Latent, Path], tmp_path: Path) -> None:
    """With the same seed the fit of ``latent`` holds the very autoencoder that MAD-AD would train."""
    over = {**SMALL, **SMALLER, **CODE, "ae_patch": 4, "noise": "matched", "steps": 1}
    folder = str(shutil.copytree(fitted[1], tmp_path / "of-jane" / "fit"))
    states = []
    for values in (over, {**over, "autoencoder": folder, "ae_steps": 0}):
        method = MADAD(MADAD.resolve("tiny", values), Context(seed=2))
        method.fit(make_set(12), None)
        states.append({**method.state(), "scale": torch.tensor(method._scale)})
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    named = MADAD.resolve("tiny", {**over, "autoencoder": folder, "ae_steps": 0})
    assert [path.name for path in MADAD.files(named)] == ["method.json", "model.safetensors"]
    shutil.rmtree(folder)  # a fit needs no folder that it began from, and does not tell where that was
    method.save(tmp_path / "saved")
    assert "of-jane" not in (tmp_path / "saved" / "method.json").read_text()
    batch = make_set(2, seed=6, name="t").batch(slice(None))
    assert torch.equal(MADAD.load(tmp_path / "saved", Context(seed=2)).score(batch), method.score(batch))


def test_a_saved_fit_that_cannot_be_started_from(fitted: tuple[Latent, Path], tmp_path: Path) -> None:
    def fit(**values: object) -> None:
        Latent(params(ae_steps=0, **values), Context()).fit(make_set(4), None)

    with pytest.raises(
        UserError, match=r"it was trained with standardise = True, and this fit has False: set standardise"
    ):
        fit(autoencoder=str(fitted[1]), standardise=False)
    HistEq(HistEq.resolve("tiny", {}), Context()).save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert [path.name for path in Latent.files(params(autoencoder=str(tmp_path)))] == ["method.json"]
    with pytest.raises(UserError, match="a fit of histeq has no autoencoder to start from"):
        fit(autoencoder=str(tmp_path))
    (tmp_path / "method.json").write_text("{")
    with pytest.raises(UserError, match="the saved fit cannot be read"):
        fit(autoencoder=str(tmp_path))


def test_a_training_of_less_than_an_epoch_says_so() -> None:
    for steps, notes in (
        (2, ["autoencoder saw 8 of 12 training slices, less than one epoch: give it more steps or minutes."]),
        (3, []),
    ):
        assert Latent(params(ae_steps=steps), Context()).fit(make_set(12), None).notes == notes
