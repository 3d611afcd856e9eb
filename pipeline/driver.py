"""NVIDIA's driver, woken up beside the import of torch: each takes its time, and little of the driver's is Python."""

import ctypes
import sys
import threading

LIBRARIES = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}


def wake() -> threading.Thread | None:
    """Begin what the first question about a GPU would wait for; without NVIDIA's driver nothing happens.

    Returns:
        The thread that does it, which nobody has to wait for.
    """
    library = LIBRARIES.get(sys.platform)
    if library is None:
        return None
    thread = threading.Thread(target=_wake, args=(library,), name="driver", daemon=True)
    thread.start()
    return thread


def _wake(library: str) -> None:
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return
    # What it returns, torch will find out and say.
    driver.cuInit(0)
