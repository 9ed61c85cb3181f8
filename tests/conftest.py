"""Settings of all tests: four virtual devices, a strict JAX, programs compiled once a session."""

import gc
import os

import runs

# Devices wait for each other where they reduce, on a busy machine longer than XLA has patience.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4"
    f" --xla_cpu_collective_call_terminate_timeout_seconds=3600 {runs.COMPILED_FAST}"
)
import jax
import pytest

# Traces are many objects that live long: looking through them for cycles took a tenth of the time.
gc.set_threshold(200_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Keeps the programs of a session: tests share many of them, the layers of `tiny` above all."""
    directory = runs.shared(tmp_path_factory.getbasetemp()) / "programs"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session", autouse=True)
def strict_jax():
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
