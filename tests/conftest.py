"""Settings of all tests: four virtual devices, a strict JAX, programs compiled once a session."""

import gc
import os

import runs

# Devices wait for each other where they reduce, on a busy machine longer than XLA has patience.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4"
    f" --xla_cpu_collective_call_terminate_timeout_seconds=3600 {runs.COMPILED_FAST}"
)
import hypothesis
import jax
import pytest

# The same examples each time; `pytest --hypothesis-profile=default` draws others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

# Traces are many objects that live long: looking through them for cycles took a tenth of the time.
gc.set_threshold(200_000, 20, 100)


MOST_BYTES = 500_000_000  # of compiled programs that are kept


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Keeps compiled programs in .pytest_cache: tests share many, the next session finds all."""
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    directory = config.cache.mkdir("programs")
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    programs = [] if hasattr(config, "workerinput") else list(directory.iterdir())
    if sum(path.stat().st_size for path in programs) > MOST_BYTES:
        for path in programs:
            path.unlink()


@pytest.fixture(scope="session", autouse=True)
def strict_jax():
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
