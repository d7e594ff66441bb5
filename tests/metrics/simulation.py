"""The studies of ``benchmarks/studies.py``, as a module."""

import sys
from importlib import util
from pathlib import Path

_spec = util.spec_from_file_location("studies", Path(__file__).parents[2] / "benchmarks" / "studies.py")
assert _spec is not None
assert _spec.loader is not None
studies = util.module_from_spec(_spec)
sys.modules["studies"] = studies
_spec.loader.exec_module(studies)
