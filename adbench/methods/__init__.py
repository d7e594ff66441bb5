"""Anomaly-detection methods behind one interface, :class:`adbench.methods.base.Method`."""
