"""AOTInductor packages and tensors through torch's C functions, without its Python modules, which import for a second.

The functions are declared in torch/csrc/inductor/aoti_torch/c/shim.h and aoti_runtime/interface.h. Tensors are arrays
of NumPy, which has no bf16: an array of uint16 has the bits of bf16.
"""

import ctypes
import importlib.util
import math
import mmap
import os
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuron_sum.errors import ArtifactError, PlatformError

CONSTANTS = "constants.so"
"""The file in a package that calls its model with the constants in a C++ map; see compile/targets/cpu.py."""

LIBRARY = "libtorch_cpu.so"
"""The part of torch that graphs for a CPU use. libtorch.so also loads the part for CUDA, which takes as long again."""

DTYPES = {
    np.dtype(ours): theirs
    for ours, theirs in (
        ("float32", "float32"),
        ("uint16", "bfloat16"),
        ("int64", "int64"),
        ("int32", "int32"),
        ("int8", "int8"),
        ("uint8", "uint8"),
        ("bool", "bool"),
    )
}
"""The name of torch's dtype."""

CPU = (0, -1)
"""The type and the index of the device."""

HANDLE, HANDLES = c_void_p, POINTER(c_void_p)
BLOB = (c_void_p, c_int64, POINTER(c_int64), POINTER(c_int64), c_int64, c_int32, c_int32, c_int32, HANDLES)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "aoti_torch_create_tensor_from_blob": BLOB,
    "aoti_torch_create_tensor_from_blob_v2": (*BLOB, c_int32, c_void_p, c_int64),
    "aoti_torch_new_tensor_handle": (HANDLE, HANDLES),
    "aoti_torch_delete_tensor_object": (HANDLE,),
    "aoti_torch_get_data_ptr": (HANDLE, POINTER(c_void_p)),
    "aoti_torch_get_dim": (HANDLE, POINTER(c_int64)),
    "aoti_torch_get_sizes": (HANDLE, POINTER(POINTER(c_int64))),
    "aoti_torch_get_strides": (HANDLE, POINTER(POINTER(c_int64))),
    "aoti_torch_get_dtype": (HANDLE, POINTER(c_int32)),
    "aoti_torch_call_dispatcher": (c_char_p, c_char_p, POINTER(c_uint64)),
}
RUN = "AOTInductorModelContainerRun"
MODEL_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "AOTInductorModelContainerCreateWithDevice": (HANDLES, c_size_t, c_char_p, c_char_p),
    "AOTInductorModelContainerDelete": (HANDLE,),
    "AOTInductorModelContainerGetNumConstants": (HANDLE, POINTER(c_size_t)),
    "AOTInductorModelContainerGetConstantName": (HANDLE, c_size_t, POINTER(c_char_p)),
    "AOTInductorModelContainerGetConstantOriginalFQN": (HANDLE, c_size_t, POINTER(c_char_p)),
    "AOTInductorModelContainerGetConstantDtype": (HANDLE, c_size_t, POINTER(c_int32)),
    "AOTInductorModelContainerGetConstantDataSize": (HANDLE, c_size_t, POINTER(c_size_t)),
    "AOTInductorModelContainerGetNumOutputs": (HANDLE, POINTER(c_size_t)),
    RUN: (HANDLE, HANDLES, c_size_t, HANDLES, c_size_t, c_void_p, c_void_p),
}


def preload() -> None:
    """Load torch's library in a thread, while Python continues; CDLL would stop Python until it is loaded."""
    if spec := importlib.util.find_spec("torch"):
        load = ctypes.CDLL(None).dlopen
        load.argtypes, load.restype = (c_char_p, c_int), c_void_p
        threading.Thread(target=load, args=(os.fsencode(_path(spec)), os.RTLD_NOW)).start()


@cache
def library() -> ctypes.CDLL:
    """The library of torch.

    Raises:
        PlatformError: If torch is not installed, or its library cannot be loaded.
    """
    spec = importlib.util.find_spec("torch")
    try:
        return _declared(ctypes.CDLL(str(_path(spec)) if spec else LIBRARY), ARGUMENTS)
    except OSError as error:
        raise PlatformError(f"torch cannot be loaded: {error}", "run `neuron-sum doctor`") from error


def _path(spec: Any) -> Path:
    return Path(spec.submodule_search_locations[0], "lib", LIBRARY)


def _declared(opened: ctypes.CDLL, functions: Mapping[str, tuple[Any, ...]]) -> ctypes.CDLL:
    """The library with the types of its functions, which raise if they return an error."""
    for name, types in functions.items():
        function = opened[name]
        function.argtypes, function.restype = types, c_int32
        function.errcheck = _raise_error  # type: ignore[assignment]
        setattr(opened, name, function)
    return opened


