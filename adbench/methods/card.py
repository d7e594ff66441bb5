"""What a reader must know about a method besides its parameters; ``adbench describe`` and the documentation show it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Card:
    """The card of a method. Its idea is the class's docstring, its defaults and their sources are its parameters.

    Attributes:
        paper: what to cite, with an address.
        equations: one a line: training first, then the test.
        variants: parameters that make another method of it, and what they choose between.
        deviations: from the paper or the authors' code, each with its reason.
        published: what others report under this name, as a range where there is one, each with its source.
        tried: what the validation split said here, and what was chosen by it.
    """

    paper: str
    equations: tuple[str, ...] = ()
    variants: dict[str, str] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
