"""Code that is not adbench's own can neither swallow an interrupt nor invent one."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from adbench.utils.signals import as_interrupts, exit_code, insisting


@pytest.mark.parametrize("instead", [None, SystemExit(1), ValueError("stopped")])
def test_an_interrupt_that_is_caught_is_raised_again(instead: BaseException | None) -> None:
    def code() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            if instead is not None:
                raise instead from None

    with pytest.raises(KeyboardInterrupt), as_interrupts(), insisting():
        code()
    assert exit_code() == 143


def test_one_that_is_over_does_not_count() -> None:
    with as_interrupts():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with insisting():
            pass


def test_an_interrupt_without_a_signal_is_an_error() -> None:
    with as_interrupts(), pytest.raises(RuntimeError, match="nobody has interrupted"), insisting():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), insisting():  # where others handle signals, it may be one
        raise KeyboardInterrupt


def test_a_copy_of_the_process_does_not_leave_the_block() -> None:
    process = os.getpid()
    with insisting():
        child = os.fork()
    if os.getpid() != process:
        os.execv(sys.executable, [sys.executable, "-c", ""])  # it would go on as the test
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
