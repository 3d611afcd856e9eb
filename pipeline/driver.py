"""NVIDIA's driver, called without torch."""

import ctypes
import os
import sys
import threading


def wake_driver() -> None:
    """In a thread, let the driver make the first GPU's context, which torch finds there when it is imported.

    That takes a part of a second and needs no Python. What fails here fails again when torch does it, and is told then.
    """
    # As torch sets it, and the driver reads it but once: kernels are loaded when they are first used.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    # A daemon: a program that ends meanwhile need not wait.
    threading.Thread(target=_make_context, name="driver", daemon=True).start()


def _make_context() -> None:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        # No driver: the program will run on the CPU.
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
