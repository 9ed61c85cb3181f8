"""Images, attack and optimiser of a measured training step, the same for every side.

This module imports only NumPy, so that the process of one side loads nothing of the other.
"""

import os

import numpy as np

IMAGE_SHAPES = {
    "cnn": (28, 28, 1),
    "resnet18": (32, 32, 3),
    "vgg16_bn": (32, 32, 3),
    "wrn_28_4": (32, 32, 3),
}
# Of the networks that are measured by default, on CPUs.
BATCHES = {"cnn": 128, "resnet18": 64, "vgg16_bn": 64}
CLASSES = 10

EPSILON, STEP_SIZE, ATTACK_STEPS = 0.031, 0.0078, 10  # PGD, on the [0, 1] scale
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4

# Pruning: initial rate of every layer, target rate of the network, smallest rate, and weight of the
# compression loss.
START_RATE, TARGET, MINIMUM, GAMMA = 0.1, 0.01, 0.001, 0.01
PRUNE_CLIP_NORM = 1.0  # harp_jax's default; PyTorch does not clip, like the authors' code


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def random_batch(network: str, size: int) -> dict[str, np.ndarray]:
    """Returns a batch of noise, the same on every call.

    Args:
        network: A key of `IMAGE_SHAPES`.
        size: Number of images.

    Returns:
        'images' (uint8, NHWC), 'labels' and 'index' (int32).
    """
    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 256, (size, *IMAGE_SHAPES[network]), dtype=np.uint8),
        "labels": random.integers(0, CLASSES, size, dtype=np.int32),
        "index": np.arange(size, dtype=np.int32),
    }
