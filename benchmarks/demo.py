"""Time and peak memory of `tfcausal run configs/quickstart.yaml` as a process of its own, set-up not counted.

.venv/bin/python benchmarks/demo.py
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import RESULTS

MINUTES, GIBIBYTES = 12, 4


def main() -> None:
    executable = Path(sys.executable).parent / "tfcausal"
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run([executable, "run", "configs/quickstart.yaml", "--runs", folder], check=True)
        minutes = (time.perf_counter() - begin) / 60
    gibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{minutes:.1f} minutes (at most {MINUTES}), {gibibytes:.2f} GiB at the peak (at most {GIBIBYTES})")
    RESULTS.mkdir(exist_ok=True)
    result = {"minutes": minutes, "gibibytes": gibibytes, "limits": {"minutes": MINUTES, "gibibytes": GIBIBYTES}}
    (RESULTS / "demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
