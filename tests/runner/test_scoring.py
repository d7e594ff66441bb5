"""Scoring slices: what a method is given, and what becomes of its maps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adbench.context import Context
from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.slices import SliceBatch
from adbench.datasets.store.prepare import prepare
from adbench.errors import UserError
from adbench.methods.base import FitReport, Method
from adbench.methods.common import image_ops
from adbench.metrics.base import Metric, Subject
from adbench.params import ParamSet
from adbench.runner import inference
from adbench.runner import measure as measuring
from adbench.runner.inference import Clock, median_filtered, score_volumes, smoothed
from adbench.runner.measure import Counts, counting_threads, measure

EMPTY = {("a", 0), ("b", 1), ("b", 2), ("c", 0), ("c", 1), ("c", 2)}


class Volumes(Dataset):
    """Three subjects of four slices, some without brain."""

    info = DatasetInfo("volumes", "1", ("FLAIR",), "CC0", "generated", "nothing", protocol="phantom", needs_root=False)

    def discover(self, modality: str) -> list[Case]:
        return [Case(name, "test") for name in "abc"]

    def load(self, case: Case, modality: str) -> Stack:
        brain = np.zeros((4, 32, 32), bool)
        brain[:, 4:20, 5:25] = True
        for number in range(4):
            brain[number] &= (case.subject, number) not in EMPTY
        image = np.full(brain.shape, 0.5, np.float32) * brain
        lesion = np.zeros_like(brain)
        lesion[:, 6:10, 6:10] = brain[:, 6:10, 6:10]
        return Stack(image, brain, lesion, range(4))


class Counting(Method):
    """Gives 1 everywhere and remembers how many slices it saw."""

    name = "counting"
    restores = True

    def fit(self, train: Any, val: Any) -> FitReport:
        return FitReport()

    def score(self, batch: SliceBatch) -> torch.Tensor:
        self.seen = getattr(self, "seen", 0) + len(batch)
        assert bool(batch.brain.flatten(1).any(dim=1).all())
        assert len(batch.subjects) == len(batch.slices) == len(batch)
        return torch.ones_like(batch.image) * torch.tensor(batch.slices)[:, None, None, None]

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor | None:
        return batch.image if self.restores else None


@pytest.mark.parametrize("restores", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5, None])
def test_slices_without_brain_are_not_computed(tmp_path: Path, size: int | None, restores: bool) -> None:
    data = prepare(Volumes(ParamSet(), None), "FLAIR", tmp_path).labelled("test")
    kept = {(data.subjects[data.subject_index[row]], int(data.slice_numbers[row])) for row in range(len(data))}
    assert kept & EMPTY
    method = Counting(ParamSet(), Context())
    method.restores = restores
    scored = {one.subject: one for one in score_volumes(method, data, Context(), "score", size)}
    assert method.seen == len(kept - EMPTY)
    for subject, one in scored.items():
        for map_, position in zip(one.maps, one.positions, strict=True):
            number = int(data.slice_numbers[position])
            assert (map_ == (0 if (subject, number) in EMPTY else number)).all()
        assert one.reconstructions is None or one.reconstructions.shape == one.maps.shape
    with_brain = [one for subject, one in scored.items() if any((subject, n) not in EMPTY for n in range(4))]
    assert all((one.reconstructions is not None) == restores for one in with_brain)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, np.float16),
        (torch.bfloat16, np.float32),
        (torch.float32, np.float32),
        (torch.float64, np.float64),
    ],
)
def test_maps_keep_the_type_that_the_method_gives(tmp_path: Path, given: torch.dtype, kept: type) -> None:
    data = prepare(Volumes(ParamSet(), None), "FLAIR", tmp_path).labelled("test")
    method = Counting(ParamSet(), Context())
    one = torch.tensor(1.25, dtype=given)
    method.score = lambda batch: one.expand(batch.image.shape)  # type: ignore[method-assign]
    for scored in score_volumes(method, data, Context(), "score", 3):
        assert scored.maps.dtype == kept
        assert set(np.unique(scored.maps).tolist()) <= {0.0, 1.25}


def test_integer_maps_keep_their_order(tmp_path: Path) -> None:
    data = prepare(Volumes(ParamSet(), None), "FLAIR", tmp_path).labelled("test")
    method = Counting(ParamSet(), Context())

    def neighbours(batch: SliceBatch) -> torch.Tensor:
        return (torch.arange(batch.image.numel()) + (1 << 33)).reshape(
            batch.image.shape
        )  # float32 would tie 512 of them

    method.score = neighbours  # type: ignore[method-assign]
    for scored in score_volumes(method, data, Context(), "score", 3):
        for one, brain in zip(scored.maps, data.brains(scored.positions), strict=True):
            assert len(np.unique(one[brain])) == brain.sum()
    method.score = lambda batch: neighbours(batch) + (1 << 60)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="float64 cannot tell"):
        list(score_volumes(method, data, Context(), "score", 3))


def test_median_of_the_stack_is_that_of_each_cube() -> None:
    """Against NumPy: cubes of 3, ends repeated, background 0, cut where a slice is missing, in any order of the slices."""
    rng = np.random.default_rng(0)
    numbers = np.array([7, 2, 3, 4, 8])  # 2, 3, 4 and 7, 8 are joined
    maps, brain = rng.normal(size=(5, 6, 7)).astype(np.float32), rng.random((5, 6, 7)) < 0.8
    found = median_filtered(maps, brain, numbers, 3)
    for place in ([1, 2, 3], [0, 4]):
        padded = np.pad(np.where(brain, maps, 0)[place], 1, mode="edge")
        cubes = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
        np.testing.assert_array_equal(found[place], np.median(cubes, axis=(3, 4, 5)))
    assert found.dtype == np.float32
    assert median_filtered(maps.astype(np.float16), brain, numbers, 3).dtype == np.float16


def test_scores_that_are_not_finite_are_not_filtered_away() -> None:
    maps = np.ones((3, 5, 5), np.float32)
    maps[1, 2, 2] = np.nan
    assert np.isnan(median_filtered(maps, np.ones(maps.shape, bool), np.arange(3), 3)[1, 2, 2])
    outside = np.ones(maps.shape, bool)
    outside[1, 2, 2] = False
    assert np.isfinite(median_filtered(maps, outside, np.arange(3), 3)).all()


def test_maps_are_smoothed_in_their_plane_as_methods_smooth_theirs() -> None:
    rng = np.random.default_rng(3)
    maps, brain = rng.random((3, 20, 24)).astype(np.float32), rng.random((3, 20, 24)) < 0.7
    inside = torch.from_numpy(np.where(brain, maps, 0))[:, None]
    for sigma in (0.7, 3.0):
        expected = image_ops.gaussian_blur(inside, sigma)[:, 0].numpy()
        np.testing.assert_allclose(smoothed(maps, brain, sigma), expected, atol=1e-6)
    assert smoothed(maps.astype(np.float64), brain, 1.0).dtype == np.float64
    maps[1, 2, 2], brain[1, 2, 2] = np.nan, True
    assert np.isnan(smoothed(maps, brain, 1.0)[1, 2, 2])


def test_maps_are_smoothed_before_the_median_is_taken(tmp_path: Path) -> None:
    data = prepare(Volumes(ParamSet(), None), "FLAIR", tmp_path).labelled("test")

    def maps(**post: float) -> np.ndarray:
        ctx = Context(**post)  # type: ignore[arg-type]
        return next(score_volumes(Counting(ParamSet(), ctx), data, ctx, "score", batch_size=3)).maps

    first = next(score_volumes(Counting(ParamSet(), Context()), data, Context(), "score"))
    brain, numbers = data.brains(first.positions), data.slice_numbers[first.positions]
    expected = median_filtered(smoothed(maps(), brain, 2.0), brain, numbers, 3)
    other = smoothed(median_filtered(maps(), brain, numbers, 3), brain, 2.0)
    np.testing.assert_array_equal(maps(sigma=2.0, median=3), expected)
    assert not np.allclose(expected[brain], other[brain])


def test_every_scoring_goes_through_the_median_of_the_context(tmp_path: Path) -> None:
    class Striped(Counting):
        def score(self, batch: SliceBatch) -> torch.Tensor:
            return super().score(batch) % 2

    data = prepare(Volumes(ParamSet(), None), "FLAIR", tmp_path).labelled("test")
    for median, expected in ((0, [0, 1, 0, 1]), (3, [0, 0, 1, 1])):
        ctx = Context(median=median)
        first = next(score_volumes(Striped(ParamSet(), ctx), data, ctx, "score", batch_size=3))
        assert first.maps[:, 12, 12].tolist() == expected  # slice 0 has no brain


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_batches_come_in_order_however_many_are_begun_and_shrink_where_memory_ends(tmp_path: Path, ahead: int) -> None:
    data = prepare(Volumes(ParamSet(), None), "FLAIR", tmp_path).labelled("test")
    method = Counting(ParamSet(), Context())
    tried: list[int] = []
    score = method.score

    def at_most_two(batch: SliceBatch) -> torch.Tensor:
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return score(batch)

    method.score = at_most_two  # type: ignore[method-assign]
    batches = inference._batches(method, data, 8, "cpu", inference.Clock(), planned=len(data), ahead=ahead)
    positions, begun = [], []
    for where, maps, _ in batches:
        assert len(maps) == len(where) <= 2
        positions += where.tolist()
        begun.append(method.seen)
    assert positions == list(range(len(data)))
    assert max(tried) > 2 >= tried[-1]
    assert begun[0] > 2 or not ahead  # the next batch was begun before the first one was waited for


class Waves(Counting):
    """Maps of several peaks that are other ones in each slice, and a reconstruction a little off."""

    name = "waves"

    def score(self, batch: SliceBatch) -> torch.Tensor:
        height, width = batch.image.shape[-2:]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
        turn = torch.tensor(
            [float(number + ord(name[0])) for number, name in zip(batch.slices, batch.subjects, strict=True)]
        )
        turn = turn[:, None, None]
        maps = torch.sin(rows * 0.9 + turn) * torch.cos(columns * 0.7 - turn)
        maps[:, 6:10, 6:10] += turn % 3  # the lesion, less or more of it
        return maps[:, None]

    def reconstruct(self, batch: SliceBatch) -> torch.Tensor | None:
        return batch.image + 0.1 * Waves.score(self, batch)


class InTurn(Metric):
    """Keeps a state, and notes who asks."""

    name = "in_turn"
    needs_maps = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        self.asked.append((subject.subject, threading.get_ident()))
        assert subject.volume is not None
        assert subject.volume.image is not None
        subject.volume.maps[:] = 0  # what it does to the map reaches no number
        return float(len(self.asked)), 1.0


class Failing(Metric):
    """Returns what none may."""

    name = "failing"
    needs_maps = True

    def measure(self, subject: Subject) -> Any:
        return "nothing"


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``measure`` of eight volumes with so many counting threads, none of which is there afterwards."""

    class Eight(Volumes):
        info = DatasetInfo(
            "eight", "1", ("FLAIR",), "CC0", "generated", "nothing", protocol="phantom", needs_root=False
        )

        def discover(self, modality: str) -> list[Case]:
            return [Case(name, "test") for name in "bdefghij"]

    monkeypatch.setattr(inference, "usual_batch", lambda device: 4)  # a volume
    data = prepare(Eight(ParamSet(), None), "FLAIR", tmp_path).labelled("test")

    def run(threads: int, metrics: tuple[Metric, ...] = (), method: type[Method] = Waves) -> tuple[Counts, Clock]:
        monkeypatch.setattr(measuring, "counting_threads", lambda device: threads)
        clock = Clock()
        return measure(method(ParamSet(), Context()), data, data, Context(), clock, metrics), clock

    yield run
    assert not [one.name for one in threading.enumerate() if one.name.startswith("adbench-count")]


