"""Runs Python code with transformers 5 and the current PEFT, in an environment that `make test` puts over .venv."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from micro_models import ROOT

ENVIRONMENT = ROOT / ".venv-transformers5"
PYTHON = Path(os.environ.get("NEURON_SUM_TRANSFORMERS5_PYTHON", ENVIRONMENT / "bin" / "python"))

needs_transformers5 = pytest.mark.skipif(
    "NEURON_SUM_TRANSFORMERS5_PYTHON" not in os.environ and not (ENVIRONMENT / ".installed").is_file(),
    reason="no transformers 5 (run `make .venv-transformers5/.installed`; it requires Python 3.11)",
)


def run_transformers5(code: str, *arguments: object, timeout: float = 300) -> Any:
    """Runs code with transformers 5, and returns the JSON value in the last line that it prints.

    Args:
        code: The Python code; sys.argv[1:] are its arguments.
        *arguments: The arguments, as text.
        timeout: The time limit in seconds.
    """
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
