"""Datasets behind one interface, :class:`adbench.datasets.base.Dataset`, and the slice store they are prepared into."""
