"""The number of CPU threads of a run: what the user says, else what the method asks for."""

from __future__ import annotations

import pytest
import torch

from adbench.errors import UserError
from adbench.utils import threads


def test_the_user_decides_else_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    assert [threads.count(cpus) for cpus in (0.5, 1, 2, 2.5)] == [1, 1, 2, 2]
    monkeypatch.setenv(threads.VARIABLE, "3,1")
    assert threads.count(2) == 3
    for nonsense in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv(threads.VARIABLE, nonsense)
        with pytest.raises(UserError, match=f"OMP_NUM_THREADS={nonsense} is not a number of threads"):
            threads.count(2)


def test_limits_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    before = torch.get_num_threads()
    with threads.limited(before + 2):
        assert torch.get_num_threads() == before + 2
        assert threads.count(1) == before + 2, "processes that are started here follow"
    assert torch.get_num_threads() == before
    assert threads.count(1) == 1
