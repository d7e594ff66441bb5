"""Errors that a user can correct, each one sentence."""

from __future__ import annotations

import difflib
import errno
import traceback
from collections.abc import Iterable

_LONGEST = 4000  # characters that are kept of the text of an error of anybody's code
STANDARD_OUTPUT = "standard output"  # as the name of a file
# What libraries raise, under many names, when the system gives no memory, or no process and no thread.
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "failed to map segment", "std::bad_alloc")
_NO_PROCESS = ("can't start new thread", "resource temporarily unavailable")


class UserError(Exception):
    """Something the user can correct: one sentence naming the thing, the place and the way out.

    The command line prints it without a traceback and exits with code 2 (``--debug`` shows the traceback).
    """


class CellFailed(Exception):
    """A cell failed in another process; the text says how, ``failure.json`` has the traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """A ``UserError`` for a name that does not exist, with the nearest valid one.

    Args:
        kind: what was named, in the singular ("method", "parameter of madad").
        name: what the user wrote.
        known: every name that would have been valid.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return UserError(f"Unknown {kind} {name!r}. {hint}Known: {', '.join(names) or '(none)'}.")


def _text(error: BaseException) -> tuple[str, str]:
    """The text of ``error``, and the name of what is raised in its place; "" for nothing."""
    try:
        return str(error), ""
    except KeyboardInterrupt:
        raise
    except BaseException as another:  # a plug-in's error may be of any kind
        return "", type(another).__name__


def text_of(error: BaseException) -> str:
    """The text of ``error``, of which what is too long is left out."""
    text, instead = _text(error)
    return f"(its text is not known: asked for it, it raises {instead})" if instead else _cut(text, _LONGEST)


def trace_of(error: BaseException) -> str:
    """The traceback of ``error``, of which what is too long is left out."""
    return _cut("".join(traceback.format_exception(error)), 5 * _LONGEST)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most} characters ...] {text[-most // 2 :]}"


def in_words(error: BaseException) -> str:
    """``error`` in one line: what a user can do about it, else its name and its text; what is too long is left out."""
    return _cut(sentence(error), _LONGEST) or f"{type(error).__name__}: {text_of(error)}"


def tellable(error: BaseException) -> Exception:
    """``error``, where it is an exception with a text that can be shown; else one that says the same in so many words."""
    text, instead = _text(error)
    if isinstance(error, Exception) and not instead and len(text) <= _LONGEST:
        return error
    return (UserError if isinstance(error, UserError) else CellFailed)(in_words(error))


def sentence(error: BaseException) -> str:
    """What a user can do about ``error``; "" where it is no matter of theirs."""
    if isinstance(error, (UserError, CellFailed)):
        text, instead = _text(error)
        return text_of(error) if instead else text
    if short := _short_of(error):
        return short
    if full := disk_full(error):
        where = getattr(error, "filename", None) or "the output or cache folder, or of standard output"
        if full == errno.EFBIG:
            return f"A file of {where} is larger than `ulimit -f` allows: raise that limit and run again."
        return f"No space left on the disk of {where}: free some and run again."
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return (
            "A file of adbench's own was closed by other code: look for a plug-in that closes what it has not opened."
        )
    if isinstance(error, PermissionError):
        return f"Not allowed to write or read {error.filename}: choose another --out or --cache, or correct its permissions."
    if isinstance(error, OSError) and error.filename is not None:
        # a read-only disk, a file where a folder should be, or the other way round
        return f"{error.filename2 or error.filename} cannot be read or written: {error.strerror}. Choose another path."
    return ""


def _short_of(error: BaseException) -> str:
    """A sentence when ``error``, or one that led to it, says that memory or processes are short; else ""."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and not any(link is one for one in seen):
        seen.append(link)
        text = " ".join(text_of(link).split())[:200]
        if isinstance(link, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
            return (
                f"Memory ran out ({text or 'no more of it is given'}): free some, raise the limit (`ulimit -v`), or "
                "choose a smaller preset, image size or batch."
            )
        if any(words in text.lower() for words in _NO_PROCESS):
            return f"No process or thread can be started ({text}): raise the limits (`ulimit -u`, `ulimit -v`) or end others."
        link = link.__cause__ or link.__context__
    return ""


def disk_full(error: BaseException) -> int:
    """The errno with which ``error`` says that nothing more can be written; 0 when it says something else."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    for number in numbers:  # safetensors gives the number in its text alone
        if getattr(error, "errno", None) == number or f"(os error {number})" in text_of(error):
            return number
    return 0
