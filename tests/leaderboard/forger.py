"""A forger: changes a result and makes everything that follows from the change again: numbers, hashes, keys, digest.

:data:`FORGERIES` is the list of what was tried, in the order of the table in ``docs/submit.md``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from board_files import rekey, rename

from adbench.leaderboard import encoding
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks.numbers import NUMBERS
from adbench.leaderboard.submission import Submission, ranking_left_out
from adbench.metrics.evaluate import choose_thresholds, evaluate
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.score_bins import key_of
from adbench.metrics.spatial import SpatialAccumulator, froc_thresholds
from adbench.metrics.spec import RANKED_BY
from adbench.metrics.thresholds import ThresholdCounts
from adbench.utils.hashing import digest

NAMES = (files.WITH, files.WITHOUT)


class Forged:
    """A result that is being forged: its JSON value, and its counts unpacked."""

    def __init__(self, base: Submission) -> None:
        self.raw: dict[str, Any] = copy.deepcopy(base.raw)
        self.test, self.validation = base.test.subset(base.test.subjects), base.validation
        self.spatial: dict[str, Any] = json.loads(base.spatial_bytes)

    @property
    def record(self) -> dict[str, Any]:
        return self.raw["record"]

    def seal(self, *, numbers: bool = True) -> str:
        """The text of the file, with all that follows from the counts and the identity made again.

        Args:
            numbers: compute them from the counts, as a forger does who knows how they are checked.
        """
        record, raw = self.record, self.raw
        if numbers:
            thresholds, froc = choose_thresholds(self.validation)[0], froc_thresholds(self.validation)
            if (thresholds, froc) != (self.spatial["thresholds"], self.spatial["froc"]):
                self.spatial |= {"thresholds": thresholds, "froc": froc}
                self._count_again(len(froc))
            spatial = SpatialAccumulator.from_values(self.spatial, "forged")
            found = evaluate(self.test, self.validation, level=0.95, spatial=spatial, strata=True)
            record |= {name: json.loads(json.dumps(found.as_dict()[name])) for name in NUMBERS}
            record["notes"] = found.notes
            left_out = encoding.encode_values(ranking_left_out(self.test, spatial.subject_of))
            raw["ranking"] = {"metric": RANKED_BY, "left_out": left_out}
            raw["histograms"] = encoding.encode_histograms(self.test)
            kept = ThresholdCounts.of(self.validation, NAMES)
            raw["submission"], raw["validation"] = files.VERSION, encoding.encode_histograms(kept)
            raw["healthy_scores"] = encoding.encode_values(np.array(kept.healthy_scores))
        text = (json.dumps(self.spatial, indent=1) + "\n").encode()
        raw["spatial"] = encoding.encode_bytes(text)
        record["files"]["spatial.json"] = files.sha256(text)
        record["files"]["splits.json"] = files.sha256((json.dumps(raw["splits"], indent=1) + "\n").encode())
        for role in ("train", "val", "threshold", "test"):
            if record[role] is not None:
                record["identity"][f"{role}_slices"] = record[role]["digest"]
        for field in ("source", "params", "preset"):
            record["identity"]["method_source" if field == "source" else field] = record["method"][field]
        scoring = {name: record["method"]["params"].get(name) for name in record["identity"].get("scoring", {})}
        if scoring:
            record["identity"]["scoring"] = scoring
            record["identity"]["params"] = {
                name: value for name, value in record["method"]["params"].items() if name not in scoring
            }
        record["identity"]["seed"] = record["seed"]
        record["timing"]["score"] = record["timing"]["score_per_slice"] * record["test"]["slices"]
        rekey(raw)
        raw["digest"] = files.own_digest(raw)
        return json.dumps(raw)

    def _count_again(self, froc: int) -> None:
        """No lesion is found at thresholds at which nothing was counted; alarms follow from the slices' highest scores."""
        rules = [rule for rule in ("val", "conformal05", "conformal10") if rule in self.spatial["thresholds"]]
        for row in self.spatial["rows"]:
            none = [0] * (len(rules) + froc)
            row |= {"found": none, "false_components": none, "lesion_ious": [0.0] * len(row["lesion_sizes"])}
            row["alarms"] = self.alarms(row, rules)

    def alarms(self, row: dict[str, Any], rules: list[str]) -> dict[str, int]:
        """Lesion-free slices whose highest score reaches the threshold of each rule."""
        slices = list(zip(row["slice_max"], row["slice_lesion"], strict=True))
        return {
            rule: sum(high >= self.spatial["thresholds"][rule] and not lesion for high, lesion in slices)
            for rule in rules
        }

    def keep(self, volumes: list[str]) -> None:
        """Leave out all other test subjects."""
        self.test = self.test.subset(volumes)
        self.spatial["rows"] = [row for row in self.spatial["rows"] if row["volume"] in volumes]
        slices = self.record["test"]["slices"] // self.record["test"]["subjects"]
        self.raw["splits"]["test"] = volumes
        self.record["test"] |= {
            "subjects": len(volumes),
            "slices": slices * len(volumes),
            "lesion_subjects": sum(bool(self.test[v].n_positive) for v in volumes),
            "digest": digest(volumes),
        }

    def without_worst(self, count: int) -> None:
        """Leave out the subjects with a lesion that were scored worst."""
        rated = sorted((row["auprc"], row["subject"]) for row in self.record["subjects"] if row["auprc"] is not None)
        gone = {subject for _, subject in rated[:count]}
        self.keep([volume for volume in self.test if volume not in gone])

    def plugin(self, name: str = "mine", steps: int = 100) -> None:
        """A trained method of a package."""
        rename(self.raw, name)
        self.record["fit"]["steps"] = steps
        self.record["method"] |= {"parameters": 50_000, "conformance": "not run"}
        self.record["timing"]["fit"] = 60.0


