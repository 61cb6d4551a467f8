"""The stand-ins of a receipt's steps, and the example of a receipt in the documentation.

    PYTHONPATH=tests/support:. python tests/support/receipt_stand_ins.py FOLDER

makes a receipt of micro size in FOLDER, or continues one, and writes docs/receipt-example.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from micro_models import ROOT
from neuron_packages import ENVIRONMENT, make_packages
from xla_environment import XLA_PYTHON

from compile.receipt.runner import PAGE, STAND_INS
from neuron_sum.platform.matrix import PLATFORMS

FILE = "stand-ins.json"
INSTANCE = "ml.inf2.xlarge"
EXAMPLE = ROOT / "docs" / "receipt-example.md"
COMMAND = "PYTHONPATH=tests/support:. python tests/support/receipt_stand_ins.py FOLDER"
NOTE = f"""
An example of the page that `neuron-sum receipt` writes ([A receipt](compile.md#a-receipt)), with stand-ins and
`--size micro`: `{COMMAND}`.
Its times are those of a CPU.
"""


def write_stand_ins(folder: Path) -> dict[str, str]:
    """Writes the stand-ins to a folder; returns the environment of `neuron-sum receipt`."""
    folder.mkdir(parents=True, exist_ok=True)
    packages, versions = folder / "packages", folder / "versions"
    make_packages(packages)
    for name, version in PLATFORMS[0].vendor_pins.items():
        info = versions / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    optimum = os.pathsep.join(map(str, (ROOT / "tests" / "stand_ins" / "optimum", versions, packages, ROOT)))
    device = {"SM_CURRENT_INSTANCE_TYPE": INSTANCE, "OMP_NUM_THREADS": "1"}
    stands = {
        "t5": {"env": {**device, **ENVIRONMENT, "PYTHONPATH": f"{packages}:{ROOT}"}},
        "optimum": {
            "python": str(XLA_PYTHON),
            "env": {
                **device,
                **ENVIRONMENT,
                "PYTHONPATH": optimum,
                "NEURON_STAND_IN_CALLS": str(folder / "calls.jsonl"),
                "NEURON_STAND_IN_INSTANCE": INSTANCE.removeprefix("ml."),
            },
        },
        "training": {
            "env": {**device, **ENVIRONMENT, "PYTHONPATH": f"{packages}:{ROOT}"},
            "train": [str(XLA_PYTHON), str(ROOT / "tests" / "stand_ins" / "xla" / "run.py"), "train"],
        },
    }
    path = folder / FILE
    path.write_text(json.dumps(stands))
    return {STAND_INS: str(path)}


def main(folder: Path) -> None:
    """Makes the example."""
    stand_ins = {STAND_INS: str(folder / FILE)} if (folder / FILE).exists() else write_stand_ins(folder)
    environment = {**os.environ, **stand_ins, "NEURON_SUM_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "neuron_sum", "receipt", "--size", "micro", "--output", str(folder / "receipt")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    title, _, rest = (folder / "receipt" / PAGE).read_text().partition("\n")
    EXAMPLE.write_text(f"{title} (example)\n{NOTE}{rest}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
