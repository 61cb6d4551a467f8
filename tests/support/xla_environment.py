"""The Python that has torch_xla, the environment of its processes, and the methods that are trained in it."""

import os
from pathlib import Path

from micro_models import ROOT

XLA_PYTHON = Path(os.environ.get("NEURON_SUM_XLA_PYTHON", ROOT / ".venv-xla" / "bin" / "python"))
XLA_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PJRT_DEVICE": "CPU",
    "OMP_NUM_THREADS": "1",
    # Takes a third of the time to compile; the graphs are the same.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}

T5_METHODS = {"full": [], "lora": ["method=lora"], "prompt_tuning": ["method=prompt_tuning"]}
LLAMA_METHODS = {
    "full": [],
    "lora": ["method=lora", "method.lora_dropout=0.0"],
}
QWEN3_METHODS = LLAMA_METHODS
