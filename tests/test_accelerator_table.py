"""The table of `benchmarks.accelerator`, the published peaks in it, and the hours that follow."""

import pytest

from benchmarks import accelerator_table, peaks
from benchmarks.modes import MODES
from experiments import hours


def step(network="resnet18", batch=128, mode="tf32", kind="plain", tflops=98.94):
    return {
        "network": network,
        "batch": batch,
        "mode": mode,
        "kind": kind,
        "compile_seconds": 20.0,
        "memory_mib": 900.0,
        "seconds": 0.03,
        "spread": 1.01,
        "images_per_second": 4000.0,
        "tflops": tflops,
    }


def entry(**results):
    times = {"limit": 60.0, "seconds": 12.0}
    return {"state": "complete", "small": False, **times, "results": results}


@pytest.fixture
def record():
    """A file of a machine with an H200, as far as the table reads it."""
    device = {"kind": "NVIDIA H200", "devices": 1, "python": "3.12.3", "versions": {"jax": "0.11"}}
    larger = step(batch=512, tflops=150.0)
    memory = {"peak_in_use_mib": 5.0, "allocator_limit_mib": 9.0}
    attack = {"mode": "tf32", "images": 256, "after": {}, "left": ["natural", "apgd-ce"]}
    begun = {"after": {"natural": 0.9}, "left": ["apgd-ce"], "seconds": 9.0}
    trained = {"epochs": 30, "seconds": 540.0, "natural": 0.8, "pgd10": 0.5, "images": 1000}
    theirs = {"images_per_second": 2000.0}
    faster = {"images_per_second": 3200.0}
    return {
        "missing": ["torchattacks"],
        "parts": {
            "device": entry(device=device, **{"product tf32": {"size": 8192, "tflops": 400.0}}),
            "golden": entry(logits={"default": 1e-3, "highest": 2e-6}),
            "steps resnet18": entry(a=step(), b=larger, memory=memory),
            "torch_steps": entry(
                **{"resnet18 tf32 128": theirs, "resnet18 tf32 128 compiled": faster}
            ),
            "autoattack": entry(a={**attack, **begun, "seconds_compiled": 2.0}, b=attack),
            "torch_autoattack": {"state": "no torchattacks", "small": False, "results": {}},
            "steps wrn_28_4": {**entry(a={"failed": "no memory"}), "error": ["a", "Killed"]},
            "bits": entry(default={"steps": 3, "same_bits": False}),
            "cifar vgg16_bn": entry(finetune=trained),
        },
    }


@pytest.mark.parametrize(
    ("device", "mode", "expected"),
    [
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA A100-SXM4-40GB", "float32", 19.5),
        ("NVIDIA L40", "bfloat16", 181.05),
        ("TPU v4", "tf32", 275.0),
        ("TPU v5 lite", "bfloat16", 197.0),
        ("TPU v4", "float32", None),
        ("cpu", "float32", None),
    ],
)
def test_published_peaks(device, mode, expected):
    assert mode in MODES
    assert peaks.at_precision(device, mode) == expected


def test_the_table_has_shares_of_the_peak_and_the_ratio_to_pytorch(record):
    table = accelerator_table.table(record).splitlines()
    cells = "resnet18, 128, tf32, plain | 4000 | 98.9 | 20% | 900 | 20 | 3200 | 1.25"
    assert f"| {cells} |" in table
    assert "| tf32 | 400 | 494.7 | 81% |" in table
    assert "| logits | 1.0e-03 | 2.0e-06 |" in table
    assert "| torch_autoattack | no torchattacks | 0 of 0 s |" in table
    assert "| harp_jax, tf32, 256 | 2.0 | natural 90.0%, not reached: apgd-ce |" in table
    assert "| harp_jax, tf32, 256 |  | not reached: natural, apgd-ce |" in table
    assert "| steps resnet18 | 5 | 9 |" in table
    assert "| vgg16_bn, finetune | 30 | 18.0 | 80.00% | 50.00% |  |" in table
    assert "| default | 3 | no |" in table
    assert "| steps wrn_28_4 | complete; Killed; a: no memory | 12 of 60 s |" in table


def test_the_table_marks_dry_runs(record):
    assert "Dry runs" not in accelerator_table.table(record)
    record["parts"]["bits"]["small"] = True
    table = accelerator_table.table(record)
    assert "| bits | dry run; complete | 12 of 60 s |" in table
    assert "| golden | complete | 12 of 60 s |" in table
    assert "Dry runs have tiny sizes" in table


@pytest.mark.slow
def test_hours_use_what_was_measured(record):
    assumed, measured = (hours.table(each, 0.3, "pgd") for each in (None, record))
    assert "measured" not in assumed
    row = next(line for line in measured.splitlines() if line.startswith("| CIFAR-10, resnet18"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2] == "20%, measured"
    on_an_h100, on_the_device = (float(cells[at].removesuffix(" h")) for at in (4, -1))
    assert on_an_h100 == pytest.approx(on_the_device, abs=0.11)
    vgg = next(line for line in measured.splitlines() if line.startswith("| CIFAR-10, vgg16"))
    assert "| 30% |" in vgg
    for part in record["parts"].values():
        part["small"] = True
    assert hours.table(record, 0.3, "pgd") == assumed
