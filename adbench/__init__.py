"""adbench: a benchmark harness for unsupervised anomaly detection on brain MRI."""

__version__ = "0.1.0"
