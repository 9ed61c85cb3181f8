"""Settings of all tests: four virtual devices, and JAX as strict as it can be."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def strict_jax():
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
