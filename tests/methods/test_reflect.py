"""``reflect``: contours, corruption, flow and map against closed forms, and what a user can get wrong."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memory_sets import make_set
from PIL import Image

from adbench.context import Context
from adbench.errors import UserError
from adbench.methods import training
from adbench.methods.common.textures import fillings
from adbench.methods.reflect import (
    OBJECTS,
    Reflect,
    ReflectParams,
    anomaly_map,
    contour_objects,
    corrupted,
    euler,
    velocity_unet,
)

SMALLER = {**Reflect.smoke, "ae_steps": 2, "steps": 2, "augmented_copies": 1}


def params(**values: object) -> ReflectParams:
    found = Reflect.resolve("tiny", {**SMALLER, **values})
    assert isinstance(found, ReflectParams)
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, training.Stage]:
    """The stages of a fit that trains none of them, by name."""
    seen: dict[str, training.Stage] = {}

    def untrained(stage: training.Stage, ctx: Context) -> training.StageResult:
        seen[stage.name] = stage
        return training.StageResult(0, [], 0, None, 0.0)

    monkeypatch.setattr(training, "train_stage", untrained)
    return seen


def test_objects_lie_in_the_brain_and_are_as_many_as_stated() -> None:
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = (rows - 16) ** 2 + (columns - 16) ** 2 < 14**2
    brain = (disc & ((rows - 16).abs() > 2)).expand(2000, 1, 32, 32)  # two halves: no walk crosses the gap
    objects = contour_objects(brain, generator(), scale=0.02)  # small, so that few hide each other
    assert not bool(objects[~brain].any())
    empty = (objects == 0).flatten(1).all(dim=1)
    assert float(empty.float().mean()) == pytest.approx(0.1, abs=0.02)
    most = objects[~empty].flatten(1).amax(dim=1)
    found = [float((most == k).float().mean()) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, np.array([12, 6, 4, 3]) / 25, atol=0.04)  # p ~ 1/k, a few hidden
    larger = contour_objects(brain[:100], generator(), scale=1.0)
    assert float((larger > 0).float().mean()) > 3 * float((objects[:100] > 0).float().mean())
    nobody = torch.zeros((3, 1, 8, 8), dtype=torch.bool)
    assert not bool(contour_objects(nobody, generator(), empty=0.0).any())
    everything = contour_objects(~nobody.expand(3, 1, 8, 8), generator(), empty=0.0, scale=16.0)
    assert bool((everything > 0).flatten(1).any(dim=1).all())


def test_noise_fillings_have_unit_variance_and_the_drawn_coherence() -> None:
    filling = fillings(4000, (2, 3, 3), None, 0.5, generator()).double()
    assert float(filling.var()) == pytest.approx(1, abs=0.05)
    assert float((filling[:, 0, 0, 0] * filling[:, 0, 2, 1]).mean()) == pytest.approx(0.5, abs=0.05)  # mean of alpha
    assert float((filling[:, 0, 0, 0] * filling[:, 1, 0, 0]).mean()) == pytest.approx(0, abs=0.05)


def test_textures_are_rolled_pieces_of_the_bank() -> None:
    bank = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    filling = fillings(40, (3, 4, 5), bank, 1.0, generator())
    shifts = [(k, i, j) for k in range(2) for i in range(4) for j in range(5)]
    rolled = torch.stack([bank[k].roll((-i, -j), (1, 2)) for k, i, j in shifts])
    assert all(bool((rolled == one).flatten(1).all(dim=1).any()) for one in filling)
    half = fillings(2000, (3, 4, 5), bank, 0.5, generator())
    assert float((half[:, 0, 0, 0] == half[:, 0, 0, 0].round()).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_corruption_keeps_the_variance_and_leaves_the_rest() -> None:
    z1, r = torch.randn((500, 2, 8, 8), generator=generator(1)), torch.randn((500, 4, 2, 8, 8), generator=generator(2))
    objects = torch.randint(OBJECTS + 1, (500, 1, 8, 8), generator=generator(3))
    for m in (0.2, 0.7, 1.0):
        z0 = corrupted(z1, objects, torch.full((500, 4), m), r)
        inside = (objects > 0).expand_as(z0)
        assert torch.equal(z0[~inside], z1[~inside])
        assert float(z0[inside].var()) == pytest.approx(1, abs=0.02)
    strength = torch.rand((500, 4), generator=generator(4)).double()
    z0 = corrupted(z1.double(), objects, strength, r.double()).numpy()
    b, i, j = 7, *(int(x) for x in (objects[7, 0] == 3).nonzero()[0])
    m = float(strength[b, 2])
    expected = np.sqrt(1 - m) * z1[b, :, i, j].numpy() + np.sqrt(m) * r[b, 2, :, i, j].numpy()
    np.testing.assert_allclose(z0[b, :, i, j], expected, rtol=1e-6)


def test_flow_with_the_exact_velocity_ends_on_the_healthy_latent() -> None:
    z0, z1 = torch.randn((2, 3, 2, 4, 4), generator=generator()).double()
    for steps in (1, 3, 7):
        assert torch.allclose(euler(lambda z, t: z1 - z0, z0, steps), z1, atol=1e-6)
    seen: list[float] = []

    def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return z + 2

    assert torch.equal(euler(velocity, z0, 1), z0 + (z0 + 2))
    euler(velocity, z0, 4)
    assert seen == [0, 0, 0.25, 0.5, 0.75]


def test_the_flow_is_trained_on_the_line_from_the_corrupted_latent(stages: dict[str, training.Stage]) -> None:
    report = Reflect(params(), Context(seed=2)).fit(make_set(6), None)
    assert re.fullmatch(
        r"Textures: 64 drawn pictures .* SHA-256 of their 8-bit values [0-9a-f]{64}\.", report.notes[-1]
    )
    batch = stages["unet"].draw(torch.arange(6), generator(5))
    z1, r, m, objects = (batch[key].double().numpy() for key in ("z1", "filling", "strength", "objects"))
    z0 = z1.copy()
    for b, _, i, j in np.argwhere(objects > 0):
        k = int(objects[b, 0, i, j]) - 1
        z0[b, :, i, j] = np.sqrt(1 - m[b, k]) * z1[b, :, i, j] + np.sqrt(m[b, k]) * r[b, k, :, i, j]
    assert not np.array_equal(z0, z1)
    assert m.min() >= 0.2
    for t in (0.0, 0.3, 1.0):
        seen: list[np.ndarray] = []

        def network(z: torch.Tensor, at: torch.Tensor, seen: list[np.ndarray] = seen) -> SimpleNamespace:
            seen.append(z.numpy())
            return SimpleNamespace(sample=0.5 * z)

        loss = stages["unet"].loss(network, {**batch, "t": torch.full((6,), t)}, 0)  # type: ignore[arg-type]
        np.testing.assert_allclose(seen[0], (1 - t) * z0 + t * z1, rtol=1e-4, atol=1e-5)
        assert float(loss) == pytest.approx(np.mean((0.5 * seen[0] - (z1 - z0)) ** 2), rel=1e-4)  # type: ignore[arg-type]


def test_map_of_constant_differences() -> None:
    def at(d: float, latent: float, sigma: float = 0.0) -> torch.Tensor:
        return anomaly_map(torch.full((1, 1, 64, 64), d), torch.full((1, 2, 8, 8), latent), 0.4, sigma, sigma / 8)

    assert torch.allclose(at(0.2, -0.2), torch.tensor(0.5))
    assert torch.allclose(at(-0.4, 0.9), torch.tensor(1.0))
    assert torch.allclose(at(0.4, 0.0), torch.tensor(0.5))
    assert float(at(0.2, 0.2, sigma=3.0)[0, 0, 32, 32]) == pytest.approx(0.5, abs=1e-4)


def test_time_moves_the_velocity_and_a_fresh_network_has_none() -> None:
    network = velocity_unet(params(), 2)
    z = torch.randn((2, 2, 8, 8), generator=generator())
    assert not bool(network(z, torch.rand(2)).sample.any())
    torch.nn.init.normal_(network.conv_out.weight)  # type: ignore[union-attr, arg-type]
    early, late = (network(z, torch.full((2,), t)).sample for t in (0.0, 1.0))
    assert not torch.allclose(early, late)


def test_a_flow_that_stands_still_gives_an_empty_map(tmp_path: Path) -> None:
    method = Reflect(params(reflow_steps=2, reflow_lr=1e-3, texture="foreign"), Context(seed=3))
    report = method.fit(make_set(6), None)
    assert sorted(report.curves) == ["autoencoder", "reflow", "unet"]
    assert report.steps == Reflect.budget(method.params) == 6
    batch = make_set(2, seed=6, name="t").batch(slice(None))
    assert float(method.score(batch).max()) > 0
    method.save(tmp_path)
    assert torch.equal(Reflect.load(tmp_path, Context()).score(batch), method.score(batch))
    for value in method._unet.conv_out.parameters():  # type: ignore[union-attr, operator]
        value.zero_()
    assert not bool(method.score(batch).any())


def test_pictures_of_the_user(tmp_path: Path) -> None:
    def fit(**values: object) -> Reflect:
        method = Reflect(params(texture="pictures", textures=str(tmp_path), **values), Context())
        method.fit(make_set(4), None)
        return method

    with pytest.raises(UserError, match=r"textures = FOLDER go together"):
        params(texture="pictures")
    with pytest.raises(UserError, match=r"textures = FOLDER go together"):
        params(textures=str(tmp_path))
    with pytest.raises(UserError, match=r"holds no .png picture: name a folder"):
        fit()
    with pytest.raises(UserError, match="is no folder: name a folder"):
        Reflect.files(params(texture="pictures", textures=str(tmp_path / "nowhere")))
    grey = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert [path.name for path in Reflect.files(params(texture="pictures", textures=str(tmp_path)))] == ["a.png"]
    assert fit()._pictures().shape == (1, 1, 64, 64)  # type: ignore[union-attr]
    Image.fromarray(np.stack([grey, grey // 2, grey], axis=-1)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png is a colour image, expected grey"):
        fit()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((20, 20), np.uint8), r"b\.png has the grey value 0 \(of 0 to 1\) all over, which is no texture"),
        (np.array([[7]], np.uint8), r"has the grey value 0\.027"),
        (np.full((9, 9), 40_000, np.uint16), "has the grey value 0.61"),
        (
            np.dstack([np.arange(64, dtype=np.uint8).reshape(8, 8), np.zeros((8, 8), np.uint8)]),
            "is transparent in places",
        ),
    ],
)
def test_a_picture_that_is_no_texture(tmp_path: Path, picture: np.ndarray, message: str) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=message):
        Reflect(params(texture="pictures", textures=str(tmp_path)), Context())._pictures()


def test_bits_that_pictures_do_not_use_do_not_darken_them(tmp_path: Path) -> None:
    grey = np.linspace(0, 4095, 64 * 64).reshape(64, 64)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "12.png")
    Image.fromarray((grey / 2).astype(np.uint16)).save(tmp_path / "dark.png")
    found = Reflect(params(texture="pictures", textures=str(tmp_path), image_size=64), Context())._pictures()
    assert found is not None
    np.testing.assert_allclose(found[:, 0], [grey / 4095, grey / 8190], atol=1e-3)


def test_what_is_no_picture_in_a_folder_of_textures(tmp_path: Path) -> None:
    folder = tmp_path / "textures"
    for name in ("a.png", "b.jpg", "c.TIF", ".hidden.jpg", "inner/d.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / name)
    for name in ("__MACOSX/._a.png", "._a.png", ".thumbs/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\26\7")
    chosen = params(texture="pictures", textures=str(folder))
    assert [path.name for path in Reflect.files(chosen)] == ["a.png", "d.PNG"]
    notes = Reflect(chosen, Context()).fit(make_set(4), None).notes
    assert "Textures: 2 other pictures of the folder were left out, since PNG alone is read." in notes
    assert str(tmp_path) not in "".join(notes)
    (folder / "torn.png").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"torn\.png cannot be read as a PNG image"):
        Reflect.files(chosen)  # as a run is planned


def test_foreign_textures_are_never_of_the_own_slice() -> None:
    bank = torch.arange(12.0).view(2, 6)  # 2 copies of 6 slices: slice = value % 6
    bank = bank.flatten()[:, None, None, None].expand(12, 1, 4, 4)
    own = torch.arange(6).repeat_interleave(200)
    filling = fillings(1200, (1, 4, 4), bank, 1.0, generator(), (own, 6))[:, 0, 0, 0].long()
    assert not bool((filling % 6 == own).any())
    for slice_ in range(6):
        assert sorted(set(filling[own == slice_].tolist())) == [k for k in range(12) if k % 6 != slice_]


def test_the_training_takes_foreign_textures_of_others(stages: dict[str, training.Stage]) -> None:
    with pytest.raises(UserError, match=r"texture = foreign .* there is one slice in all"):
        Reflect(params(texture="foreign"), Context()).fit(make_set(1), None)
    chosen = params(texture="foreign", texture_share=1.0, augmented_copies=0, ae_base=True, latent_channels=1)
    Reflect(chosen, Context(seed=2)).fit(make_set(2), None)
    draw = stages["unet"].draw
    fills = [draw(torch.tensor([k] * 8), generator(k))["filling"] for k in (0, 1)]
    means = [set(fill.mean(dim=(2, 3, 4)).mul(1e4).round().flatten().tolist()) for fill in fills]
    assert [len(one) for one in means] == [1, 1], "all objects of a slice are filled with the only other slice, rolled"
    assert means[0] != means[1]


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="texture_share = 0 leaves nothing of texture = simplex: set texture = noise"):
        params(texture_share=0)
    assert params(texture_share=0, texture="noise").texture == "noise"
