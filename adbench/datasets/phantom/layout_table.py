"""Every layout that ``adbench data synth`` writes: ``layout_table.yaml``, whose first lines say how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adbench.config.yaml_text import read_own

PHANTOMS = ("ixi", "atlas", "brats21")  # as whole heads on the true grids; all others are small


@dataclass(frozen=True)
class Layout:
    """How a real dataset lies on disk; the attributes are the keys of ``layout_table.yaml``."""

    title: str
    dataset: str
    options: str = ""
    first: int = 0
    n: int = 6
    tar: bool = False
    heads: int = 1
    names: Mapping[str, int | str | list[str]] = field(default_factory=dict)
    files: Mapping[str, str | dict[str, str]] = field(default_factory=dict)
    odd: Mapping[str, str | dict[str, str]] = field(default_factory=dict)
    once: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    json: Mapping[str, Any] = field(default_factory=dict)


LAYOUTS = {name: Layout(**fields) for name, fields in read_own(Path(__file__).with_suffix(".yaml")).items()}
