"""Old names of modules answer with one sentence."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec

import pytest

import adbench
from adbench.utils.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_an_old_name_says_the_new_one(name: str) -> None:
    with pytest.raises(ImportError, match=re.escape(f"{name} is now {MOVED[name]}")) as caught:
        importlib.import_module(name)
    assert not isinstance(caught.value, ModuleNotFoundError)
    package, _, last = name.rpartition(".")
    if package == "adbench":
        with pytest.raises(ImportError, match=re.escape(MOVED[name])):
            exec(f"from {package} import {last}")


def test_the_new_names_exist() -> None:
    for new in MOVED.values():
        if new.startswith("adbench."):
            assert find_spec(new.partition(" ")[0]) is not None, new


def test_unknown_names_stay_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        importlib.import_module("adbench.nonsense")
    assert adbench.__version__
