"""The packages of the wheel: those of harp_jax, and configs/ as one more; see setup.cfg."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["harp_jax", "harp_jax.*"]), "harp_jax.configs"])
