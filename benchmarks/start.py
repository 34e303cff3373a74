"""`tfcausal --help` against `python -c "import tensorflow"`.

.venv/bin/python benchmarks/start.py
"""

import subprocess
import sys
from pathlib import Path

from side_by_side import measure, report


def command(*words: str):
    return lambda: subprocess.run(words, check=True, capture_output=True)


def main() -> None:
    help_command = command(str(Path(sys.executable).parent / "tfcausal"), "--help")
    import_command = command(sys.executable, "-c", "import tensorflow")
    seconds = measure({"import tensorflow": import_command, "tfcausal --help": help_command})
    report("Start-up, whole processes", seconds, "import tensorflow", {"tfcausal --help": 0.20}, "start")


if __name__ == "__main__":
    main()