def test_volumes_that_are_counted_beside_the_scoring_count_the_same(counted: Any) -> None:
    alone, _ = counted(0)
    rows = [asdict(row) for row in alone.spatial.rows]
    assert [row["volume"] for row in rows] == list("bdefghij")
    assert len({str(row["found"]) for row in rows}) > 1
    assert all(0 < row["recon_ssim"] < 1 for row in rows)
    for threads in (1, 4):
        beside, clock = counted(threads)
        assert [asdict(row) for row in beside.spatial.rows] == rows
        assert list(beside.spatial._rows) == list(alone.spatial._rows), "kept in the order in which they came"
        assert beside.test == alone.test
        assert clock.seconds["measure"] > 0


def test_plugin_metrics_measure_in_order_and_in_one_thread(counted: Any) -> None:
    plain = [asdict(row) for row in counted(0)[0].spatial.rows]
    for threads in (0, 4):
        metric = InTurn()
        counts, _ = counted(threads, (metric,))
        assert metric.asked == [(name, threading.get_ident()) for name in "bdefghij"]
        rows = [asdict(row) for row in counts.spatial.rows]
        assert [row.pop("measures") for row in rows] == [{"in_turn": (float(k), 1.0)} for k in range(1, 9)]
        assert rows == [{name: value for name, value in row.items() if name != "measures"} for row in plain]


