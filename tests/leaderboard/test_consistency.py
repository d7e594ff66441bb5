"""What is held against counts, costs and names accepts whatever a method may truly leave."""

from __future__ import annotations

import numpy as np
import pytest

from adbench.leaderboard.checks.consistency import check_volume
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.results.names import skeleton


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("seed", range(4))
def test_true_counts_contradict_nothing(dtype: str, seed: int) -> None:
    """Slices of any size, ties, empty slices, few and many voxels, scores joined or single."""
    rng = np.random.default_rng(seed)
    side = int(rng.choice([3, 17, 64]))
    test, spatial = SubjectHistograms(), SpatialAccumulator({"val": 0.5}, [2.0, 1.0])
    for volume in "abc":
        slices = int(rng.integers(1, 6))
        maps = rng.normal(0, 1, (slices, side, side)).astype(dtype)
        if seed == 1:
            maps = maps.round()  # ties
        brain = rng.random(maps.shape) < rng.choice([0.2, 0.9])
        brain[0, 0, 0] = True
        if seed == 2:
            brain[1:] = False
        lesion = (rng.random(maps.shape) < 0.05) & (volume != "c")
        test.update(volume, maps[brain], lesion[brain])
        spatial.add_volume(volume, maps, lesion & brain, brain)
    if seed == 3:
        test.compact([0.5, 1.0, 2.0])
    for row in spatial.rows:
        assert list(check_volume(row, test[row.volume], spatial, side * side)) == []


def test_names_that_look_alike() -> None:
    assert len({skeleton(name) for name in ("madad", "MADAD", "mad-ad", "rnadad", "mad_ad")}) == 1
    assert len({skeleton(name) for name in ("ae", "vae", "dae", "ddpm", "thor", "zscore", "histeq")}) == 7
