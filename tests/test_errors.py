"""What goes wrong on a machine, as one sentence with the way out."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys

import pytest

from adbench.errors import CellFailed, UserError, disk_full, in_words, sentence


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("Correct this."), "Correct this."),
        (CellFailed("its process was ended"), "its process was ended"),
        (MemoryError(), "Memory ran out (no more of it is given): free some, raise the limit (`ulimit -v`)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "Memory ran out"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "Memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "No space left on the disk of /data/x"),
        (OSError(errno.EFBIG, "File too large"), "A file of the output or cache folder is larger than `ulimit -f`"),
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


def test_a_limit_on_memory_is_told() -> None:
    limited = "from adbench.errors import sentence\ntry:\n    bytearray(1 << 40)\nexcept BaseException as error:\n    print(sentence(error))"
    ran = subprocess.run(
        [sys.executable, "-c", limited],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33)),
    )
    assert ran.stdout.startswith("Memory ran out"), ran.stderr
