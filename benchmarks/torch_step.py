"""The training step in PyTorch."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks import workload
from benchmarks.torch_networks import NETWORKS, add_masks, compression_loss, load

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def use_all_cores() -> None:
    """Makes PyTorch use all cores of the process, as XLA does, not only physical ones."""
    torch.set_num_threads(workload.cores())


def large_products(size: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Returns large products to measure PyTorch's peak: (operations, function) by name.

    Args:
        size: Number of rows and columns of the matrices.
    """
    matrix = torch.ones(size, size)
    batch, width, channels = 32, 16, 256
    images = torch.ones(batch, channels, width, width)
    kernel = torch.ones(channels, channels, 3, 3)
    operations = 2 * batch * width**2 * 9 * channels**2
    return {
        "torch matmul": (2 * size**3, lambda: matrix @ matrix),
        "torch conv": (
            operations,
            lambda: torch.nn.functional.conv2d(images, kernel, padding=1),
        ),
    }


class TorchStep:
    """The training step of one mode, with its network.

    Args:
        network: Name of the network.
        batch: A batch of `workload.random_batch`.
        attack_steps: Number of PGD steps.
        prune: Whether to train scores and rates instead of weights; masks are sorted in every
            forward pass.
        memory_format: A key of `FORMATS`.
        compiled: Whether to run the network through `torch.compile`.
        arrays: Initial arrays from a harp_jax network; None keeps PyTorch's initial values.
        device: Device of PyTorch, 'cpu' or 'cuda'.
        dtype: 'float32', or 'bfloat16' for `torch.autocast`.
    """

    def __init__(
        self,
        network: str,
        batch: dict[str, np.ndarray],
        attack_steps: int,
        *,
        prune: bool,
        memory_format: str,
        compiled: bool = False,
        arrays: list[dict[str, np.ndarray]] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        self.device = torch.device(device)
        self.half = dtype == "bfloat16"
        self.network = NETWORKS[network]()
        if arrays is not None:
            load(self.network, arrays)
        self.masks = add_masks(self.network) if prune else []
        layout = FORMATS[memory_format]
        self.network.to(self.device, memory_format=layout)
        self.compiled: Any = torch.compile(self.network) if compiled else self.network
        images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=layout).to(self.device)
        self.labels = torch.from_numpy(batch["labels"]).long().to(self.device)
        self.attack_steps = attack_steps
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            self.trained,
            workload.LEARNING_RATE,
            momentum=workload.MOMENTUM,
            weight_decay=workload.WEIGHT_DECAY,
            fused=True,
        )

    def logits(self) -> np.ndarray:
        """Computes logits of the clean batch in inference mode."""
        self.network.eval()
        with torch.no_grad():
            return self.network(self.images / 255.0).cpu().numpy()

    def forward(self, images: Any) -> Any:
        """Computes float32 logits of images in [0, 1], with features of the type asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return self.compiled(images).float()

    def attack(self, images: Any) -> Any:
        """Runs PGD from a random start in inference mode; computes gradients of the images only."""
        self.network.eval()
        for parameter in self.trained:
            parameter.requires_grad_(False)
        # The ball and the image range are both boxes, so one clamp projects onto both.
        lowest = (images - workload.EPSILON).clamp(0.0, 1.0)
        highest = (images + workload.EPSILON).clamp(0.0, 1.0)
        noise = torch.empty_like(images).uniform_(-workload.EPSILON, workload.EPSILON)
        adversarial = images + noise
        for _ in range(self.attack_steps):
            adversarial.requires_grad_(True)
            logits = self.forward(adversarial)
            loss = torch.nn.functional.cross_entropy(logits, self.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
            moved = adversarial.detach() + workload.STEP_SIZE * gradient.sign()
            adversarial = moved.clamp(lowest, highest)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        return adversarial

    def step(self) -> None:
        """Runs attack, forward and backward pass in training mode, and update."""
        adversarial = self.attack(self.images / 255.0)
        self.network.train()
        loss = torch.nn.functional.cross_entropy(self.forward(adversarial), self.labels)
        if self.masks:
            loss = loss + workload.GAMMA * compression_loss(self.masks)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def seconds(self) -> float:
        """Runs one step and returns its wall time, in seconds."""
        return self.run(1)

    def run(self, steps: int) -> float:
        """Runs steps one after the other; returns seconds a step."""
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps
