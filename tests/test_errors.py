"""What goes wrong on a machine, as one sentence with the way out."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from adbench.errors import CellFailed, UserError, disk_full, in_words, sentence, tellable, text_of, trace_of
from adbench.utils.files import replacing


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("Correct this."), "Correct this."),
        (CellFailed("its process was ended"), "its process was ended"),
        (MemoryError(), "Memory ran out (no more of it is given): free some, raise the limit (`ulimit -v`)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "Memory ran out"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "Memory ran out"),
        (RuntimeError("std::bad_alloc"), "Memory ran out (std::bad_alloc)"),
        (ImportError("x.so: cannot allocate memory in static TLS block"), "Memory ran out"),
        (RuntimeError("can't start new thread"), "No process or thread can be started (can't start new thread): raise"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "No process or thread can be started"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "No space left on the disk of /data/x"),
        (
            OSError(errno.EFBIG, "File too large"),
            "A file of the output or cache folder, or of standard output is larger than `ulimit -f`",
        ),
        (RuntimeError("I/O error: File too large (os error 27)"), "A file of the output or cache folder"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "Not allowed to write or read /data/x"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/data/x"), "/data/x cannot be read or written: Is a"),
    ],
)
def test_a_sentence_for_what_a_user_can_change(error: Exception, words: str) -> None:
    assert sentence(error).startswith(words)
    assert in_words(error) == sentence(error)


def test_other_errors_keep_their_names() -> None:
    assert sentence(ValueError("no such luck")) == ""
    assert in_words(ValueError("no such luck")) == "ValueError: no such luck"
    assert not disk_full(OSError(errno.EIO, "Input/output error"))


class Unspeakable(UserError):
    def __str__(self) -> str:
        raise SystemExit


def test_an_error_of_anybody_is_told_in_some_words() -> None:
    silent, endless = Unspeakable(), ValueError("x" * 10**7)
    assert text_of(silent) == sentence(silent) == "(its text is not known: asked for it, it raises SystemExit)"
    assert text_of(endless) == f"{'x' * 2000} [... 9996000 characters ...] {'x' * 2000}"
    assert in_words(endless) == f"ValueError: {text_of(endless)}"
    endless.__cause__ = silent
    assert len(trace_of(endless)) < 21_000
    assert trace_of(endless).endswith("x\n")
    assert len(sentence(UserError("one scan. " * 1000))) == 10_000, "of adbench's own sentences nothing is left out"


def test_what_can_be_told_stays_as_it_is() -> None:
    error = ValueError("no such luck")
    assert tellable(error) is error
    assert str(tellable(SystemExit("enough"))) == "SystemExit: enough"
    assert isinstance(tellable(Unspeakable()), UserError)
    assert len(str(tellable(ValueError("x" * 10**7)))) < 4100


def test_closed_files_are_told() -> None:
    assert sentence(OSError(errno.EBADF, "Bad file descriptor")).startswith("A file of adbench's own was closed")


def test_lack_of_memory_is_told_behind_what_a_library_makes_of_it() -> None:
    error = SystemError("returned a result with an exception set")
    error.__context__ = MemoryError()
    assert sentence(error).startswith("Memory ran out")


@pytest.mark.parametrize(
    ("megabytes", "command", "says"),
    [
        (300, "leaderboard verify .", "`ulimit -v` allows 300 MiB of memory, and the libraries alone take 450"),
        (
            1500,
            "tune --method histeq --dataset phantom --set dataset.n_train=2 --set dataset.n_test=1 --out out --cache out",
            "a process of Ray takes 2300: raise",
        ),
        (800, "run --method ae --dataset phantom --out out --cache out", "and torch and SciPy take 1000: raise"),
    ],
)
def test_a_limit_on_memory_is_told(tmp_path: Path, megabytes: int, command: str, says: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "adbench.cli", *command.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20)),
    )
    assert ran.returncode == 2
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir()), "data were prepared for what cannot run"


@pytest.mark.parametrize("command", ["list methods", "list methods --json"])
def test_a_full_standard_output_is_told_as_what_it_is(command: str) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "adbench.cli", *command.split()], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (ran.returncode, ran.stderr) == (
        2,
        "adbench: No space left on the disk of standard output: free some and run again.\n",
    )


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, replacing(tmp_path / "big.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert sentence(caught.value) == f"No space left on the disk of {tmp_path / 'big.txt'}: free some and run again."
