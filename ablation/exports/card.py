"""The model card of an export: ``README.md`` with the front matter that the Hugging Face hub reads.

Warnings of gradient masking stand above the numbers. ``model-index``, which the hub shows without
them, has a number only where ``robustbench.json`` has it and no check tripped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ablation.config.experiment import Config
from ablation.config.parser import TARGET, plain
from ablation.reports.records import Measurement
from ablation.text import printable, show_fraction
from ablation.training.method import Method

HUB_DATA: Mapping[str, str] = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "mnist": "ylecun/mnist",
    "svhn": "ufldl-stanford/svhn",
    "tiny_imagenet": "zh-plus/tiny-imagenet",
}
"""Names of our data sets on the hub."""
UNKNOWN = "unknown"
"""What the hub calls a licence that nobody has chosen."""
SAID_ELSEWHERE = ("attack", "norm", "eps", "eps_text", "batch_size")
"""Parameters of an attack that have a column of their own, or change no number."""
SMOKE = "Smoke run: tiny data, model and attacks. Its numbers mean nothing."


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        config: of the run.
        name: of its directory.
        checkpoint: name of the weights.
        weights: raw or average.
        numbers: measured on these weights.
        checks: of their evaluations, as ``result.json`` has them.
        deviations: from the table that asked for the run.
        record: as in ``robustbench.json``.
        parameters: of the network, counted.
        status: ``status.json``: versions, device, launches.
        command: that trains it again; ``None`` if none was found.
        license: of the weights, as the hub abbreviates it.
        size: (channels, height, width) of the images.
        needs: the packages that ``model.py`` imports, as words.
    """

    config: Config
    name: str
    checkpoint: str
    weights: str
    numbers: Sequence[Measurement]
    checks: Sequence[Mapping[str, Any]]
    deviations: Sequence[str]
    record: Mapping[str, Any]
    parameters: int
    status: Mapping[str, Any]
    command: str | None
    license: str
    size: tuple[int, int, int]
    needs: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Warnings of the evaluations, each once."""
        return tuple(dict.fromkeys(flag for number in self.numbers for flag in number.flags))

    @property
    def is_smoke(self) -> bool:
        """Whether nothing here means anything."""
        return self.config.scale == "smoke"


def card(facts: Facts) -> str:
    """Write the whole file."""
    sections = (
        *(_summary(facts), _use(facts), _data(facts), _method(facts), _training(facts)),
        *(_evaluation(facts), _checks(facts), _licence(facts)),
    )
    front = yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True)
    return "\n".join([f"---\n{front}---\n", *("\n".join(each) + "\n" for each in sections)])


def _front(facts: Facts) -> dict[str, Any]:
    config = facts.config
    tags = ["adversarial-robustness", "adversarial-training", config.method.name, config.data.name]
    found: dict[str, Any] = {
        "license": facts.license,
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["smoke-run", *tags] if facts.is_smoke else tags,
    }
    if config.data.name in HUB_DATA:
        found["datasets"] = [HUB_DATA[config.data.name]]
    metrics = list(_index_metrics(facts))
    if metrics:
        found["metrics"] = ["accuracy"]
        found["model-index"] = [
            {
                "name": facts.name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "name": config.data.name,
                            "type": HUB_DATA.get(config.data.name, config.data.name),
                            "split": "test",
                        },
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return found


def _index_metrics(facts: Facts) -> Iterator[dict[str, Any]]:
    record = facts.record
    attacked = f"AutoAttack accuracy (%), {record['threat_model']}, eps {record['eps']}"
    named = {"clean_acc": "Clean accuracy (%)"}
    if not facts.flags:
        named["autoattack_acc"] = attacked
    for key, name in named.items():
        if record[key] is not None:
            yield {"type": "accuracy", "name": name, "value": float(record[key])}


def _summary(facts: Facts) -> Iterator[str]:
    config = facts.config
    channels, height, width = facts.size
    yield f"# {facts.name}\n"
    if facts.is_smoke:
        yield f"> **{SMOKE}**\n"
    yield (
        f"`{config.model.name}` ({facts.parameters:,} parameters) for images of "
        f"{channels} x {height} x {width} and {config.data.classes} classes, trained on "
        f"`{config.data.name}` by the method `{config.method.name}`"
        f"{_switched(config)}. Threat model: {config.norm}, eps {show_fraction(config.eps)} "
        f"in pixels of [0, 1]. Weights: `{facts.checkpoint}`"
        f"{' (averaged)' if facts.weights == 'average' else ''}."
    )
    for note in config.notes:
        yield f"\n> {_safe(note)}"
    if facts.flags:
        yield "\n> **Do not trust the robust accuracies below without reading these warnings:**"
        yield from (f"> - {_safe(flag)}" for flag in facts.flags)


def _switched(config: Config) -> str:
    names = [f"`{name}`" for name, part in config.component.items() if part is not None]
    return f" with {', '.join(names)}" if names else ""


def _use(facts: Facts) -> Iterator[str]:
    yield (
        "## Use\n\n"
        f"`model.py` needs {facts.needs} alone, and is ordinary PyTorch: train it on as it is.\n"
        "Input normalisation, if any, is inside, so images are in [0, 1] and eps is in "
        "pixels.\n\n"
        "```python\n"
        "import torch\n"
        "from model import load  # in this folder\n\n"
        "net = load()  # evaluation mode\n"
        "with torch.no_grad():\n"
        "    logits = net(images)  # [N, C, H, W] in [0, 1] to [N, K]\n"
        "```\n\n"
        "| file | holds |\n| --- | --- |\n"
        "| `model.py` | the architecture, `build()` and `load()` |\n"
        "| `model.safetensors` | the weights |\n"
        "| `config.yaml` | every setting of the training |\n"
        "| `robustbench.json` | the record that RobustBench keeps of a model; null is unknown |"
    )


def _data(facts: Facts) -> Iterator[str]:
    node, config = facts.config.data, facts.config
    yield "## Data\n"
    held = "none" if not node.val_size else f"{node.val_size}, stratified, seed {node.split_seed}"
    trained = "all other training images"
    if node.train_size is not None:
        trained = f"{node.train_size} of the other training images"
    rows = {
        "set": f"`{node.name}`, {_part(node.source)}",
        "held out for selection": held,
        "trained on": trained,
        "augmentation": config.augment,
        "normalisation": f"inside the network: mean {node.mean}, deviation {node.std}"
        if config.model.normalize
        else "none",
        "starts from": f"the weights of `{config.init_from}`" if config.init_from else "random",
    }
    yield _table(("", ""), rows.items())


def _method(facts: Facts) -> Iterator[str]:
    config = facts.config
    yield f"## Method\n\n`{config.method.name}`{_switched(config)}; as composed:\n"
    for phase in config.phases:
        if len(config.phases) > 1:
            yield f"\nPhase `{phase.name}`, {phase.epochs} epochs:\n"
        yield _table(("part", "setting"), _composition(phase.method))
    parts = [(f"`{n}`", _part(p)) for n, p in config.component.items() if p is not None]
    if parts:
        yield "\nComponents, which made it so:\n\n" + _table(("component", "settings"), parts)


def _composition(method: Method) -> Iterator[tuple[str, str]]:
    yield "passes of a step", ", ".join(f"`{each}`" for each in method.passes)
    yield "radius", _part(method.budget)
    for name, crafter in method.crafters.items():
        yield f"attack `{name}`", _part(crafter)
    for name, slot in method.terms.items():
        weight = "" if slot.weight is None else f", weighed by {_part(slot.weight)}"
        gate = plain(slot.gate)
        gated = "" if gate == plain(type(slot.gate)()) else f", applies {gate}"
        yield f"loss term `{name}`", f"{slot.coef:g} x {_part(slot.term)}{weight}{gated}"
    if method.ascent is not None:
        yield "weight perturbation", _part(method.ascent)
    if method.head is not None:
        yield "head", _part(method.head)


def _training(facts: Facts) -> Iterator[str]:
    config, status = facts.config, facts.status
    versions = status.get("versions") or {}
    git = status.get("git") or {}
    commit = f", commit {git['commit'][:10]}" if git.get("commit") else ""
    rows = {
        "optimiser": f"SGD, {_settings(plain(config.optim))}",
        "learning rate": f"{config.lr:g}, {_part(config.schedule)}",
        "epochs": " + ".join(f"{phase.epochs} {phase.name}" for phase in config.phases),
        "batch": str(config.batch_size),
        "average": "none" if config.average is None else _part(config.average),
        "selection": _selection(config),
        "seed": str(config.seed),
        "precision": config.runtime.precision,
        "trained with": f"ablation {versions.get('ablation', '?')}, torch "
        f"{versions.get('torch', '?')}, on {status.get('device', '?')}{commit}",
    }
    yield "## Training\n\n" + _table(("", ""), rows.items())
    if facts.command is None:
        yield "\nNo command of the version that exported it trains the same; see `config.yaml`."
    else:
        train_id = facts.name.rpartition("-")[2]
        yield f"\nThis trains it again, as run `{train_id}`:\n\n```\n{facts.command}\n```"
    for text in facts.deviations:
        yield f"\nDiffers from the table that it was trained for: {_safe(text)}"


def _selection(config: Config) -> str:
    node = config.selection
    if node.metric == "last":
        return "none: the last epoch"
    count = "all" if node.n is None else str(node.n)
    attacked = f" under {_part(node.attack)} on {count} of them" if node.metric == "robust" else ""
    return f"best {node.metric} accuracy on the images held out{attacked}, never on test images"


def _evaluation(facts: Facts) -> Iterator[str]:
    yield "## Evaluation\n"
    if not facts.numbers:
        yield "None: these weights were not attacked."
        return
    header = ("metric", "split", "value", "images", "norm", "eps", "attack")
    yield _table(header, [_row(number) for number in facts.numbers])
    yield (
        "\nRobust accuracy is an upper bound: another attack may break more images. It holds for "
        "its norm and radius alone."
    )


def _row(number: Measurement) -> tuple[str, ...]:
    params = number.params
    decimals = 2 if number.unit == "percent" else 4
    images = f"{number.n}, {'all' if number.whole else 'a part'}"
    eps = show_fraction(params["eps"]) if "eps" in params else ""
    value = f"{number.value:.{decimals}f}{'%' if number.unit == 'percent' else ''}"
    threat = (str(params.get("norm", "")), eps)
    return (number.metric, number.split, value, images, *threat, _attack(params))


def _attack(params: Mapping[str, Any]) -> str:
    """An attack's settings; which AutoAttack it is comes first."""
    kinds = {
        "auto_attack": "AutoAttack, reference implementation (pyautoattack)",
        "fast_auto_attack": "fast AutoAttack of the package, not the reference",
    }
    kind = str(params.get("attack", ""))
    rest = {key: value for key, value in params.items() if key not in SAID_ELSEWHERE}
    return ", ".join(text for text in (kinds.get(kind, kind), _settings(rest)) if text)


