"""What cells and rows of tables are called: a method, and the parameters in which it differs from its preset and from others."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import PurePath
from typing import Any

from adbench.config.sweep import LONG, MARK, MEMBERS, beyond, differing, members_text, params_text, value_text

# Method -> parameter that is part of its name in every table, how it is written, and the value of the paper, which is not. Its
# value makes another method of it, or a control: it stands in for something that cannot be shipped.
NAMED_PARAMETERS = {
    "features": ("weights", "{}", None),
    "madad": ("noise", "{}", "white"),
    "reflect": ("texture", "{}", None),
    "thor": ("perceptual", "perceptual={}", None),
}
SWEPT = 2  # parameters at most whose own values a preset says beside others


def method_title(method: str, params: Mapping[str, Any]) -> str:
    """The method with the value of its parameter in :data:`NAMED_PARAMETERS`, of a path the last part: "features[random]"."""
    key, shown, plain = NAMED_PARAMETERS.get(method, ("", "", None))
    value = params.get(key)
    text = str(value) if str(value).startswith("./") else PurePath(str(value)).name  # ./random is a file of that name
    return method if value in (None, plain) else f"{method}[{shown.format(value_text(text))}]"


def always_said(method: str, params: Mapping[str, Any], post: Mapping[str, Any]) -> dict[str, Any]:
    """What a name says even where no other differs in it: the members of an ensemble, and what was done to the maps."""
    said: dict[str, Any] = {f"post.{name}": value for name, value in post.items()}
    if method == "ensemble":
        said[MEMBERS] = members_text(map(str, params.get(MEMBERS, ())))
    return said


def params_said(
    method: str,
    params: Mapping[str, Any],
    differs: Mapping[str, Any],
    preset: Mapping[str, Any],
    post: Mapping[str, Any],
) -> dict[str, Any]:
    """The parameters that a name says: those that differ from others, then those that differ from the preset.

    What is its preset as it is says no more than that where others differ in more than :data:`SWEPT` parameters: they say theirs.
    What :func:`method_title` says in brackets is not said again, but of a path it says the last part only.
    """
    changed = beyond(preset, params)
    if preset and not changed and len(differs) > SWEPT:
        differs = {name: value for name, value in differs.items() if name not in preset}
    said = {**differs, **changed, **always_said(method, params, post)}
    if method_title(method, params) != method:
        key = NAMED_PARAMETERS[method][0]
        if key not in differs or PurePath(str(differs[key])).name == str(differs[key]):
            said.pop(key, None)
    return said


def texts_apart(
    sets: Sequence[Mapping[str, Any]], first: Sequence[Collection[str]], beside: Sequence[Hashable]
) -> list[str]:
    """Each of ``sets`` as text; other sets never have the same, except beside other words: what was cut off follows then.

    Args:
        sets: the parameters that each name says.
        first: names in each that differ from others, which come first where there are very many.
        beside: what else stands in each name.
    """
    texts = list(map(params_text, sets, first))
    groups = _alike(range(len(sets)), [(words, MARK.sub("", text)) for words, text in zip(beside, texts, strict=True)])
    while groups:
        same = groups.pop()
        words = _left_out(differing([sets[place] for place in same]))
        if len(set(words)) > 1:
            for place, word in zip(same, words, strict=True):
                texts[place] = f"{texts[place]} {word}".strip()
            groups += _alike(same, words)
    return texts


def _alike(places: Iterable[int], names: Sequence[Hashable]) -> list[list[int]]:
    """Those of ``places`` that share their name with others, by name."""
    found: dict[Hashable, list[int]] = {}
    for place, name in zip(places, names, strict=True):
        found.setdefault(name, []).append(place)
    return [same for same in found.values() if len(same) > 1]


def _left_out(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Words for sets of differing values: of those whose texts differ, else of the first the part that was cut off."""
    names = list(dict.fromkeys(name for one in sets for name in one))
    texts = {
        name: {MARK.sub("", value_text(one[name], members=name == MEMBERS)) if name in one else "" for one in sets}
        for name in names
    }
    if plain := [name for name in names if len(texts[name]) > 1]:
        return [params_text({name: one[name] for name in plain if name in one}) for one in sets]
    if not names:
        return []
    name = names[0]
    values = [one.get(name, "") for one in sets]
    ends = _own_entries(values, text_of=name == MEMBERS) or _ends(list(map(str, values)))
    return [f"{name}={end}" for end in ends]


def _own_entries(values: Sequence[Any], *, text_of: bool) -> list[str]:
    """Of lists, or the texts of members, the entries that are not in all of them; none where these do not tell them apart."""
    lists = [str(value).split(", ") if text_of else value for value in values]
    if not all(isinstance(entries, list | tuple) for entries in lists):
        return []
    own = [
        value_text([str(entry) for entry in entries if not all(entry in others for others in lists)])
        for entries in lists
    ]
    return [f"… {text}" for text in own] if len(set(own)) > 1 else []


def _ends(texts: Sequence[str]) -> list[str]:
    """Long texts up to the end that all share, such as a folder's name."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, texts), strict=False))
    end = len(list(same))
    own = [text[: len(text) - end] for text in texts]
    return [f"{text if len(text) < LONG else f'…{text[1 - LONG :]}'}{'…' if end else ''}" for text in own]