def _raise_error(code: int, function: Any, _: object) -> None:
    if code:
        reason = "; the reason is on standard error" + (", often out of memory" if function.__name__ == RUN else "")
        raise RuntimeError(f"{function.__name__} failed" + reason)


@cache
def _dtypes() -> tuple[dict["np.dtype[Any]", int], dict[int, str]]:
    """The number of each dtype in torch, and NumPy's name of each number."""
    numbers = {ours: getattr(library(), f"aoti_torch_dtype_{theirs}")() for ours, theirs in DTYPES.items()}
    return numbers, {number: ours.str for ours, number in numbers.items()}


def zeros(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> NDArray[Any]:
    """An array in mapped memory, which is aligned, and takes no memory until it is used."""
    return np.ndarray(shape, dtype, mmap.mmap(-1, max(math.prod(shape), 1) * dtype.itemsize))


class Tensor:
    """A tensor of torch; np.asarray() gives an array with the same memory.

    Args:
        handle: An owned AtenTensorHandle.
        kept: Objects whose memory the tensor may use.
    """

    def __init__(self, handle: c_void_p, kept: object = None) -> None:
        self._torch, self.handle, self._kept = library(), handle, kept

    def __del__(self) -> None:
        self._torch.aoti_torch_delete_tensor_object(self.handle)

    @classmethod
    def of(cls, array: "NDArray[Any] | Tensor") -> "Tensor":
        """A tensor with the memory of an array; a tensor is returned as it is."""
        return array if isinstance(array, Tensor) else cls(_of_array(array), array)

    @classmethod
    def from_operator(cls, name: str, *arguments: "NDArray[Any] | Tensor | None") -> "Tensor":
        """The tensor that an operator of torch returns; it may use the memory of the arguments."""
        return cls(c_void_p(call(name, *arguments)), arguments)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all dimensions."""
        return self._sizes("sizes")

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """See https://numpy.org/doc/stable/reference/arrays.interface.html."""
        data, number = c_void_p(), c_int32()
        self._torch.aoti_torch_get_data_ptr(self.handle, byref(data))
        self._torch.aoti_torch_get_dtype(self.handle, byref(number))
        dtype = np.dtype(_dtypes()[1][number.value])
        strides = tuple(stride * dtype.itemsize for stride in self._sizes("strides"))
        return {
            "shape": self.shape,
            "typestr": dtype.str,
            "data": (data.value, False),
            "strides": strides,
            "version": 3,
        }

    def content(self) -> NDArray[np.uint8]:
        """The bytes of a tensor of oneDNN, as long as it exists."""
        data, size = c_void_p(), call("mkldnn::_nbytes", self)
        self._torch.aoti_torch_get_data_ptr(self.handle, byref(data))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(data.value or 0))

    def _sizes(self, which: str) -> tuple[int, ...]:
        count, values = c_int64(), POINTER(c_int64)()
        self._torch.aoti_torch_get_dim(self.handle, byref(count))
        getattr(self._torch, f"aoti_torch_get_{which}")(self.handle, byref(values))
        return tuple(values[: count.value])


