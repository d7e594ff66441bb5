"""Safe parsing of YAML 1.2: plain types only, and its size is checked before anything is built."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from adbench.errors import UserError
from adbench.utils import limits


class _Values(yaml.SafeLoader):
    """YAML 1.2: ``00012``, ``1:30``, ``no`` and ``2024-01-05`` are texts, which the field that gets them reads by its type.

    So is ``1.10``: as a number it would be 1.1, another version or name.

    A key that stands twice in one mapping is an error: the earlier value would be lost without a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        if twice := [key for key, times in keys.items() if times > 1]:
            raise yaml.constructor.ConstructorError(
                "while reading a mapping", node.start_mark, f"the key {twice[0]!r} stands there twice", node.start_mark
            )
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _float(loader: _Values, node: yaml.ScalarNode) -> float | str:
    number, text = loader.construct_yaml_float(node), str(node.value)
    return text if text.endswith("0") and str(number) != text else number


_Values.add_constructor("tag:yaml.org,2002:float", _float)
_PATTERNS = {
    "tag:yaml.org,2002:int": (r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
}
_REPLACED = {*_PATTERNS, "tag:yaml.org,2002:timestamp"}
_Values.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _PATTERNS.items():
    _Values.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def read_own(path: Path) -> dict[str, Any]:
    """The content of a YAML file that is part of adbench."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # fifteen times as fast as the other, and not everywhere
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), loader)
    return found


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file, of plain types; an error begins with ``what`` it is.

    Raises:
        UserError: it cannot be read, is not valid YAML, or is beyond a limit of :mod:`adbench.utils.limits`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(limits.YAML_BYTES + 1)
        limits.check(f"The {what} {path}", "has at least", len(content), limits.YAML_BYTES)
        return parse_yaml(content.decode("utf-8"), f"The {what} {path}")
    except OSError as error:
        raise UserError(f"The {what} {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"The {what} {path} is not valid YAML: {' '.join(str(error).split())}.") from None


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text, of plain types; what it stands for is counted before it is built.

    An error begins with ``where`` the text comes from.

    Raises:
        UserError: it is beyond a limit of :mod:`adbench.utils.limits`, or a value holds itself.
        yaml.YAMLError, ValueError: it is not valid, or a value of it is not.
    """
    sizes: dict[str, int] = {}  # of what has an anchor, its aliases written out
    counts, anchors = [0], [""]
    for event in yaml.parse(text, Loader=_Values):
        if isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            anchors.append(event.anchor or "")
            limits.check(where, "goes down", len(counts) - 1, limits.YAML_DEPTH)
            sizes.pop(anchors[-1], None)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = anchors.pop(), counts.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor or "", 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise UserError(f"{where} holds a value within itself, by its alias *{event.anchor}: write it out.")
            anchor, size = "", sizes.get(event.anchor or "", 1)
        else:
            continue
        sizes[anchor], counts[-1] = size, counts[-1] + size
        limits.check(where, "stands for", counts[-1], limits.YAML_VALUES)
    return yaml.load(text, Loader=_Values)
