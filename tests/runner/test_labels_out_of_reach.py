"""A method that looks at everything it can reach by attributes finds no lesion mask, no store, and no test pixel to fit on."""

from __future__ import annotations

import logging
import mmap
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from adbench.config import registry, run_config
from adbench.datasets.pixels import Rows, StoredCase
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.store.slice_store import SliceStore
from adbench.methods.base import FitReport, Method
from adbench.runner import plan as planning
from adbench.runner import run_cell
from adbench.testing import check_method

SHUT = (type, types.ModuleType, logging.Logger, int, float, complex, bytes)


def inside(thing: Any) -> Iterator[Any]:
    """What can be got from ``thing`` by its attributes, items and properties; a function's module is not among it."""
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    elif isinstance(thing, np.ndarray):
        yield thing.base
    elif isinstance(thing, memoryview):
        yield thing.obj
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or ())
        yield from (thing.__defaults__, thing.__kwdefaults__)
    yield getattr(thing, "__self__", None)
    yield getattr(thing, "__dict__", None)
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        yield from (getattr(thing, name, None) for name in ([slots] if isinstance(slots, str) else slots))
        if cls.__module__.startswith("adbench"):
            for name, value in vars(cls).items():
                if hasattr(value, "__get__") and not isinstance(value, types.FunctionType | classmethod | staticmethod):
                    yield getattr(thing, name, None)


def reachable(*roots: Any) -> list[Any]:
    seen: dict[int, Any] = {}
    left = list(roots)
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, SHUT) or thing is None:
            continue
        seen[id(thing)] = thing
        left += inside(thing)
    return list(seen.values())


class Hostile(Method):
    """Keeps all that it is given, and everything behind that."""

    name = "hostile"
    found: ClassVar[dict[str, list[Any]]] = {}

    def fit(self, train: SliceSet, val: SliceSet | None) -> FitReport:
        type(self).kept = train, val
        for slices in (train, val, train.limited(2)):
            slices.batch(slice(None)), slices.images(), slices.brains(), slices.subjects  # type: ignore[union-attr]
        self.found["fit"] = reachable(self, train, val)
        return FitReport()

    def score(self, batch: Any) -> torch.Tensor:
        self.found["score"] = reachable(self, batch, type(self).kept)
        return batch.image


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, slices: Path, tmp_path: Path) -> planning.Data:
    """The data of a run in which the method looked around."""
    entry = registry.Entry("methods", "hostile", f"{__name__}:Hostile", "hostile", "built-in")
    known, load = registry.entries, registry.load
    more = {"methods": {"hostile": entry}}
    monkeypatch.setattr(registry, "entries", lambda kind: {**known(kind), **more.get(kind, {})})
    monkeypatch.setattr(registry, "load", lambda kind, name: Hostile if name == "hostile" else load(kind, name))
    settings = run_config.RunConfig(method="hostile", dataset="folder", data_root=str(slices), device="cpu")
    (plan,) = planning.plan(run_config.cells(settings), tmp_path / "runs", tmp_path / "cache")
    run_cell.run_cell(plan)
    return plan.data


def pixels(things: list[Any]) -> list[bytes]:
    """The bytes of every array, tensor and mapping among ``things``."""
    arrays = [thing for thing in things if isinstance(thing, np.ndarray)]
    arrays += [thing.numpy() for thing in things if isinstance(thing, torch.Tensor) and thing.dtype != torch.bfloat16]
    return [array.tobytes() for array in arrays] + [bytes(thing) for thing in things if isinstance(thing, mmap.mmap)]


def test_the_walk_finds_what_is_there(data: planning.Data) -> None:
    lesions = data.test.lesions()
    found = reachable(partial(lambda: data.test))
    assert any(isinstance(thing, SliceStore) for thing in found)
    assert any(str(data.test_store.folder) in str(thing) for thing in found if isinstance(thing, Path))
    assert any(lesions[0].tobytes() in content for content in pixels(found))


@pytest.mark.parametrize("when", ["fit", "score"])
def test_no_label_is_reached(data: planning.Data, when: str) -> None:
    things = Hostile.found[when]
    assert any(isinstance(thing, Rows) for thing in things)
    assert not [thing for thing in things if isinstance(thing, SliceStore | StoredCase | LabelledSet)]
    assert {thing.name for thing in things if isinstance(thing, Rows)} == {"images", "brains"}
    for thing in things:
        if isinstance(thing, str | Path):
            assert not {data.test_store.folder.name, *(file.name for file in data.test_store.files)} & set(
                str(thing).split("/")
            )
            assert "lesions" not in str(thing)
    masks = [mask.tobytes() for mask in data.test.lesions() if mask.any()]
    contents = pixels(things)
    assert masks
    assert not any(mask in content for mask in masks for content in contents)


def test_no_test_pixel_is_reached_while_fitting(data: planning.Data) -> None:
    def held(slices: SliceSet) -> bool:
        return any(one.tobytes() in content for one in slices.images() for content in contents)

    contents = pixels(Hostile.found["fit"])
    assert held(data.train)
    assert not held(data.test)
    cases = [case for thing in Hostile.found["fit"] if isinstance(thing, Rows) for case in thing._cases]
    rows = {row for case in cases for row in case.rows.tolist()}
    assert rows >= set(data.train.rows.tolist())
    assert not rows & set(data.test.rows.tolist())


def test_the_conformance_check_gives_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    check_method(Hostile)
    for things in Hostile.found.values():
        assert not [thing for thing in things if isinstance(thing, SliceStore | StoredCase | LabelledSet)]
        assert not [thing for thing in things if isinstance(thing, str | Path) and "stores/" in str(thing)]
