"""On PYTHONPATH, it lets optimum-neuron 0.4.5 find the modules that are only in the AWS package index.

The tested code is real: optimum-neuron's exporters, models and generate(), transformers, torch_xla. Python runs this
file when it starts; a vendor module is created from vendor.py on its first import, because that needs torch. Versions
come from .dist-info folders that the tests write (tests/compiler/test_optimum.py).

NEURON_STAND_IN_INSTANCE: the machine that optimum-neuron detects, such as inf2.xlarge; without it the host has
no device and can only compile.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence

ROOTS = ("torch_neuronx", "neuronx_distributed", "neuronxcc", "libneuronxla", "nkilib")
NOT_THERE = ("libneuronxla.libneuronpjrt_path",)
"""The module that torch_xla requires to use a Neuron device."""


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


class Vendor(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of vendor.py's table; any other module of the same packages exists, but nothing in it can be used."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in ROOTS and fullname not in NOT_THERE:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        import vendor

        vendor.fill(module)


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


sys.meta_path[:0] = [Vendor(), Device()]
