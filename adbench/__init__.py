"""adbench: a benchmark harness for unsupervised anomaly detection on brain MRI."""

import sys
from importlib import import_module
from typing import Any

__version__ = "0.3.0.dev0"
__all__ = ["Run", "VolumeMaps", "compare", "load", "method_groups", "run", "same_test", "to_frame"]


def __getattr__(name: str) -> Any:
    """``adbench.run`` and the other names are those of :mod:`adbench.api`, loaded on use.

    Loaded by a relative name: an import that could be read here would make the API part of the key of every method.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".api", __name__), name)


class _OldNames:
    """Asked last for a module, so only for those that do not exist: an old name answers with the new one."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Refuse a name that has moved; see :mod:`adbench.utils.moved`, loaded by a relative name as above."""
        if name.startswith(f"{__name__}."):
            import_module(".utils.moved", __name__).refuse(name)


sys.meta_path.append(_OldNames)
