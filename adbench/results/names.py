"""Row names that tell the runs of one table apart, as short as possible and never a hash alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adbench.config import registry
from adbench.config.cell import preset_values
from adbench.config.labels import always_said, method_title, params_said, texts_apart
from adbench.config.sweep import differing, params_text
from adbench.errors import UserError
from adbench.results.format import several
from adbench.results.record import DataPart, Record

BRACKETS = {
    "[",
    "]",
}  # of a row: they hold what adbench says of it, as the preset, weights, or that it was scored from maps
_LETTERS = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "-": "", "_": "", ".": "", " ": ""})


@dataclass(frozen=True)
class RowName:
    """The name of one row of a table.

    Attributes:
        label: "histeq [tiny] sigma=5", "features[random] [tiny]"; it says every parameter of the method in which the row
            differs from its preset, or of very many the first.
        differs: what was done to the maps, and the parameters of method and data that other rows of the method have other
            values of, with its own values.
    """

    label: str
    differs: dict[str, Any]


def method_name(record: Record) -> str:
    """The method as its rows and cells call it: "features[random]"; see :func:`adbench.config.labels.method_title`."""
    return method_title(record.method.name, record.method.params)


def row_names(records: Sequence[Record], *, seeds: bool = False, submitters: Sequence[str] = ()) -> list[RowName]:
    """A name for each row: method and preset, then in what it differs from them as they are here, or from other rows of them.

    Parameters come first, then what they learned from. Rows that are the same in all of this differ in whose they are, or in
    their code: training slices, version, submitter or author of the weights say which, else the time they were made; a key is added to
    these as the last resort.

    Args:
        records: one of each row.
        seeds: rows differ in their seed too, which stands in a column of its own.
        submitters: who submitted each row, "" where it is not stated; none: it is stated of no row.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault((record.method.name, record.method.preset), []).append(place)
    found: dict[int, RowName] = {}
    for (_, preset), places in groups.items():
        group = [records[place] for place in places]
        whose = [submitters[place] if submitters else "" for place in places]
        for place, differs, words in zip(places, *_distinctions(group, whose, seeds), strict=True):
            label = " ".join(filter(None, (f"{method_name(records[place])} [{preset}]", *words)))
            found[place] = RowName(label, differs)
    return [found[place] for place in range(len(records))]


def training_names(records: Sequence[Record]) -> list[str]:
    """Names of the training data of each row of one table; see :func:`told_apart` for those of one name."""
    parts = [record.train for record in records]
    apart = told_apart([part if part.slices else None for part in parts])  # else nothing is known but its name
    return [f"{part.name} ({mark})" if mark else part.name for part, mark in zip(parts, apart, strict=True)]


def told_apart(parts: Sequence[DataPart | None]) -> list[str]:
    """Words that tell each of ``parts`` from the others of its name with other slices; "" where there are none, and for None.

    That is the parameters in which they differ ("n_train=4"; of those alone that all parts of the same slices agree in), else
    how many slices and subjects they have. Two folders may have the same name, parameters and numbers: the start of the hash of
    their slices stands beside these.
    """
    found = [""] * len(parts)
    for name in {part.name for part in parts if part}:
        ways: dict[str, list[DataPart]] = {}
        for part in parts:
            if part and part.name == name:
                ways.setdefault(part.digest, []).append(part)
        if len(ways) > 1:
            words = dict(zip(ways, _told([*ways.values()]), strict=True))
            for place, part in enumerate(parts):
                if part and part.name == name:
                    found[place] = words[part.digest]
    return found


