"""Hyper-parameter search with Ray Tune: Optuna proposes, asynchronous successive halving stops trials that fall behind.

A search chooses on validation slices and never reads a test slice: its trials open the store through
:mod:`adbench.tune.task`, which maps no other rows. :mod:`adbench.tune.search` is the way of a search from its definition to
its best configuration, :mod:`adbench.tune.driver` what Ray does.
"""
