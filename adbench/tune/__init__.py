"""Hyper-parameter search: Optuna proposes, Ray runs, asynchronous successive halving stops what does not pay.

A search chooses on validation slices and never reads a test slice: its trials open the store through
:mod:`adbench.tune.data`, which maps no other rows. Its whole state is a JSON table (:mod:`adbench.tune.table`), so that a
search killed at any moment goes on where it stopped, and nothing that was pickled is ever read back.
"""
