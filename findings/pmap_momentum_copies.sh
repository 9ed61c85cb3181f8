#!/bin/bash
# jax 0.10.2 on CPUs: an update with momentum under jax.pmap copies what it was given to overwrite.
# Weights and momentum are donated, and jax.jit writes both in place. Under jax.pmap each result gets
# its leading axis back by a bitcast. XLA then fuses the new momentum into both results, so that each
# reads the old weights and the old momentum. Neither can be overwritten, and the program starts with
# a copy of both: two times the size of the weights, on every device, in every step.
#
# Seen (temporary memory of the compiled update, in sizes of the weights):
#   jax 0.10.2 jit: 0 pmap: 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import sys

import jax
import jax.numpy as jnp


def update(weights, momentum, gradient):
    momentum = 0.9 * momentum + gradient + 1e-4 * weights
    return weights - 0.1 * momentum, momentum


weights = jnp.ones((512, 512))


def copies(mapped, array):
    analysis = mapped(update, donate_argnums=(0, 1)).lower(array, array, array).compile()
    return round(analysis.memory_analysis().temp_size_in_bytes / weights.nbytes, 1)


found = copies(jax.jit, weights), copies(jax.pmap, weights[None])
print(f"jax {jax.__version__} jit: {found[0]:g} pmap: {found[1]:g}")
sys.exit(found != (0, 2))
PY
