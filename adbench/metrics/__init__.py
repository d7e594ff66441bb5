"""Numbers with error bars, from per-subject histograms of scores. Import the module that you need; this file is empty
on purpose so that importing ``adbench.metrics`` costs nothing (no torch, no scipy, no matplotlib)."""
