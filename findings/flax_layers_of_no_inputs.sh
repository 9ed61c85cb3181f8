#!/bin/bash
# jax 0.11.2 with flax.linen 0.12.8: a network whose pooling leaves no pixel of a small image
# initialises. Its Dense kernel is empty, and the logits are the biases, whatever the image. With
# jax 0.11.1 the same network raises a ZeroDivisionError; now a wrong image size is not noticed
# until accuracy stays at chance. Initializers of jax.nn take shapes with zeros since then, on
# purpose (jax pull request 35096), and Flax passes them on.
#
# Seen with Python 3.13 (jax 0.11.2 needs 3.12 at least; PYTHON names another):
#   jax 0.11.1: ZeroDivisionError: division by zero
#   jax 0.11.2: kernel (0, 3), logits of two different images equal: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.13}" -m venv "$folder/venv"

cat > "$folder/network.py" <<'PY'
import flax.linen as nn
import jax
import jax.numpy as jnp


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(images)), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


images = jnp.stack([jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))])
try:
    variables = Network().init(jax.random.key(0), images)
    logits = Network().apply(variables, images)
    shape = variables["params"]["Dense_0"]["kernel"].shape
    equal = bool((logits[0] == logits[1]).all())
    said = f"kernel {shape}, logits of two different images equal: {equal}"
except ZeroDivisionError as error:
    said = f"ZeroDivisionError: {error}"
print(f"jax {jax.__version__}: {said}")
PY

for version in 0.11.1 0.11.2; do
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        "jax==$version" "jaxlib==$version" flax==0.12.8 numpy==2.4.6
    JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/network.py"
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
jax 0.11.1: ZeroDivisionError: division by zero
jax 0.11.2: kernel (0, 3), logits of two different images equal: True
SEEN
