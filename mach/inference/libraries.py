"""CUDA's libraries: finding them for ONNX Runtime, naming a missing one, copying with them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mach.errors import MachError

__all__ = ["Readback", "cuda_runtime", "preload", "why_cuda_fails"]

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_DEVICE_TO_HOST = 2  # cudaMemcpyDeviceToHost
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


def preload() -> None:
    """Load CUDA and cuDNN from the ``nvidia-*`` wheels or the system, before any session.

    ONNX Runtime's provider finds libraries that are loaded already, wherever they lie. Versions
    before 1.21 cannot do this: there the libraries must be on the loader's path.
    """
    function = getattr(ort, "preload_dlls", None)
    if function is not None:
        function()


def why_cuda_fails() -> str:
    """Why the CUDA provider does not start, in a few words for an error message."""
    folder = Path(ort.__file__).parent / "capi"
    try:
        # The provider needs symbols of the first, which the process must offer to it.
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        # glibc says "libcudnn.so.9: cannot open shared object file: No such file or directory".
        name, _, reason = str(error).partition(": ")
        if Path(name).parent == folder:
            return f"{Path(name).name} is missing: the installed ONNX Runtime is not built for CUDA"
        return f"the library {name} is missing ({reason})" if reason else str(error)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver (libcuda.so.1) is missing"
    return "there is no GPU, or its driver is too old for this ONNX Runtime"


class Readback:
    """Copies answers from a device to memory that is reused.

    Where CUDA's runtime is loaded, the memory's pages are locked, which makes copies several times
    faster, and only the rows asked for are copied. Elsewhere ONNX Runtime copies.

    Args:
        runtime: CUDA's runtime, see :func:`cuda_runtime`; None where there is none.
    """

    def __init__(self, runtime: Any | None) -> None:
        self._copy = None
        if runtime is None:
            return
        self._copy, self._lock = runtime.cudaMemcpy2D, runtime.cudaHostRegister
        self._unlock = runtime.cudaHostUnregister
        self._copy.argtypes = [_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, ctypes.c_int]
        self._lock.argtypes, self._unlock.argtypes = [_POINTER, _SIZE, ctypes.c_uint], [_POINTER]

    def buffer(self, size: int) -> NDArray[np.uint8]:
        """Memory of ``size`` bytes for :meth:`read`, which lives until the buffer is dropped."""
        memory = np.zeros(size, np.uint8)  # locked pages must be there
        if self._copy is not None and size and self._lock(memory.ctypes.data, size, 0) == 0:
            finalize(memory, self._unlock, memory.ctypes.data)
        return memory

    def read(self, source: Any, rows: int, buffer: NDArray[np.uint8]) -> NDArray[Any]:
        """The first ``rows`` of the middle axis of an ``OrtValue`` of shape (s, n, m).

        Returns:
            An array of shape (s, rows, m), in ``buffer`` or not: use it before the next call.

        Raises:
            MachError: if the copy fails.
        """
        if self._copy is None:
            return np.asarray(source.numpy()[:, :rows])
        stacked, padded, width = source.shape()
        dtype = np.dtype(_TYPES[source.data_type()])
        row_bytes = width * dtype.itemsize
        target = buffer[: stacked * rows * row_bytes]
        status = self._copy(
            target.ctypes.data, rows * row_bytes, source.data_ptr(), padded * row_bytes,
            rows * row_bytes, stacked, _DEVICE_TO_HOST,
        )  # fmt: skip
        if status:
            raise MachError(f"copying from the GPU failed with CUDA's error {status}")
        return target.view(dtype).reshape(stacked, rows, width)


def cuda_runtime() -> Any | None:
    """CUDA's runtime if ONNX Runtime has loaded it, else None."""
    for version in (13, 12, 11):
        try:
            return ctypes.CDLL(f"libcudart.so.{version}", os.RTLD_NOLOAD | os.RTLD_LAZY)
        except OSError:
            continue
    return None
