"""A Python environment of its own, so that what a test installs is gone with it."""

from __future__ import annotations

import pytest
from environments import make_environment


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a fresh environment."""
    return make_environment(tmp_path_factory.mktemp("environment"))
