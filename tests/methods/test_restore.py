"""Restoration of synthetic anomalies: what it is trained on, severity, detection, samplers, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from memory_sets import make_set
from scipy import ndimage

from adbench.context import Context
from adbench.datasets.slices import SliceBatch, SliceSet
from adbench.errors import UserError
from adbench.methods.common.preprocess import SliceLoader
from adbench.methods.restore import Restore, cold_step
from adbench.testing import check_method

SMALL: dict[str, Any] = {**Restore.smoke, "steps": 2, "sigma": 0.0, "standardise": False}
KINDS = ["fpi", "dag", "bias", "poisson"]


def method(**overrides: Any) -> Restore:
    return Restore(Restore.resolve("tiny", {**SMALL, **overrides}), Context(seed=1))


def slices() -> SliceBatch:
    image = 0.2 + 0.6 * torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    brain = torch.zeros_like(image, dtype=torch.bool)
    brain[..., 4:-4, 6:-6] = True
    return SliceBatch(image * brain, brain, ("a", "b"), (3, 4), "FLAIR")


def drawn(restore: Restore, train: SliceSet) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return restore.make_batch(SliceLoader(train, 32, "cpu"), torch.arange(12), generator, training=True)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_stays_in_the_brain_and_severity_is_its_strength(kind: str, train: SliceSet) -> None:
    batch = drawn(method(corruption=kind), train)
    changed = (batch["corrupted"] - batch["image"]).abs()
    assert float(changed[~batch["brain"]].max()) == 0
    assert float(changed.max()) > 0.1
    assert float(batch["corrupted"].min()) >= 0
    assert float(batch["corrupted"].max()) <= 1
    severity = batch["severity"].flatten()
    assert float(severity.min()) >= 0
    assert float(severity.max()) <= 1
    if kind == "bias":
        torch.testing.assert_close(severity, changed.amax(dim=(1, 2, 3)))
    elif kind == "fpi":
        assert bool((changed.amax(dim=(1, 2, 3)) <= severity + 1e-6).all())


@pytest.mark.parametrize("kind", KINDS)
def test_without_strength_nothing_changes(kind: str, train: SliceSet) -> None:
    restore = method(corruption=kind, strength=1e-30)
    batch = drawn(restore, train)
    torch.testing.assert_close(batch["corrupted"], batch["image"], atol=1e-6, rtol=0)
    assert float(batch["severity"].max()) < 1e-6


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_equals_numpy_and_the_network_is_told_the_severity(loss: str, train: SliceSet) -> None:
    restore = method(loss=loss)
    batch = drawn(restore, train)

    def network(x: torch.Tensor) -> torch.Tensor:
        assert torch.equal(x[:, 1:], batch["severity"].expand(-1, 1, 32, 32))
        return x[:, :1]

    error = (batch["corrupted"] - batch["image"]).numpy()[batch["brain"].numpy()]
    expected = np.mean(np.abs(error) if loss == "l1" else error**2)
    assert float(restore.loss(network, batch)) == pytest.approx(float(expected), rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", ["graded", "binary"])
def test_detection_is_cross_entropy_with_the_foreign_share(label: str, train: SliceSet) -> None:
    restore = method(detect=True, corruption="fpi", label=label)
    batch = drawn(restore, train)
    inside = batch["brain"].numpy()
    changed = (batch["corrupted"] - batch["image"]).abs().numpy()
    share = batch["label"].numpy()
    assert (share[changed > 1e-3] > 0).all()
    wanted = share[inside] if label == "graded" else (share[inside] > 0).astype(float)
    expected = -np.mean(wanted * np.log(0.3) + (1 - wanted) * np.log(0.7))
    logit = float(np.log(0.3 / 0.7))
    value = restore.loss(lambda x: torch.full_like(x, logit), batch)  # type: ignore[arg-type]
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("sampler", ["mean", "cold"])
def test_a_network_that_changes_nothing_leaves_an_empty_map(sampler: str) -> None:
    restore, batch = method(sampler=sampler), slices()
    restore._network = lambda x: x[:, :1]  # type: ignore[assignment]
    maps, recon = restore.score_and_reconstruct(batch)
    assert float(maps.max()) < 1e-6
    assert recon is not None
    torch.testing.assert_close(recon, batch.image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", ["mean", "cold"])
def test_a_network_that_knows_the_slice_maps_the_damage(sampler: str) -> None:
    restore, batch = method(sampler=sampler, sigma=2.0), slices()
    restore._network = lambda x: torch.full_like(x[:, :1], 0.4)  # type: ignore[assignment]
    maps, _ = restore.score_and_reconstruct(batch)
    apart = np.abs(batch.image.numpy() - 0.4) * batch.brain.numpy()
    for k in range(2):
        expected = ndimage.gaussian_filter(apart[k, 0], 2.0, mode="constant")
        np.testing.assert_allclose(maps[k, 0], expected, atol=1e-5)


def test_residuals_are_averaged_over_severities() -> None:
    restore, batch = method(severities=4), slices()
    told: list[float] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        told.append(float(x[0, 1, 0, 0]))
        return x[:, :1] - x[:, 1:] * 0.1

    restore._network = network  # type: ignore[assignment]
    np.testing.assert_allclose(restore.score(batch)[batch.brain], 0.0625, rtol=1e-4)
    np.testing.assert_allclose(told, [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("sampler", ["mean", "cold"])
def test_the_network_is_told_no_severity_that_training_never_had(sampler: str, train: SliceSet) -> None:
    restore, told = method(severities=3, strength=0.3, sampler=sampler), []

    def network(x: torch.Tensor) -> torch.Tensor:
        told.append(float(x[0, 1, 0, 0]))
        return x[:, :1]

    restore._network = network  # type: ignore[assignment]
    restore.score(slices())
    np.testing.assert_allclose(sorted(told), [0.1, 0.2, 0.3], rtol=1e-6)
    assert told == sorted(told, reverse=sampler == "cold")
    assert 0.2 < float(drawn(restore, train)["severity"].max()) <= 0.3


def test_a_cold_step_with_the_true_slice_lands_on_the_lesser_damage() -> None:
    clean, full = torch.rand((2, 1, 2, 8, 8), generator=torch.Generator().manual_seed(1))
    for level, to in ((1.0, 0.6), (0.6, 0.2), (0.2, 0.0)):
        x = (1 - level) * clean + level * full
        torch.testing.assert_close(cold_step(x, clean, level, to), (1 - to) * clean + to * full, atol=1e-5, rtol=0)


def test_detection_maps_a_probability_and_restores_nothing() -> None:
    restore, batch = method(detect=True, corruption="poisson"), slices()
    restore._network = lambda x: 8 * x - 4  # type: ignore[assignment]
    maps, recon = restore.score_and_reconstruct(batch)
    assert recon is None
    assert restore.reconstruct(batch) is None
    torch.testing.assert_close(maps, torch.sigmoid(8 * batch.image - 4) * batch.brain)


def test_contract_of_a_detector() -> None:
    """The defaults are checked with every built-in method in tests/testing."""
    overrides = {"detect": True, "corruption": "poisson"}
    assert not [finding for finding in check_method(Restore, overrides=overrides) if finding.problem]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_size": 50, "stem": 2}, "multiple of 4"),
        ({"channels": (8, 12)}, "multiples of 8"),
        ({"smallest": 50}, r"smallest \(50 px\) may not exceed largest \(44 px\)"),
        ({"detect": True}, "corruption=fpi or poisson"),
        ({"detect": True, "corruption": "fpi", "sampler": "cold"}, "no detect"),
        ({"severities": 0, "sampler": "cold"}, "severities above 0"),
        ({"corruption": "cutpaste"}, "corruption"),
        (
            {"detect": True, "corruption": "fpi", "loss": "l1"},
            "loss = l1 is of restored slices, and detect restores none",
        ),
        ({"label": "binary"}, "label = binary is what detect predicts: set detect"),
        ({"strength": 0}, "strength"),
        ({"strength": 1.5}, "strength"),
    ],
)
def test_bad_parameters_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**overrides)


@pytest.mark.parametrize("kind", ["fpi", "dag", "poisson"])
def test_one_slice_has_no_foreign_tissue(kind: str, train: SliceSet) -> None:
    with pytest.raises(
        UserError, match=f"restore.corruption = {kind} takes foreign tissue .* there is one slice in all"
    ):
        method(corruption=kind).fit(make_set(1), None)


def test_one_slice_can_be_given_a_bias_and_two_suffice(train: SliceSet) -> None:
    alone = make_set(1, seed=1, name="v")
    assert method(corruption="bias").fit(make_set(1), alone).notes == []
    report = method(corruption="fpi").fit(make_set(2), alone)
    assert "no other that it could be damaged with" in report.notes[-1]
    assert "val_loss" not in report.curves["restorer"][-1]
