"""On PYTHONPATH, it changes the machine that optimum-neuron 0.4.5 detects; Python runs this file when it starts.

NEURON_STAND_IN_INSTANCE: the machine that optimum-neuron detects, such as inf2.xlarge; without it the host has
no device and can only compile.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence


def _no_firmware(module: types.ModuleType) -> None:
    instance = os.environ.get("NEURON_STAND_IN_INSTANCE")
    vars(module).update(
        get_neuron_major=lambda: -1 if instance is None else 245,
        get_instance_name=lambda: instance,
        get_neuron_devices_count=lambda: 0 if instance is None else 1,
    )


def _no_counters(module: types.ModuleType) -> None:
    vars(module).update(get_neuron_device_memory=lambda: "")


PROBES = {
    "optimum.neuron.utils.system": _no_firmware,
    "optimum.neuron.utils.neuron_device_memory": _no_counters,
}
"""The modules in which optimum-neuron reads /proc, /dev and /sys."""


class Device(importlib.abc.MetaPathFinder):
    """Changes a module of PROBES before anything imports a name from it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in PROBES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            run(module)
            PROBES[fullname](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Device())
