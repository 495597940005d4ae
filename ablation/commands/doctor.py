"""``ablation-doctor``: does this machine compute what the CPU computes, and how fast?"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.commands import cli
from ablation.errors import DONE, JOB_FAILED
from ablation.output import say
from ablation.text import did_you_mean

if TYPE_CHECKING:
    import torch

    from ablation.doctor.examination import Section

LISTS = ("only",)
"""Keys that may be given as ``a,b``, which Hydra would take for a sweep."""
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class DoctorConfig:
    """The keys of ``conf/doctor.yaml``; see there."""

    device: str
    seconds: float
    only: list[str] | str | None
    out: str
    tiny: bool | None


def parse(container: Mapping[str, Any]) -> tuple[DoctorConfig | None, list[str]]:
    """The typed request and every problem in it."""
    from ablation.config.parser import Parser

    parser = Parser()
    found = parser.parse(DoctorConfig, dict(container), "")
    if not isinstance(found, DoctorConfig):
        return None, parser.problems
    return found, parser.problems + problems(found)


def problems(config: DoctorConfig) -> list[str]:
    """What cannot be done as asked, one line each."""
    from ablation.doctor.examination import SECTIONS  # imports torch

    names = [section.name for section in SECTIONS]
    found = [
        f"only={name}: no such section; {did_you_mean(name, names)}"
        for name in cli.listed(config.only)
        if name not in names
    ]
    if not config.seconds > 0:
        found.append(f"seconds={config.seconds:g}: give more than 0")
    if Path(config.out).is_dir():
        found.append(f"out={config.out}: a folder; name a file, as out=doctor.json")
    return found + device_problems(config.device)


def device_problems(name: str) -> list[str]:
    """What is wrong with the device."""
    import torch

    if not DEVICE.fullmatch(name):
        return [f"device={name}: no such device; write auto, cpu, cuda or cuda:1"]
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            return [f"device={name}: torch can use {count} GPUs here; device=cpu examines the CPU"]
    return []


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed request."""
    return parse(container)[1]


def run(container: Mapping[str, Any]) -> int:
    """Examine; returns an exit code.

    Raises:
        InputError: the report cannot be written.
    """
    from ablation.doctor.examination import examine
    from ablation.doctor.facts import facts
    from ablation.doctor.setting import Configs, Setting
    from ablation.doctor.table import Table, ending, facts_text
    from ablation.jobs.setup import pick_device

    config, began = cli.sound(parse(container)), time.perf_counter()
    device = pick_device(config.device)
    tiny = device.type == "cpu" if config.tiny is None else config.tiny
    known = facts(device)
    say(f"{head(device, tiny, config)}\n{facts_text(known)}")
    with cli.searching(None), placed(device):
        setting = Setting(device, tiny, Configs(), facts=dict(known))
        wanted = sections(config)
        report = examine(setting, wanted, config.seconds, Path(config.out), Table())
    say(ending(report, time.perf_counter() - began, config.out))
    return JOB_FAILED if report.failures() else DONE


def head(device: torch.device, tiny: bool, config: DoctorConfig) -> str:
    """What is examined, in how long, and where it goes."""
    size = "tiny networks" if tiny else "networks at full size"
    left_out = "; what needs a GPU is skipped" if device.type == "cpu" else ""
    return (
        f"ablation-doctor on {device}: {size}{left_out}\n"
        f"at most {config.seconds:g} s; figures into {config.out} after each section"
    )


def sections(config: DoctorConfig) -> list[Section]:
    """Those that are asked for, in their order."""
    from ablation.doctor.examination import SECTIONS

    only = cli.listed(config.only)
    return [section for section in SECTIONS if not only or section.name in only]


def placed(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the one that is meant where none is named."""
    import torch

    return nullcontext() if device.index is None else torch.cuda.device(device)


def main() -> None:
    """Console script."""
    # cuBLAS reads it once a process; without it some sums on a GPU differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    sys.argv[1:] = [cli.as_list(text, LISTS) for text in sys.argv[1:]]
    cli.run("doctor", run, check)


if __name__ == "__main__":
    main()
