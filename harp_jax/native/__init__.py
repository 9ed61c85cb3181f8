"""The C++ kernels of this package: compiled once a machine, and made known to JAX.

`interrupt`, `ops`, `peers`, `settings`, `types` and the rooms above them may import this one.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from typing import Any

import jax

_LOGGER = logging.getLogger(__name__)

# Layouts of images [N, H, W, C] in memory: the axes from the slowest to the fastest.
BATCH_LAST, WIDTH_LAST = (1, 2, 3, 0), (0, 3, 1, 2)

_SOURCES = [
    pathlib.Path(__file__).with_name(name) for name in ("kernels.cc", "network.cc", "lanes.h")
]
_OPTIONS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-w")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_TARGETS = {
    "harp_sparse_gather": "HarpSparseGather",
    "harp_sparse_gather_planes": "HarpSparseGatherPlanes",
    "harp_sparse_dot": "HarpSparseDot",
    "harp_pool": "HarpPool",
    "harp_pool_gradient": "HarpPoolGradient",
    "harp_same": "HarpSame",
}


def available() -> bool:
    """Returns whether the kernels can be used on CPUs; compiles them at the first call.

    That takes some seconds and needs a C++ compiler: that of the variable CXX, `g++` or `clang++`.
    The library is kept in the user's cache folder (XDG_CACHE_HOME, by default ~/.cache), one for
    each version of the source, compiler and processor; a damaged one is compiled again. Without a
    compiler or that folder, or with HARP_JAX_NATIVE=off, the answer is no, and the log says why.
    """
    return _loaded() is not None


def network_function() -> Any:
    """Returns the function that runs a whole network, `HarpRunNetwork` of network.cc.

    It takes (address of the network, of the images, number of images, address of the logits).

    Raises:
        NotImplementedError: If `available()` is false.
    """
    library = _loaded()
    if library is None:
        raise NotImplementedError("native networks need a C++ compiler; see the log")
    run = library.HarpRunNetwork
    run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    run.restype = None
    return run


@functools.cache
def processor_maker() -> str:
    """Returns the name by which the processor's maker is known, such as 'AuthenticAMD', or ''.

    Linux tells it, for x86 processors.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


@functools.cache
def return_freed_memory_after_compiling() -> None:
    """Makes this process return memory to the system after each compilation of over a second.

    A compilation frees hundreds of MiB in small pieces, which glibc keeps. The large arrays of the
    program that runs next cannot use them. Does nothing with other C libraries, or if called again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None

    def listener(event: str, duration_secs: float, **_: object) -> None:
        if trim is not None and event == _COMPILED and duration_secs > 1:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listener)


@functools.cache
def _loaded() -> ctypes.CDLL | None:
    """Loads the library and makes its kernels known to JAX; None if that cannot be."""
    if os.environ.get("HARP_JAX_NATIVE", "auto") == "off":
        _LOGGER.info("native kernels: switched off by HARP_JAX_NATIVE")
        return None
    try:
        library = ctypes.cdll.LoadLibrary(os.fspath(_library()))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        _LOGGER.info("native kernels: not available (%s)", error)
        return None
    for target, symbol in _TARGETS.items():
        capsule = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return library


def _library() -> pathlib.Path:
    """Returns the path of the library, which it compiles if needed."""
    found = shutil.which("g++") or shutil.which("clang++")
    compiler = shlex.split(os.environ.get("CXX", "")) or ([found] if found else [])
    if not compiler:
        raise OSError("no C++ compiler")
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    sources = [source.read_bytes() for source in _SOURCES]
    made_of = (sources, compiler[1:], version, _processor(), jax.__version__, " ".join(_OPTIONS))
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    path = cache / "harp_jax" / f"kernels-{digest}.so"
    if not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = pathlib.Path(folder) / path.name
            units = [os.fspath(source) for source in _SOURCES if source.suffix == ".cc"]
            options = [*_OPTIONS, "-I", jax.ffi.include_dir(), *units]
            subprocess.run([*compiler, *options, "-o", made], capture_output=True, check=True)
            seal = _seal(made)
            seal.write_text(_digest(made))
            made.replace(path)  # as a whole: another process may compile it, too
            seal.replace(_seal(path))
    return path


def _is_whole(library: pathlib.Path) -> bool:
    """Returns whether a library is as it was compiled; loading a part of one ends the process."""
    try:
        return _seal(library).read_text() == _digest(library)
    except (OSError, ValueError):
        return False


def _seal(library: pathlib.Path) -> pathlib.Path:
    return library.with_suffix(".sha256")


def _digest(library: pathlib.Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _processor() -> str:
    """Returns what tells processors of different instruction sets apart."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
