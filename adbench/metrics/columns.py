"""Which metrics tables, pages and pictures show, in their order. What each of them is stands in :mod:`adbench.metrics.spec`."""

from __future__ import annotations

from adbench.metrics.spec import HEADLINE

BOARD_METRICS = (*HEADLINE, "dice@best", "lesion_recall@val", "fa_slice")  # of the leaderboard and of `adbench run`
REPORT_METRICS = (*HEADLINE, "dice@best", "auroc", "lesion_recall@val", "fa_slice")
WITHOUT_INTERVAL = ("dice@best", "lesion_recall@val", "fa_slice", "auroc")  # columns that show the value alone
STRATA_METRICS = HEADLINE  # of a group of subjects, with the following
FALSE_ALARMS = ("fa_slice", "fpr_healthy@conformal10", "fa_scan@conformal10", "alarms@fpr1", "alarms@fpr5")
WITHOUT_THRESHOLD = ("auprc", "auroc", "auprc_subject")