def relabelled(own: ScoreHistogram) -> ScoreHistogram:
    """As many lesion voxels, but at the highest scores."""
    keys, positive, negative = own.counts()
    counts, left = positive + negative, own.n_positive
    lesion = np.zeros_like(positive)
    for place in range(len(keys) - 1, -1, -1):
        lesion[place] = min(left, counts[place])
        left -= lesion[place]
    return ScoreHistogram.from_counts(keys, lesion, counts - lesion, own.partition)


@dataclass(frozen=True)
class Forgery:
    """Something that was tried.

    Attributes:
        name: as in the table of the documentation.
        make: from a small result on a folder and a committed one on the phantom (ae, FLAIR) the texts of the files.
        field: that verify names; "" when nothing can be known.
    """

    name: str
    make: Callable[[Submission, Submission], list[str]]
    field: str


def folder(
    change: Callable[[Forged], object], *, numbers: bool = True
) -> Callable[[Submission, Submission], list[str]]:
    """A change of the result on a folder of slices."""
    return lambda small, shipped: [_changed(small, change, numbers)]


def phantom(
    change: Callable[[Forged], object], *, numbers: bool = False
) -> Callable[[Submission, Submission], list[str]]:
    """A change of the committed result."""
    return lambda small, shipped: [_changed(shipped, change, numbers)]


def beside(
    first: Callable[[Forged], object],
    second: Callable[[Forged], object],
    *,
    of_phantom: bool = False,
    numbers: bool = False,
) -> Callable[[Submission, Submission], list[str]]:
    """Two changed results of one board."""
    return lambda small, shipped: [
        _changed(shipped if of_phantom else small, change, numbers) for change in (first, second)
    ]


def _changed(base: Submission, change: Callable[[Forged], object], numbers: bool) -> str:
    forged = Forged(base)
    change(forged)
    return forged.seal(numbers=numbers)


def _put(path: str, value: Any) -> Callable[[Forged], None]:
    *parents, last = path.split("/")

    def change(forged: Forged) -> None:
        part = forged.record
        for name in parents:
            part = part[name]
        part[last] = value

    return change


def _all(*changes: Callable[[Forged], object]) -> Callable[[Forged], None]:
    def change(forged: Forged) -> None:
        for one in changes:
            one(forged)

    return change


def _own(**fields: Any) -> Callable[[Forged], None]:
    """A method of a package, with other fields of its record's method."""

    def change(forged: Forged) -> None:
        forged.plugin()
        forged.record["method"] |= fields

    return change


def _named(name: str) -> Callable[[Forged], None]:
    return lambda forged: rename(forged.raw, name)


