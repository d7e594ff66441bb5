"""Each forgery is caught, or the documentation says why it cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from board_files import ROOT
from forger import FORGERIES, Forged, Forgery

from adbench.leaderboard import submission as files
from adbench.leaderboard.checks.all import _scoring
from adbench.leaderboard.submission import Submission
from adbench.leaderboard.verify import verify
from adbench.utils.hashing import digest

DOCS = Path(__file__).parents[2] / "docs" / "submit.md"
ROWS = dict(re.findall(r"^\| ([^|]+?) \| (yes|no): [^|]+ \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
SAID = dict(re.findall(r"^\| ([^|]+?) \| (?:yes|no): ([^|]+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.fixture(scope="module")
def shipped() -> Submission:
    """A committed result on the phantom: ae, FLAIR."""
    paths = sorted((ROOT / "phantom" / "records").glob("phantom-flair-ae-tiny-seed0-*.json"))
    if not paths:
        pytest.skip("no record is committed")
    return files.read_submission(paths[0])


def fields(texts: list[str], folder: Path) -> set[str]:
    """What verify names in these files."""
    paths = [folder / f"{number}.json" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return {finding.field for finding in verify(paths)[1]}


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.name)
def test_forgeries(forgery: Forgery, submission: Submission, shipped: Submission, tmp_path: Path) -> None:
    found = fields(forgery.make(submission, shipped), tmp_path)
    if forgery.field:
        assert any(field == forgery.field or field.endswith(f".{forgery.field}") for field in found), found
        assert f"`{forgery.field}`" in SAID[forgery.name]
    else:
        assert found == set()
    assert ROWS[forgery.name] == ("yes" if forgery.field else "no")


def test_the_table_is_the_list() -> None:
    assert list(ROWS) == [forgery.name for forgery in FORGERIES]


def test_a_forger_who_changes_nothing_is_no_forger(submission: Submission, shipped: Submission, tmp_path: Path) -> None:
    """So what is found in a forgery is the forgery, and no trace of how it was made."""
    assert fields([Forged(submission).seal(), Forged(shipped).seal(numbers=False)], tmp_path) == set()
    assert fields([Forged(shipped).seal()], tmp_path) == set()


@pytest.mark.parametrize("weights", [None, {"author": "A", "licence": "CC0-1.0", "link": "", "digest": "0" * 64}])
def test_what_only_scores_stands_in_the_key_of_a_fit_or_beside_it(
    weights: dict[str, str] | None, shipped: Submission
) -> None:
    """In both it stands where an earlier adbench has made a shared fit, with all parameters in its key."""

    def wrong(name: str, *, twice: bool) -> list[str]:
        record = shipped.record.model_copy(deep=True, update={"weights": weights})
        params = record.identity["params"]
        record.identity["scoring"] = {name: params[name] if twice else params.pop(name)}
        return [issue.sentence for issue in _scoring(record)]

    assert wrong("sigma", twice=False) == []
    assert [("sigma" in said, "too" in said) for said in wrong("sigma", twice=True)] == [(True, True)] * (not weights)
    assert "parameters of ae that do not only score" in " ".join(wrong("lr", twice=False))


def test_the_shipped_test_slices_after_training_on_fewer(shipped: Submission, tmp_path: Path) -> None:
    """Parameters of the phantom that change one role leave the slices of the others as they are known."""
    forged = Forged(shipped)
    for role in ("train", "val", "threshold", "test"):
        forged.record[role]["params"]["n_train"] = 5
    forged.record["train"] |= {"digest": digest(5), "subjects": 5, "slices": 50}
    del forged.raw["splits"]["train"][5:]
    assert fields([forged.seal(numbers=False)], tmp_path) == set()
