"""Which cases are pointed out as unlike the others."""

from __future__ import annotations

from typing import Any

import pytest

from adbench.datasets.store.outliers import outliers


def cases(figure: str, *values: float) -> list[dict[str, Any]]:
    return [{"subject": f"s{i}", "session": "", "quality": {figure: value}} for i, value in enumerate(values)]


def found(figure: str, *values: float) -> list[str]:
    return [f"{odd['case']} {odd['why']}" for odd in outliers(cases(figure, *values))]


def test_a_figure_far_from_the_others() -> None:
    usual = (1400, 1420, 1450, 1380, 1390, 1440, 1410, 1430)
    assert found("brain_ml", *usual) == []
    assert found("brain_ml", *usual, 2100) == ["s8 the median of all cases is 1420"]
    assert found("brain_ml", *usual[:6], 2100) == []  # seven cases have no usual


def test_a_figure_that_is_odd_in_any_company() -> None:
    assert found("brain_ml", 1400, 300, 2700) == ["s1 outside 500 to 2600", "s2 outside 500 to 2600"]
    assert found("registration_overlap", 0.95, 0.8) == ["s1 outside 0.85 to 1"]


def test_shares_that_differ_by_rounding_alone() -> None:
    usual = (0.00995, 0.00994, 0.00993, 0.00992, 0.00991, 0.0099, 0.00989, 0.00988)
    assert found("clipped_share", *usual, 0.0096) == []
    assert found("clipped_share", *usual, 0.002) == ["s8 the median of all cases is 0.00991"]


@pytest.mark.parametrize(
    ("before", "after", "odd"), [(10, 9.6, 0), (10, 9.4, 1), (10, 10.6, 1), (0.5, 0.42, 0), (0.5, 0.3, 1), (0, 0, 0)]
)
def test_a_lesion_that_changed(before: float, after: float, odd: int) -> None:
    quality = {"lesion_ml_source": before, "lesion_ml": after, "lesion_outside_brain_ml": 0.0}
    assert len(outliers([{"subject": "a", "session": "1", "quality": quality}])) == odd


def test_a_lesion_that_the_brain_mask_misses() -> None:
    quality = {"lesion_ml_source": 10.0, "lesion_ml": 10.0, "lesion_outside_brain_ml": 2.0}
    (odd,) = outliers([{"subject": "a", "session": "1", "quality": quality}])
    assert (odd["case"], odd["figure"], odd["value"]) == ("a_1", "lesion_outside_brain_ml", 2.0)
    assert odd["why"] == "of 10 ml: the brain mask misses it"
