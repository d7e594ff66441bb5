"""How planned cells are run. An executor turns plans into outcomes, lazily; it knows nothing of methods.

``serial`` runs them in this process. :mod:`adbench.executors.ray` runs them on all cores and GPUs of a machine or a cluster,
and is imported only when it is asked for.
"""

from adbench.executors.serial import Options, Outcome, serial

__all__ = ["Options", "Outcome", "serial"]
