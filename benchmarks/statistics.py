"""Whether intervals cover and ranks hold their level: ``python benchmarks/statistics.py [--studies 1000] [--json]``.

The simulation is in ``studies.py``. This file has the name of a standard module, which libraries of the other scripts in
this folder import: to them it gives that one.
"""

import sys

if __name__ == "__main__":
    from studies import main

    sys.exit(main())
else:
    import importlib.util
    import sysconfig
    from pathlib import Path

    spec = importlib.util.spec_from_file_location("statistics", Path(sysconfig.get_path("stdlib")) / "statistics.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["statistics"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["statistics"])