def _checks(facts: Facts) -> Iterator[str]:
    yield "## Checks for gradient masking\n"
    if not facts.checks:
        yield "None were made."
        return
    marks = {"tripped": "**tripped**"}
    rows = [
        (each["name"], marks.get(each["outcome"], each["outcome"]), each["text"])
        for each in facts.checks
    ]
    yield _table(("check", "outcome", "what was found, or is needed"), rows)


def _licence(facts: Facts) -> Iterator[str]:
    yield "## Licence\n"
    chosen = "no licence was chosen" if facts.license == UNKNOWN else f"`{facts.license}`"
    yield (
        f"Weights: {chosen}. `model.py`: MIT, as the package it is from. The data set has terms of "
        "its own."
    )


def _part(value: Any) -> str:
    """A part of the composition: ``Pgd(steps=10, step_size=eps*0.25)``."""
    node = plain(value, True)
    if not isinstance(node, Mapping):
        return str(node)
    kind = str(node.get(TARGET, "")).rpartition(".")[2]
    settings = _settings({key: entry for key, entry in node.items() if key != TARGET})
    return f"{kind}({settings})" if kind else settings


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_shown(value)}" for key, value in values.items() if value is not None)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        kind = str(value.get(TARGET, "")).rpartition(".")[2]
        inner = _settings({key: entry for key, entry in value.items() if key != TARGET})
        return f"{kind}({inner})" if kind else f"{{{inner}}}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_safe(cell) for cell in line)} |" for line in lines)


def _safe(text: Any) -> str:
    """Text of somebody's that neither ends a cell nor begins a tag."""
    return printable(str(text)).replace("|", "\\|").replace("<", "&lt;")
