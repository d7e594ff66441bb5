"""Conformance checks that any method, dataset or metric must pass, third-party ones included.

On the command line: ``adbench test NAME``. In a plugin's own test-suite::

    from adbench.testing import check_method

    def test_contract():
        assert not [finding for finding in check_method(MyMethod) if finding.problem]
"""

from __future__ import annotations

from adbench.testing.datasets import check_dataset
from adbench.testing.methods import check_method
from adbench.testing.metrics import check_metric
from adbench.testing.rules import Finding

__all__ = ["Finding", "check_dataset", "check_method", "check_metric"]
