"""The conformance checks pass what keeps the contract and name the rule that each kind of breach breaks."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from adbench.config import registry
from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.methods.base import FitReport, Method
from adbench.params import ParamSet, param
from adbench.testing import check_dataset, check_method

METHODS = [name for name, entry in registry.entries("methods").items() if entry.origin == "built-in"]


@pytest.mark.parametrize("name", METHODS)
def test_every_builtin_method_keeps_the_contract(name: str) -> None:
    broken = [finding for finding in check_method(registry.load("methods", name)) if finding.problem]
    assert not broken, broken


def test_the_example_plugin_keeps_the_contract() -> None:
    path = Path(__file__).parents[2] / "examples/adbench-localcontrast/adbench_localcontrast.py"
    spec = importlib.util.spec_from_file_location("adbench_localcontrast", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not [finding for finding in check_method(module.LocalContrast) if finding.problem]


class Params(ParamSet):
    steps: int = param(4, "Steps.", unit="steps", source="test")


class Good(Method):
    """Mean of the training slices as the expectation."""

    name = "good"
    Params = Params

    def fit(self, train, val):
        self.mean = torch.zeros(())
        for step in range(4):
            self.mean = self.mean + train.batch(slice(step, step + 1)).image.mean() / 4
            self.ctx.progress.update("train", step + 1, 4)
        return FitReport(steps=4)

    def score(self, batch):
        return (batch.image - self.mean).abs() * batch.brain

    def state(self):
        return {"mean": self.mean}

    def load_state(self, state):
        self.mean = state["mean"]


class ReadsLabels(Good):
    def fit(self, train, val):
        path = next(self.ctx.workdir.parent.glob("cases/*/*.case"))
        assert path.read_bytes()[len(train.images()[:2].tobytes()) * 3 // 2 :], "no lesion mask is there"
        return super().fit(train, val)


class WrongShape(Good):
    def score(self, batch):
        return super().score(batch)[..., ::2, ::2]


class WrongDevice(Good):
    def score(self, batch):
        return super().score(batch).to("meta")


class GivesNaN(Good):
    def score(self, batch):
        spread = batch.image[batch.brain].std()
        return super().score(batch) / (spread * 0)


class BreaksOnFlat(Good):
    def score(self, batch):
        values = batch.image - self.mean
        return values / (batch.image.amax((1, 2, 3), keepdim=True) - 0.5)


class DependsOnBatch(Good):
    def score(self, batch):
        return super().score(batch) - batch.image.mean()


class ScalesByTheBrightest(Good):
    """Every slice to score is equally bright at its brightest, so only other neighbours show it."""

    def score(self, batch):
        return super().score(batch) / batch.image.max()


class ScalesBySubject(Good):
    """Divides by the highest score that it has seen of a subject so far."""

    def score(self, batch):
        maps = super().score(batch)
        self.seen = getattr(self, "seen", {})
        for index, subject in enumerate(batch.subjects):
            self.seen[subject] = max(self.seen.get(subject, 0.0), float(maps[index].mean()))
            maps[index] /= self.seen[subject]
        return maps


class Unseeded(Good):
    def score(self, batch):
        return super().score(batch) + torch.rand(
            batch.image.shape, generator=torch.Generator().manual_seed(time.time_ns())
        )


class Forgets(Good):
    def load_state(self, state):
        self.mean = torch.zeros(())


class Pickles(Good):
    def save(self, folder):
        super().save(folder)
        (Path(folder) / "extra.pkl").write_bytes(b"\x80\x04N.")


class WritesInput(Good):
    def score(self, batch):
        batch.image.mul_(0.5)
        return super().score(batch)


class BrightReconstruction(Good):
    def reconstruct(self, batch):
        return batch.image * 3


class Overruns(Good):
    def fit(self, train, val):
        super().fit(train, val)
        return FitReport(steps=5)


class LosesItsPlace(Good):
    def fit(self, train, val):
        marker = self.ctx.workdir / "begun"
        before = marker.exists()
        marker.write_text("")
        report = super().fit(train, val)
        if before:
            self.mean = self.mean + 0.1
        return report


class CannotBeStopped(Good):
    def fit(self, train, val):
        try:
            return super().fit(train, val)
        except KeyboardInterrupt:
            return FitReport()


class Undocumented(Good):
    """Has a parameter that says nothing of itself."""

    class Params(ParamSet):
        steps: int = 4


class ScoringParams(ParamSet):
    shift: float = param(0.0, "Added.", source="test", ge=0, scores=True)
    weight: float = param(1.0, "Factor.", source="test", gt=0, scores=True)


class LearnsWhatScores(Good):
    Params = ScoringParams

    def fit(self, train, val):
        report = super().fit(train, val)
        self.mean = self.mean + self.params.shift
        return report

    def score(self, batch):
        return super().score(batch) * self.params.weight


class NotesWhatScores(Good):
    Params = ScoringParams

    def fit(self, train, val):
        super().fit(train, val)
        return FitReport(steps=4, best={"weight": self.params.weight})


class KeepsWhatScores(Good):
    Params = ScoringParams

    def __init__(self, params, ctx):
        super().__init__(params, ctx)
        self.weight = params.weight

    def score(self, batch):
        return super().score(batch) * self.weight


class NoPaperPreset(Good):
    presets: ClassVar = {"tiny": {}, "base": {}}


@pytest.mark.parametrize(
    ("cls", "rule", "words"),
    [
        (ReadsLabels, "never_reads_a_label", "no lesion mask is there"),
        (WrongShape, "map_has_the_shape_of_the_slice", "(6, 1, 32, 32)"),
        (WrongDevice, "map_has_the_shape_of_the_slice", "maps are on meta, the batch is on cpu"),
        (GivesNaN, "map_is_finite", "NaN or infinite"),
        (BreaksOnFlat, "map_is_finite", "without contrast"),
        (DependsOnBatch, "does_not_depend_on_the_batch", "in batches of 1"),
        (ScalesByTheBrightest, "does_not_depend_on_the_batch", "beside slices of full intensity"),
        (ScalesBySubject, "does_not_depend_on_what_came_before", "when slices come in another order"),
        (Unseeded, "is_deterministic", "seed every draw"),
        (Forgets, "survives_saving", "after saving and loading"),
        (Pickles, "survives_saving", "extra.pkl"),
        (WritesInput, "leaves_its_input_alone", "in place"),
        (BrightReconstruction, "reconstruction_is_an_image", "expected [0, 1]"),
        (Overruns, "honours_the_budget", "took 5 steps, its parameters allow 4"),
        (LosesItsPlace, "resumes_to_equal_numbers", "after an interruption"),
        (CannotBeStopped, "resumes_to_equal_numbers", "swallowed KeyboardInterrupt"),
        (Undocumented, "is_documented", "parameter steps has no description"),
        (NoPaperPreset, "presets_resolve", "paper"),
        (LearnsWhatScores, "fits_alike_whatever_only_scores", "shift is marked scores=True"),
        (NotesWhatScores, "fits_alike_whatever_only_scores", "weight is marked scores=True"),
        (KeepsWhatScores, "fits_alike_whatever_only_scores", "read what only scores from self.params in score"),
    ],
)
def test_each_breach_is_named(cls: type[Method], rule: str, words: str) -> None:
    problems = {finding.rule: finding.problem for finding in check_method(cls) if finding.problem}
    assert words in problems.get(rule, ""), problems


def test_a_good_method_breaks_nothing() -> None:
    assert not [finding for finding in check_method(Good) if finding.problem]


class Set(Dataset):
    """Two subjects a split."""

    info = DatasetInfo("set", "1", ("T1",), "CC0", "made here", "nothing", "folder", needs_root=False)

    def discover(self, modality):
        from adbench.errors import unknown

        if modality != "T1":
            raise unknown("modality", modality, ["T1"])
        return [Case(f"{split}{number}", split) for split in ("train", "val", "test") for number in range(2)]

    def load(self, case, modality):
        brain = np.zeros((1, 32, 32), bool)
        brain[:, 8:24, 8:24] = True
        lesion = np.zeros_like(brain)
        lesion[:, 10:12, 10:12] = case.split == "test"
        return Stack((brain * 0.5).astype(np.float32), brain, lesion, [0])


class BrightOutside(Set):
    def load(self, case, modality):
        stack = super().load(case, modality)
        stack.image[:] = 0.2
        return stack


class Leaks(Set):
    def discover(self, modality):
        return [Case(case.subject[-1], case.split) for case in super().discover(modality)]


class Random(Set):
    def load(self, case, modality):
        stack = super().load(case, modality)
        noise = np.random.default_rng().random(stack.image.shape)
        return Stack((stack.brain * noise).astype(np.float32), stack.brain, stack.lesion, [0])


class AnyModality(Set):
    def discover(self, modality):
        return super().discover("T1")


class SickTraining(Set):
    def load(self, case, modality):
        stack = super().load(case, modality)
        stack.lesion[:, 10:12, 10:12] = True
        return stack


@pytest.mark.parametrize(
    ("cls", "rule", "words"),
    [
        (BrightOutside, "loads_every_case", "not 0 outside the brain"),
        (Leaks, "finds_unique_cases", "subject 0 is in train and in val"),
        (Random, "gives_identical_bytes", "two preparations differ"),
        (AnyModality, "offers_known_modalities", "accepted a modality"),
        (SickTraining, "trains_on_healthy_slices", "no healthy training slice"),
    ],
)
def test_each_breach_of_a_dataset_is_named(cls: type[Dataset], rule: str, words: str) -> None:
    problems = {finding.rule: finding.problem for finding in check_dataset(cls(ParamSet(), None)) if finding.problem}
    assert words in problems.get(rule, ""), problems


def test_a_good_dataset_breaks_nothing() -> None:
    assert not [finding for finding in check_dataset(Set(ParamSet(), None)) if finding.problem]
