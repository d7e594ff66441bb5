"""Fixtures of the method tests."""

from __future__ import annotations

import pytest
import torch
from memory_sets import make_set

from adbench.datasets.slices import SliceSet


@pytest.fixture
def train() -> SliceSet:
    return make_set(12)


@pytest.fixture
def val() -> SliceSet:
    return make_set(5, seed=1, name="v")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