class NotFinite(Waves):
    """Breaks at the third test volume."""

    def score(self, batch: SliceBatch) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().score(batch) / float(self.calls != 11)


class Interrupted(Waves):
    """Is interrupted there."""

    def score(self, batch: SliceBatch) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 11:
            raise KeyboardInterrupt
        return super().score(batch)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_errors_and_interrupts_reach_the_caller_and_end_the_threads(counted: Any, threads: int) -> None:
    with pytest.raises(UserError, match="Metric 'failing' measured 'nothing' on subject 'b'"):
        counted(threads, (Failing(),))
    with pytest.raises(UserError, match=r"Scores of case 'e' hold \d+ NaN or infinite values"):
        counted(threads, (), NotFinite)
    with pytest.raises(KeyboardInterrupt):
        counted(threads, (), Interrupted)


def test_few_volumes_wait_to_be_counted() -> None:
    """A volume is counted only when it is told to; meanwhile no more are taken than there are threads."""
    go, kept, given = threading.Event(), list[int](), list[int]()

    class Rows:
        def keep(self, row: int, volume: int) -> None:
            kept.append(row)

    def one(number: int) -> int:
        assert go.wait(30)
        return number

    with measuring._Beside(Rows(), 2) as rows:  # type: ignore[arg-type]

        def give() -> None:
            for number in range(6):
                given.append(number)
                rows.add(number, lambda number=number: one(number))  # type: ignore[arg-type, misc]

        giver = threading.Thread(target=give)
        giver.start()
        giver.join(0.3)
        assert given == [0, 1, 2], "the third waits for the first"
        go.set()
        giver.join(30)
        rows.finish()
    assert kept == list(range(6))


def test_as_many_threads_count_as_the_run_has() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert (counting_threads("cpu"), counting_threads("cuda:0")) == (0, 1)
        torch.set_num_threads(3)
        assert (counting_threads("cpu"), counting_threads("cuda")) == (3, 3)
        torch.set_num_threads(32)
        assert counting_threads("cuda") == measuring.MOST_COUNTING
    finally:
        torch.set_num_threads(before)
