"""What machine this is, and its measured peaks: matrix products, copies, launches."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from ablation.doctor.clock import Step, typical
from ablation.doctor.lines import Figure, Line, measured
from ablation.doctor.setting import Kind, Setting, arithmetic
from ablation.runs.provenance import git_state, versions
from ablation.sweeps.pool import cores

PEAK = "peak {}, TFLOP/s"
"""Name of the fact that a share of the peak is taken of, by precision."""
CPUINFO = Path("/proc/cpuinfo")
LAUNCHES = 1000


def facts(device: torch.device) -> dict[str, Figure]:
    """Versions, driver, device, cores."""
    known, commit = versions(), git_state()
    found: dict[str, Figure] = {
        "ablation": known["ablation"] + (f", commit {commit['commit'][:9]}" if commit else ""),
        "python": f"{known['python']}, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, torchvision {known['torchvision']}",
        "pyautoattack": known["pyautoattack"],
        "cpu": f"{processor()}, {cores()} cores; threads of torch: {torch.get_num_threads()}",
    }
    return found | (of_gpu(device) if device.type == "cuda" else {})


def of_gpu(device: torch.device) -> dict[str, Figure]:
    """CUDA, its driver and the GPU."""
    properties = torch.cuda.get_device_properties(device)
    major, minor = properties.major, properties.minor
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "cuda": f"{torch.version.cuda}, cuDNN {cudnn}, driver {driver()}",
        "gpu": f"{properties.name}, compute {major}.{minor}, "
        f"{properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB; {torch.cuda.device_count()} visible",
        "cublas workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def driver() -> str:
    """Version of the driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0]


def processor() -> str:
    """Model of the CPU."""
    lines = CPUINFO.read_text("utf-8").splitlines() if CPUINFO.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def examine(setting: Setting) -> Iterator[Line]:
    """Matrix products of each precision, copies, launches."""
    kinds: list[Kind] = ["fp32", "tf32", "bf16"] if setting.cuda else ["fp32", "bf16"]

    def line(name: str) -> Line:
        if name == "copies":
            return copies(setting)
        if name == "launches":
            return launches(setting)
        return products(setting, next(kind for kind in kinds if kind == name))

    yield from setting.lines([*kinds, "copies", "launches"], line)


def products(setting: Setting, kind: Kind) -> Line:
    """TFLOP/s of products of square matrices: the peak that others are held against."""
    n = 512 if setting.tiny else 8192
    a = torch.randn(n, n, device=setting.device)
    a = a.bfloat16() if kind == "bf16" else a
    with arithmetic(setting.configs.small(), kind):
        rate = 2 * n**3 / seconds_of(lambda: a @ a, setting) / 1e12
    setting.facts[PEAK.format(kind)] = rate
    return measured(kind, f"{rate:.3g} TFLOP/s, {n} x {n} matrices", {"tflops": rate})


def copies(setting: Setting) -> Line:
    """Bytes read and written by a copy within the device's memory."""
    source = torch.ones(2**22 if setting.tiny else 2**29, device=setting.device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / seconds_of(lambda: target.copy_(source), setting) / 1e9
    return measured("copies", f"{rate:.4g} GB/s read and written", {"gb_per_second": rate})


def launches(setting: Setting) -> Line:
    """What an operation on one number costs the host."""
    one = torch.ones(1, device=setting.device)

    def many() -> None:
        for _ in range(LAUNCHES):
            one.add_(0)

    micro = 1e6 * seconds_of(many, setting) / LAUNCHES
    return measured("launches", f"{micro:.1f} us an operation", {"microseconds": micro})


def seconds_of(step: Step, setting: Setting) -> float:
    """Typical seconds of a step after a first one."""
    step()
    return typical(step, setting.device, seconds=0.2 if setting.tiny else 0.5)
