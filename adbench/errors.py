"""Errors that a user can correct, each one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can correct: one sentence naming the thing, the place and the way out.

    The command line prints it without a traceback and exits with code 2 (``--debug`` shows the traceback).
    """


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
