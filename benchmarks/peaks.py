"""Published peaks of devices for dense products, by the name that JAX gives a device.

All are per device, without sparsity, from the vendors' datasheets (those of NVIDIA's H200 and H100
are of the SXM boards, which carry no 'PCIe' in their names). TPUs have no TF32: their float32
products are one or more passes of bfloat16, so only the peak of bfloat16 is given.
"""

from typing import NamedTuple


class Peak(NamedTuple):
    """Peaks of one device.

    Attributes:
        float32: TFLOP/s outside of tensor cores; None where the vendor gives none.
        tf32: TFLOP/s of float32 products that are rounded to TF32; None where there is none.
        bfloat16: TFLOP/s of bfloat16 products.
        source: Where the numbers stand.
    """

    float32: float | None
    tf32: float | None
    bfloat16: float
    source: str


# More telling names first: the first that the device's name contains counts.
PEAKS: dict[str, Peak] = {
    "H200 NVL": Peak(60.0, 417.5, 835.5, "NVIDIA H200 datasheet, NVL"),
    "H200": Peak(67.0, 494.7, 989.4, "NVIDIA H200 datasheet, SXM"),
    "H100 PCIe": Peak(51.0, 378.0, 756.0, "NVIDIA H100 datasheet, PCIe"),
    "H100 NVL": Peak(60.0, 417.5, 835.5, "NVIDIA H100 datasheet, NVL"),
    "H100": Peak(67.0, 494.7, 989.4, "NVIDIA H100 datasheet, SXM"),
    "A100": Peak(19.5, 156.0, 312.0, "NVIDIA A100 datasheet"),
    "L40S": Peak(91.6, 183.0, 362.0, "NVIDIA L40S datasheet"),
    "L40": Peak(90.5, 90.5, 181.05, "NVIDIA L40 datasheet"),
    "L4": Peak(30.3, 60.0, 121.0, "NVIDIA L4 datasheet"),
    "TPU v6 lite": Peak(None, None, 918.0, "Google Cloud TPU v6e documentation"),
    "TPU v5 lite": Peak(None, None, 197.0, "Google Cloud TPU v5e documentation"),
    "TPU v5": Peak(None, None, 459.0, "Google Cloud TPU v5p documentation"),
    "TPU v4": Peak(None, None, 275.0, "Google Cloud TPU v4 documentation"),
}


def peak_of(device: str) -> Peak | None:
    """Returns the peaks of a device by JAX' name for its kind; None for one that is not listed."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def at_precision(device: str, precision: str) -> float | None:
    """Returns the peak of a device for products of a precision.

    Args:
        device: JAX' name of the device's kind.
        precision: 'float32', 'tf32' (what GPUs do with float32 by default) or 'bfloat16'.

    Returns:
        TFLOP/s; None if it is not known. Without TF32 the default is float32 on GPUs.
    """
    peak = peak_of(device)
    if peak is None:
        return None
    if precision == "tf32" and "TPU" in device:
        return peak.bfloat16
    by_precision = {
        "float32": peak.float32,
        "tf32": peak.tf32 or peak.float32,
        "bfloat16": peak.bfloat16,
    }
    return by_precision[precision]