def _of_array(array: NDArray[Any]) -> c_void_p:
    """A new handle for the memory of an array, which must be contiguous."""
    assert array.flags.c_contiguous
    handle, sizes = c_void_p(), (c_int64 * array.ndim)(*array.shape)
    strides = (c_int64 * array.ndim)(*(stride // array.itemsize for stride in array.strides))
    number = _dtypes()[0][array.dtype]
    library().aoti_torch_create_tensor_from_blob(
        array.ctypes.data, array.ndim, sizes, strides, 0, number, *CPU, byref(handle)
    )
    return handle


def _new_handle(value: NDArray[Any] | Tensor) -> c_void_p:
    """A handle for a function that takes it over."""
    if not isinstance(value, Tensor):
        return _of_array(value)
    handle = c_void_p()
    library().aoti_torch_new_tensor_handle(value.handle, byref(handle))
    return handle


def call(operator: str, *arguments: NDArray[Any] | Tensor | None) -> int:
    """Call an operator of torch: the number that it returns, or the handle of a tensor."""
    values = [0 if argument is None else _new_handle(argument).value or 0 for argument in arguments]
    stack = (c_uint64 * len(values))(*values)
    library().aoti_torch_call_dispatcher(operator.encode(), b"", stack)
    return int(stack[0])


def from_mkldnn(content: NDArray[np.uint8], like: Tensor) -> Tensor:
    """A tensor of oneDNN with the content of an array.

    Args:
        content: The bytes.
        like: A tensor of oneDNN with the same layout, shape and dtype.
    """
    handle, number = c_void_p(), c_int32()
    sizes = (c_int64 * len(like.shape))(*like.shape)
    layout = np.asarray(Tensor.from_operator("mkldnn::_get_mkldnn_serialized_md", like))
    library().aoti_torch_get_dtype(like.handle, byref(number))
    library().aoti_torch_create_tensor_from_blob_v2(
        *(content.ctypes.data, len(sizes), sizes, sizes, 0, number, *CPU, byref(handle)),
        *(library().aoti_torch_layout__mkldnn(), layout.ctypes.data, len(layout)),
    )
    return Tensor(handle, content)


class Graph:
    """A loaded AOTInductor package.

    Args:
        path: The .pt2 file.

    Attributes:
        constants: NumPy's dtype and the number of bytes of each weight and adapter stack, by its name, "model.…".

    Raises:
        ArtifactError: If the machine code cannot be loaded, for example that of an earlier version of neuron-sum.
    """

    def __init__(self, path: Path) -> None:
        library()
        with zipfile.ZipFile(path) as package:
            model, *others = sorted((name for name in package.namelist() if name.endswith(".so")), key=CONSTANTS.__eq__)
            if others != [CONSTANTS]:
                raise ArtifactError(f"{path} was compiled by an earlier version", "compile again with this version")
            try:
                opened, self._constants = _opened(package.read(model)), _opened(package.read(CONSTANTS))
            except OSError as error:
                raise ArtifactError(f"{path} cannot be loaded: {error}", "compile again with this version") from error
            self._model = _declared(opened, MODEL_ARGUMENTS)
        self._container, count = c_void_p(), c_size_t()
        self._model.AOTInductorModelContainerCreateWithDevice(byref(self._container), 1, b"cpu", None)
        weakref.finalize(self, self._model.AOTInductorModelContainerDelete, self._container).atexit = False
        self._model.AOTInductorModelContainerGetNumOutputs(self._container, byref(count))
        self._outputs = c_void_p * count.value
        self._model.AOTInductorModelContainerGetNumConstants(self._container, byref(count))
        self._names: dict[str, bytes] = {}
        self.constants: dict[str, tuple[str | None, int]] = {}
        for index in range(count.value):
            self._describe(index)

    def _describe(self, index: int) -> None:
        """Read the names of a constant, in the exported model and in the package, its dtype and its size."""
        original, name, dtype, size = c_char_p(), c_char_p(), c_int32(), c_size_t()
        self._model.AOTInductorModelContainerGetConstantOriginalFQN(self._container, index, byref(original))
        self._model.AOTInductorModelContainerGetConstantName(self._container, index, byref(name))
        self._model.AOTInductorModelContainerGetConstantDtype(self._container, index, byref(dtype))
        self._model.AOTInductorModelContainerGetConstantDataSize(self._container, index, byref(size))
        key = (original.value or b"").decode()
        self._names[key] = name.value or b""
        self.constants[key] = _dtypes()[1].get(dtype.value), size.value

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set all constants, which the graph reads in place."""
        self._tensors = dict(tensors)
        names = (c_char_p * len(tensors))(*(self._names[name] for name in tensors))
        handles = (c_void_p * len(tensors))(*(tensor.handle.value for tensor in tensors.values()))
        update = self._model["AOTInductorModelContainerUpdateUserManagedConstantBuffer"]
        if self._constants.load_constants(update, self._container, names, handles, c_size_t(len(tensors))):
            raise RuntimeError("the constants do not fit the graph")

    def __call__(self, *inputs: NDArray[Any] | Tensor | Sequence[NDArray[Any] | Tensor]) -> list[Tensor]:
        """The outputs of the graph. Inputs are contiguous arrays, tensors, or lists of both."""
        flat = [value for each in inputs for value in ([each] if isinstance(each, np.ndarray | Tensor) else each)]
        handles = (c_void_p * len(flat))(*(_new_handle(value).value for value in flat))
        outputs = self._outputs()
        self._model.AOTInductorModelContainerRun(self._container, handles, len(flat), outputs, len(outputs), None, None)
        return [Tensor(c_void_p(handle), flat) for handle in outputs]  # an output may be an input


def _opened(content: bytes) -> ctypes.CDLL:
    """A library that is opened from a file, which is deleted."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(content)
        file.flush()
        return ctypes.CDLL(file.name)
