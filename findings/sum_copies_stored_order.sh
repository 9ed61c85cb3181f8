#!/bin/bash
# jax 0.10.2 on CPUs: the sum of an array that is stored in another order than that of its axes
# first copies the array. XLA gives the sum to YNN, whose operands it stores row by row. A sum is
# independent of the order; with the same axes written in the stored order there is no copy. So a
# transposition that costs nothing saves one pass over the array, and more than that in time.
#
# Seen on two cores of an AMD EPYC (times vary, the copy does not):
SEEN
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import re
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

ORDER = (1, 2, 3, 0)  # height, width, channels, batch: from the slowest to the fastest axis
device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
x = jax.random.normal(jax.random.key(0), (128, 32, 32, 64))
stored = jax.device_put(x, Format(Layout(ORDER), device))


def plain(x):
    return (x * x).sum((0, 1, 2))


def turned(x):
    return (lambda y: (y * y).sum((0, 1, 3)))(jax.lax.optimization_barrier(x.transpose(ORDER)))


copies = {}
for name, function in (("as stored", turned), ("in the order of the axes", plain)):
    program = jax.jit(function).lower(stored).compile()
    text = program.as_text()
    found = re.findall(r"= f32\[128,32,32,64\]\{3,2,1,0\} (?:fusion|copy)\(", text)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(program(stored))
        times.append(time.perf_counter() - started)
    copies[name] = len(found)
    print(f"{name}: {len(found)} copies row by row, {1e3 * min(times):.1f} ms")
sys.exit(copies != {"as stored": 0, "in the order of the axes": 1})
PY
