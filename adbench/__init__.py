"""adbench: a benchmark harness for unsupervised anomaly detection on brain MRI."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["compare", "load", "run"]


def __getattr__(name: str) -> Any:
    """``adbench.run``, ``adbench.load`` and ``adbench.compare`` are functions of :mod:`adbench.api`, loaded on use.

    Loaded by a relative name: an import that could be read here would make the API part of the key of every method.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".api", __name__), name)


import_module(".utils.moved", __name__).install()  # by a relative name, as above: it changes no number