def _invented(forged: Forged) -> None:
    invented = SubjectHistograms()
    invented.partition = forged.test.partition
    invented._by_subject.update({volume: relabelled(own) for volume, own in forged.test.items()})
    forged.test = invented
    for row in forged.spatial["rows"]:  # nothing is found, so that no count of lesions contradicts
        row |= {"found": [0] * len(row["found"]), "lesion_ious": [0.0] * len(row["lesion_ious"])}
        row["false_components"] = [0] * len(row["false_components"])


def _one_voxel_more(forged: Forged) -> None:
    volume = next(row["volume"] for row in forged.spatial["rows"] if row["lesion_sizes"])
    keys, positive, negative = (part.copy() for part in forged.test[volume].counts())
    place = int(np.flatnonzero(negative > 1)[0])
    positive[place] += 1
    negative[place] -= 1
    forged.test._by_subject[volume] = ScoreHistogram.from_counts(keys, positive, negative, forged.test.partition)
    next(row for row in forged.spatial["rows"] if row["volume"] == volume)["lesion_sizes"][0] += 1


def _one_voxel_moved(forged: Forged) -> None:
    """A lesion voxel of one subject becomes one of another: no sum changes."""
    ill = [row for row in forged.spatial["rows"] if row["lesion_sizes"] and row["lesion_sizes"][0] > 1]
    for row, step in zip(ill, (1, -1), strict=False):
        keys, positive, negative = (part.copy() for part in forged.test[row["volume"]].counts())
        place = int(np.flatnonzero((positive if step < 0 else negative) > 1)[0])
        positive[place] += step
        negative[place] -= step
        one = ScoreHistogram.from_counts(keys, positive, negative, forged.test.partition)
        forged.test._by_subject[row["volume"]] = one
        row["lesion_sizes"][0] += step


def _floating(forged: Forged) -> None:
    forged.record["method"]["params"]["steps"] = float(forged.record["method"]["params"]["steps"])


def _renamed(forged: Forged) -> None:
    """The last test subject gets a new name."""
    *others, last = forged.test.subjects
    counts, forged.test = forged.test[last], forged.test.subset(others)
    forged.test._by_subject[f"{last}x"] = counts
    for row in forged.spatial["rows"]:
        if row["volume"] == last:
            row |= {"volume": f"{last}x", "subject": f"{last}x"}
    forged.raw["splits"]["test"] = forged.test.subjects
    forged.record["test"]["digest"] = digest(forged.test.subjects)


def _oracle(forged: Forged) -> None:
    forged.validation = ThresholdCounts.of(forged.test, NAMES)
    healthy = sum(not own.n_positive for _, own in forged.test.items())
    count = len(forged.test)
    forged.raw["splits"]["threshold"] = [f"val{number:02d}" for number in range(count)]
    forged.record["threshold"] |= {"subjects": count, "lesion_subjects": count - healthy, "slices": count}


def _lower_validation(forged: Forged) -> None:
    kept = ThresholdCounts.of(forged.validation, NAMES)
    keys, positive, negative = kept[files.WITH].counts()
    order = np.argsort(positive > 0, kind="stable")  # lesion voxels become the highest scores
    ill = ScoreHistogram.from_counts(keys, positive[order], negative[order], kept.partition)
    forged.validation = ThresholdCounts(ill, kept[files.WITHOUT], kept.healthy_scores, NAMES)


def _fewer_voxels(forged: Forged) -> None:
    forged.plugin("yours")
    kept = ThresholdCounts.of(forged.validation, NAMES)
    keys, positive, negative = kept[files.WITH].counts()
    ill = ScoreHistogram.from_counts(keys[1:], positive[1:], negative[1:], kept.partition)
    forged.validation = ThresholdCounts(ill, kept[files.WITHOUT], kept.healthy_scores, NAMES)


def _no_alarm(forged: Forged) -> None:
    kept = ThresholdCounts.of(forged.validation, NAMES)
    kept.healthy_scores = [score * 0.9731 for score in kept.healthy_scores]
    forged.validation = kept


def _slices_at_one(forged: Forged) -> None:
    for row in forged.spatial["rows"]:
        row["slice_top"] = [1.5 if lesion else 0.0 for lesion in row["slice_lesion"]]


