"""Checks of a dataset before and after it is prepared."""
