"""The compiler's entry points: a compiled graph is its HLO."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def neuron_xla_compile(module_bytes: bytes, compiler_flags: str, *, work_dir: Path, **options: Any) -> bytes:
    """Records the request; fails if the test requests it, with its log at the place of neuronx-cc's."""
    record(call="compile", compiler_args=compiler_flags, bytes=len(module_bytes), work_dir=work_dir, **options)
    if failure := os.environ.get("NEURON_STAND_IN_FAILS", ""):
        if failure == "this process is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        (work_dir / "log-neuron-cc.txt").write_text(failure)
        subprocess.run([sys.executable, "-c", f"import sys; print({failure!r}, file=sys.stderr)"], check=True)
        status = -9 if "F137" in failure else 70  # a traceback quotes the next line
        raise RuntimeError(f"neuronx-cc failed with {status}")
    return module_bytes


def neuron_xla_wlo_compile(module_bytes: bytes, compiler_flags: str, **options: Any) -> tuple[bytes, None]:
    """Finds no better layout of the weights; records which of them it may change."""
    from torch_neuronx.lowering import HLO

    marked = HLO["HloModuleProto"].FromString(module_bytes).frontend_attributes.map["transposable_weight_idx"]
    return neuron_xla_compile(module_bytes, compiler_flags, layout=marked, **options), None


def record(**call: Any) -> None:
    """Writes one line of JSON for each call, from any process."""
    if path := os.environ.get("NEURON_STAND_IN_CALLS"):
        with Path(path).open("a") as log:
            log.write(json.dumps({**call, "pid": os.getpid()}, default=str) + "\n")