def _slices_at_their_highest(forged: Forged) -> None:
    for row in forged.spatial["rows"]:
        pairs = zip(row["slice_max"], row["slice_top"], row["slice_lesion"], strict=True)
        row["slice_top"] = [high if lesion else top for high, top, lesion in pairs]


def _slices_swapped(forged: Forged) -> None:
    """A lesion-free slice with higher scores for a lesion slice, where the counts allow it."""
    rules = [rule for rule in ("val", "conformal05", "conformal10") if rule in forged.spatial["thresholds"]]
    for row in forged.spatial["rows"]:
        own, slices = forged.test[row["volume"]], range(len(row["slice_lesion"]))
        for low, high in product(slices, slices):
            lesion, tops = row["slice_lesion"], row["slice_top"]
            if lesion[low] and not lesion[high] and tops[high] > tops[low] and _background(own, row, low):
                for values in (row["slice_max"], row["slice_top"]):
                    values[low], values[high] = values[high], values[low]
                row["alarms"] = forged.alarms(row, rules)
                return
    raise AssertionError("no volume to swap in")


def _background(own: ScoreHistogram, row: dict[str, Any], at: int) -> bool:
    """Whether background voxels have the scores that are given for a slice."""
    keys, _, negative = own.counts()
    places = own.partition.of(np.array([key_of(row[name][at]) for name in ("slice_max", "slice_top")], np.int64))
    return bool(np.isin(places, keys[negative > 0]).all())


def _elsewhere(forged: Forged) -> None:
    """A phantom of other parameters, which is unknown."""
    for role in ("train", "val", "threshold", "test"):
        forged.record[role]["params"]["seed"] = 7
        forged.record[role]["digest"] = digest([role, 7])
    forged.plugin()


def _seed(number: int) -> Callable[[Forged], None]:
    return _put("seed", number)


def _copied(small: Submission, shipped: Submission) -> list[str]:
    return [_changed(shipped, lambda forged: None, False), _changed(shipped, _seed(5), False)]


def _touched(forged: Forged) -> None:
    """One subject of a copy is changed a little, which changes every pooled number."""
    forged.plugin()
    forged.record["seed"] = 5
    _one_voxel_less(forged)


def _one_voxel_less(forged: Forged) -> None:
    volume = next(row["volume"] for row in forged.spatial["rows"] if row["lesion_sizes"])
    keys, positive, negative = (part.copy() for part in forged.test[volume].counts())
    place = np.flatnonzero(negative > 0)[:2]
    negative[place] += [-1, 1]
    full = (positive + negative) > 0
    one = ScoreHistogram.from_counts(keys[full], positive[full], negative[full], forged.test.partition)
    forged.test._by_subject[volume] = one


