"""Results of an earlier version of the metrics: numbers from their counts, or one sentence."""

import json
import shutil
from pathlib import Path

import pytest

from adbench.leaderboard.recount import recount
from adbench.leaderboard.submission import own_digest, parse, read_submission
from adbench.results.explain import differing_fields
from adbench.runner.keys import METRICS_VERSION
from adbench.utils.hashing import digest

ROOT = Path(__file__).parents[2] / "leaderboards"
RECORDS = ROOT / "phantom" / "records"

FILE = next(path for path in sorted(RECORDS.glob("*.json")) if "histeq" in path.name)


def earlier(folder, version="2", **changes):
    """A copy of a published result as an earlier release would have written it: other interval, version and keys."""
    raw = read_submission(FILE).raw
    record = json.loads(json.dumps(raw["record"]))
    record["metrics"]["auprc"] |= {"low": 0.001, "high": 0.999}
    record["identity"]["metrics_version"] = version
    record["run_key"] = digest(record["identity"])
    made = raw | {"record": record} | changes
    made["digest"] = own_digest(made)
    path = folder / "records" / "old.json"
    path.parent.mkdir(parents=True)
    path.write_text(parse(json.dumps(made).encode(), path).text)
    return path


def test_numbers_are_those_of_this_release_again(tmp_path, cli):
    old = earlier(tmp_path / "phantom")
    code, said, _ = cli("leaderboard", "verify", tmp_path)
    assert code == 1
    assert f"stored '2', recomputed '{METRICS_VERSION}' (numbers of other definitions)" in " ".join(said.split())
    code, _, said = cli("leaderboard", "recount", tmp_path)
    assert (code, "1 of 1 results counted again" in said) == (0, True)
    (new,) = (tmp_path / "phantom" / "records").iterdir()
    assert not old.exists()
    was, now = read_submission(FILE).record.model_dump(mode="json"), read_submission(new).record.model_dump(mode="json")
    assert now["provenance"].pop("recounted_from") == "2"
    was["provenance"].pop("recounted_from", None)
    assert not list(differing_fields(now, was, close=True))  # the last digits are those of the CPU that counts
    assert cli("leaderboard", "verify", tmp_path)[0] == 0
    assert recount(new) is None
    assert "0 of 1 results counted again" in cli("leaderboard", "recount", tmp_path)[2]


def test_what_is_damaged_stays_and_is_named(tmp_path, cli):
    bad = earlier(tmp_path / "phantom")
    raw = json.loads(bad.read_text())
    raw["record"]["seed"] = 7
    bad.write_text(json.dumps(raw))
    good = bad.with_name(FILE.name)
    shutil.copy(FILE, good)
    before = bad.read_bytes()
    code, _, said = cli("leaderboard", "recount", tmp_path)
    assert code == 2
    assert "old.json" in said and "digest" in said  # noqa: PT018
    assert bad.read_bytes() == before
    assert good.read_bytes() == FILE.read_bytes()


def test_counts_that_give_other_thresholds_need_the_maps(tmp_path):
    other = next(path for path in sorted(RECORDS.glob("*.json")) if "zscore" in path.name)
    raw = read_submission(other).raw
    path = earlier(tmp_path / "phantom", validation=raw["validation"], healthy_scores=raw["healthy_scores"])
    before = path.read_bytes()
    with pytest.raises(Exception, match="its maps must be scored again"):
        recount(path)
    assert path.read_bytes() == before