def _told(groups: Sequence[Sequence[DataPart]]) -> list[str]:
    """Words for groups of parts of one name, each of the same slices; all distinct."""
    vague = {name for group in groups for own in differing([part.params for part in group]) for name in own}
    firsts = [group[0] for group in groups]
    agreed = [{name: value for name, value in one.params.items() if name not in vague} for one in firsts]
    words = list(map(params_text, differing(agreed)))
    length = next(n for n in range(6, 65) if len({one.digest[:n] for one in firsts}) == len(firsts) or n == 64)
    for tell in (
        lambda one: f"{several(one.slices, 'slice')} of {several(one.subjects, 'subject')}",
        lambda one: one.digest[:length],
    ):
        times = Counter(words)
        words = [
            ", ".join(filter(None, (word, tell(one)))) if times[word] > 1 else word
            for word, one in zip(words, firsts, strict=True)
        ]
    return words


def _distinctions(
    group: Sequence[Record], whose: Sequence[str], seeds: bool
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Differences between the rows of one method and preset, and the words that say them behind its name."""
    differs = differing([one.method.params for one in group])
    for name in {one.train.name for one in group}:  # parameters of another dataset are no difference of value
        alike = [place for place, one in enumerate(group) if one.train.name == name]
        for place, values in zip(alike, differing([_of_data(group[place]) for place in alike]), strict=True):
            differs[place] = {**values, **differs[place]}
    presets = {origin: _preset(group[0], origin) for origin in {one.method.origin for one in group}}
    sets = [
        params_said(one.method.name, one.method.params, own, presets[one.method.origin], one.post)
        for one, own in zip(group, differs, strict=True)
    ]
    several = len({one.train.name for one in group}) > 1
    ends = [f"on {one.train.name}" if several else "" for one in group]
    texts = texts_apart(sets, differs, [(method_name(one), end) for one, end in zip(group, ends, strict=True)])
    words = [[text, end] for text, end in zip(texts, ends, strict=True)]
    names = [(method_name(one), *said, one.seed if seeds else 0) for said, one in zip(words, group, strict=True)]
    for twice in [name for name, times in Counter(names).items() if times > 1]:
        same = [place for place, other in enumerate(names) if other == twice]
        for tell in _LAST:
            told = [tell(group[place], whose[place]) for place in same]
            if len(set(told)) == len(same):
                break
        for place, text in zip(same, told, strict=True):
            words[place].append(text)
    always = [always_said(one.method.name, one.method.params, one.post) for one in group]
    return [{**own, **said} for own, said in zip(differs, always, strict=True)], words


def _preset(record: Record, origin: str) -> dict[str, Any]:
    """The parameters of the record's preset, if its method is the one of that name and ``origin`` here; else none."""
    entry = registry.entries("methods").get(record.method.name)
    if entry is None or entry.origin != origin:
        return {}
    try:
        return preset_values(registry.load("methods", record.method.name), record.method.preset)
    except UserError:  # a plug-in that is broken here
        return {}


_LAST: tuple[Callable[[Record, str], str], ...] = (
    lambda one, who: f"({several(one.train.slices, 'training slice')})" if one.train.slices else "",
    lambda one, who: (  # two folders of one name, as training_names
        f"({several(one.train.slices, 'training slice')}, {one.train.digest[:6]})" if one.train.slices else ""
    ),
    lambda one, who: f"v{one.method.version}",
    lambda one, who: who and f"by {who}",
    lambda one, who: f"weights by {one.weights.author}" if one.weights else "",
    lambda one, who: f"by adbench {one.provenance.get('adbench', '?')}",
    lambda one, who: f"made {one.created[:10]}",
    lambda one, who: f"made {one.created[:19].replace('T', ' ')}",
    lambda one, who: f"made {one.created[:19].replace('T', ' ')} key {one.run_key[:8]}",
)


def _of_data(record: Record) -> dict[str, Any]:
    """The parameters of what it learned from, and of what it was tested on where that is another dataset."""
    test = {} if record.test.name == record.train.name else {f"test.{n}": v for n, v in record.test.params.items()}
    return {**record.train.params, **test}


def skeleton(name: str) -> str:
    """``name`` with letters that look alike made equal: ``MADAD``, ``mad-ad`` and ``rnadad`` have one skeleton."""
    return name.casefold().translate(_LETTERS).replace("rn", "m").replace("vv", "w")