def _jittered(forged: Forged) -> None:
    """A copy with one background voxel of every subject at another score, which changes the last digits of each."""
    forged.plugin()
    forged.record["seed"] = 7
    for volume, own in list(forged.test.items()):
        keys, positive, negative = (part.copy() for part in own.counts())
        there = np.flatnonzero(negative > 1)
        negative[there[[0, len(there) // 2]]] += [-1, 1]
        full = (positive + negative) > 0
        one = ScoreHistogram.from_counts(keys[full], positive[full], negative[full], forged.test.partition)
        forged.test._by_subject[volume] = one


def _same_key(forged: Forged) -> None:
    forged.plugin()
    _invented(forged)


def _asked(name: str, sums: list[float] | None = None, **facts: Any) -> Callable[[Forged], None]:
    """A metric that the run was asked for, with the same sums of every subject."""
    part = {"source": "0" * 64, "heading": name, "definition": "", "less_is_better": False, "oracle": False, "unit": ""}

    def change(forged: Forged) -> None:
        forged.record["optional"] = {name: part | facts}
        forged.record["metrics"][name] = {**forged.record["metrics"]["auroc"], "value": 0.5}
        for row in forged.spatial["rows"] if sums else ():
            row["measures"][name] = sums

    return change


def _every_row(**fields: Any) -> Callable[[Forged], None]:
    return lambda forged: [row.update(copy.deepcopy(fields)) for row in forged.spatial["rows"]] and None


FORGERIES = (
    Forgery("a better AUPRC", folder(_put("metrics/auprc/value", 0.99), numbers=False), "metrics.auprc.value"),
    Forgery(
        "a better Dice of one subject",
        folder(lambda f: f.record["subjects"][2].update({"dice@val": 1.0}), numbers=False),
        "subjects.2.dice@val",
    ),
    Forgery("a narrower interval", folder(_put("metrics/auprc/low", 0.5), numbers=False), "metrics.auprc.low"),
    Forgery("counts invented, with as many lesion voxels", folder(_all(_own(), _invented)), ""),
    Forgery("the same beside the true result of that key", beside(_own(), _same_key, numbers=True), "run_key"),
    Forgery("one lesion voxel more, on the phantom", phantom(_one_voxel_more, numbers=True), "histograms"),
    Forgery(
        "a lesion voxel moved from one subject to another, on the phantom",
        phantom(_one_voxel_moved, numbers=True),
        "histograms",
    ),
    Forgery("a training copied under another seed", _copied, "seed"),
    Forgery("the same with one subject changed", beside(_own(), _touched, numbers=True), "seed"),
    Forgery(
        "the same with one voxel of every subject changed",
        beside(lambda f: f.plugin(), _jittered, of_phantom=True, numbers=True),
        "seed",
    ),
    Forgery(
        "the same under the same seed, with a parameter changed",
        beside(lambda f: f.plugin(), _all(lambda f: f.plugin(), _put("method/params/lr", 0.123)), of_phantom=True),
        "",
    ),
    Forgery(
        "a training copied under another method's name", beside(_own(), lambda f: f.plugin("yours")), "method.name"
    ),
    Forgery(
        "a copied training of a package's method that claims no step",
        beside(lambda f: f.plugin(steps=0), _all(lambda f: f.plugin(steps=0), _seed(5))),
        "",
    ),
    Forgery("no step claimed for a trained method of adbench", phantom(_put("fit/steps", 0)), "fit.steps"),
    Forgery("one step claimed for a trained method of adbench", phantom(_put("fit/steps", 1)), "fit.steps"),
    Forgery("another preset's name on a method of adbench", phantom(_put("method/preset", "paper")), "method.preset"),
    Forgery("another version of a method of adbench", phantom(_put("method/version", "2")), "method.version"),
    Forgery("a parameter of another type, for a key of its own", phantom(_floating), "method.params"),
    Forgery(
        "a parameter of the training among those that only score",
        phantom(_put("identity/scoring", {"lr": 0})),
        "identity.scoring",
    ),
    Forgery("a file that no parameter names", phantom(_put("identity/files", ["0" * 64])), "identity.files"),
    Forgery(
        "the four worst subjects dropped, on the phantom",
        phantom(lambda f: f.without_worst(4), numbers=True),
        "test.digest",
    ),
    Forgery(
        "the same beside the whole",
        beside(_elsewhere, _all(_elsewhere, lambda f: f.without_worst(4)), of_phantom=True, numbers=True),
        "splits.test",
    ),
    Forgery(
        "the same with another subject under a new name",
        beside(_elsewhere, _all(_elsewhere, lambda f: f.without_worst(4), _renamed), of_phantom=True, numbers=True),
        "splits.test",
    ),
    Forgery("the same on a folder of one's own", folder(_all(_own(), lambda f: f.without_worst(1))), ""),
    Forgery(
        "a test subject in training",
        folder(lambda f: f.raw["splits"]["train"].__setitem__(-1, f.raw["splits"]["test"][0])),
        "splits.train",
    ),
    Forgery("another source hash of a method of adbench", phantom(_put("method/source", "0" * 64)), "method.source"),
    Forgery(
        '"built-in" claimed for another method',
        folder(_all(_named("mine"), _put("method/origin", "built-in"))),
        "method.origin",
    ),
    Forgery(
        "a release of adbench that does not exist", phantom(_put("provenance/adbench", "9.9.9")), "provenance.adbench"
    ),
    Forgery("a package's method by the name of one of adbench", folder(_named("ae")), "method.origin"),
    Forgery("a name with a Cyrillic letter", folder(_named("mаdad")), "method.name"),
    Forgery("a name that reads like the row of a control", folder(_named("features[lite0]")), "method.name"),
    Forgery("a name that reads like another", folder(_named("rnadad")), "method.name"),
    Forgery("two names of one table that read alike", beside(_own(), lambda f: f.plugin("m1ne")), "method.name"),
    Forgery("a nanosecond of training", folder(_all(_own(), _put("timing/fit", 1e-9))), "timing.fit"),
    Forgery("a nanosecond a slice", folder(_put("timing/score_per_slice", 1e-12)), "timing.score_per_slice"),
    Forgery("half the training time", folder(_all(_own(), _put("timing/fit", 30.0))), ""),
    Forgery("ten weights of a method of adbench", phantom(_put("method/parameters", 10)), "method.parameters"),
    Forgery("ten weights of a package's method", folder(_own(parameters=10)), ""),
    Forgery(
        "fewer weights under another seed",
        beside(_own(), _all(_own(parameters=10), _seed(1)), numbers=False),
        "method.parameters",
    ),
    Forgery("more weights than memory", folder(_own(parameters=10**12)), "memory"),
    Forgery("the test's own counts as validation counts", folder(_all(_own(), _oracle)), "validation"),
    Forgery("validation scores invented, with as many voxels", folder(_all(_own(), _lower_validation)), ""),
    Forgery("other validation voxels beside another result", beside(_own(), _fewer_voxels, numbers=True), "validation"),
    Forgery("scores of healthy validation subjects invented", folder(_no_alarm), "healthy_scores"),
    Forgery("another threshold", folder(_put("thresholds/val", 0.25), numbers=False), "thresholds.val"),
    Forgery("slice scores set to 1", folder(_slices_at_one), "slice_top"),
    Forgery("slice scores set to the highest of their slice", folder(_slices_at_their_highest), "slice_top"),
    Forgery("slice scores swapped within a volume", phantom(_slices_swapped, numbers=True), ""),
    Forgery("another training source, on the phantom", phantom(_put("train/name", "ixi")), "train.name"),
    Forgery("another number of training slices, on the phantom", phantom(_put("train/slices", 24)), "train.slices"),
    Forgery("another number of test slices, on the phantom", phantom(_put("test/slices", 400)), "test.slices"),
    Forgery("another size, on the phantom", phantom(_put("test/grid", [256, 256])), "test.grid.0"),
    Forgery("unknown training slices, on the phantom", phantom(_put("train/digest", "0" * 64)), "train.digest"),
    Forgery(
        "the same, with a parameter that the phantom has not",
        phantom(_all(_put("train/digest", "0" * 64), _put("train/params/noise", 1))),
        "train.params",
    ),
    Forgery("unknown training slices, elsewhere", folder(_all(_own(), _put("train/digest", "0" * 64))), ""),
    Forgery(
        "a weaker protocol",
        folder(lambda f: (_put("protocol/level", 0.5)(f), _put("identity/protocol/level", 0.5)(f)), numbers=False),
        "protocol.level",
    ),
    Forgery(
        "sums by the name of the ranking metric",
        folder(_all(_own(), _every_row(measures={"auprc": [0.9, 1.0]}))),
        "spatial",
    ),
    Forgery(
        "a surface Dice of 7", folder(_all(_own(), _asked("surface_dice@2mm", [7.0, 1.0])), numbers=False), "spatial"
    ),
    Forgery("a reconstruction whose SSIM is 7.5", folder(_all(_own(), _every_row(recon_ssim=7.5))), "spatial"),
    Forgery(
        "a metric of one's own under the heading AUPRC",
        folder(_all(_own(), _asked("own", [1.0, 1.0], heading="AUPRC")), numbers=False),
        "optional.own.heading",
    ),
    Forgery(
        "a metric whose name a spreadsheet takes for a formula",
        folder(_all(_own(), _asked("=cmd|'/C calc'!A0", [1.0, 1.0], heading="own")), numbers=False),
        "optional",
    ),
    Forgery(
        "one metric with two directions",
        beside(
            _all(_own(), _asked("own", [1.0, 1.0])),
            _all(_own(), _seed(1), _asked("own", [1.0, 1.0], less_is_better=True)),
            numbers=False,
        ),
        "optional.own",
    ),
    Forgery(
        "sixty groupings of the subjects",
        folder(_all(_own(), _every_row(groups={f"g{number}": "a" for number in range(60)}))),
        "spatial",
    ),
    Forgery("conformance claimed by a package's method", folder(_own(conformance="passed")), ""),
)
