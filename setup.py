"""What belongs in the wheel; metadata and dependencies are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # The wheel has a copy of configs/, so that its names are found without a checkout.
    packages=[*find_packages(include=["harp_jax", "harp_jax.*"]), "harp_jax.configs"],
    package_dir={"harp_jax.configs": "configs"},
    package_data={"harp_jax": ["py.typed", "native/*.cc", "report/templates/*"]},
    include_package_data=False,
)
