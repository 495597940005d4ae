"""The command line as a user meets it: help, completion, mistakes, signals, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ablation.commands import cli, evaluate, train
from ablation.config.command_line import said
from ablation.config.folders import register_components
from ablation.sweeps.launchers import register_launchers
from tests.support.configs import compose_config, compose_plain
from tests.support.options import options
from tests.support.sampling import some_of

BIN = Path(sys.executable).parent


def problems(*overrides: str, planned: bool = False) -> list[str]:
    register_components()
    register_launchers()
    return cli.preflight("config", overrides, train.check, planned)


def shell(*command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


NETS = """
from torch import nn


def build(hidden=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""


def test_a_network_of_the_current_folder_is_attacked(tmp_path):
    (tmp_path / "my_nets.py").write_text(NETS)
    words = (
        *("ablation-evaluate", "model=torch_module", "data=digits", "evaluation=quick"),
        *("evaluation.n=20", "model.kwargs.hidden=4", "device=cpu"),
    )
    done = shell(*words, "model.target=my_nets:build", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pgd20" in done.stdout
    (record,) = tmp_path.glob("runs/digits-torch_module-as_built-*/robustbench.json")
    assert '"architecture": "Sequential"' in record.read_text()
    wrong = shell(*words, "model.target=my_net:build", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "model.target=my_net:build: there is no module my_net, neither in" in wrong.stderr


def test_an_option_file_names_no_code(tmp_path):
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "evil_x.py").write_text("open('imported', 'w')\n")
    option = "name: mine\ntarget: evil_x:build\nkwargs: {}\nnormalize: false\n"
    (tmp_path / "own" / "model" / "mine.yaml").write_text(option)
    words = ("ablation-evaluate", "--config-dir", "own", "model=mine", "data=digits")
    refused = shell(*words, cwd=tmp_path)
    assert refused.returncode == 1
    assert "model.target='evil_x:build': it decides which code runs" in refused.stderr
    assert not (tmp_path / "imported").exists()


def test_every_mistake_of_a_command_line_is_reported_at_once():
    found = "\n".join(
        problems(
            *("model=resnet81", "data=cifr10", "epoch=3", "lr=fast", "eps=-8/255"),
            *("attack.step=2", "method.terms.ce.coeff=2", "component.awp.gamma=0.1", "seed=0,1"),
        )
    )
    for expected in (
        "model=resnet81: no such option; did you mean resnet18?",
        "data=cifr10: no such option; did you mean cifar10?",
        "epoch=3: unknown key; did you mean epochs?",
        "lr='fast': expected a number",
        "attack.step=2: unknown key; did you mean steps?",
        "method.terms.ce.coeff=2: unknown key; did you mean coef?",
        "component.awp.gamma=0.1: no effect, component.awp is disabled; add component/awp=enabled",
        "seed=0,1: several values need --multirun (-m)",
    ):
        assert expected in found, found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eps=-8/255"], "eps=-0.0313725 and scale=1 must not be negative"),
        (["eps=huge"], "eps='huge': not a number; write for example 8/255"),
        (["norm=l7"], "norm='l7': choose from linf, l2"),
        (["epochs=0"], "epochs=0: at least 1"),
        (["model.head=conic"], "model.head='conic'"),
        (["data.val_size=0"], "set data.val_size=1000 or selection.metric=last"),
        (["selection.n=9999"], "selection.n=9999: must lie between 1 and data.val_size"),
        (["evaluation.weights=average"], "set average=ema or weights=raw"),
        (["method=trades", "attack.start=clean"], "no gradient at the clean image"),
        (["method.passes=[adv,craft:adv,step]"], "adv comes before craft:adv"),
        (["~method.terms.ce"], "terms"),
        (["component/awp=enabled", "component.awp.terms=[kl]"], "the method has ce"),
        (["data=mnist", "data.source.download=false", "data_dir=nowhere"], "data_dir"),
        (["runtime.device=cuda:77"], "CUDA devices are visible; set runtime.device=auto"),
        (["runtime.device=tpu"], "choose auto, cpu, cuda"),
        (["optim.nesterov=true", "optim.momentum=0.0"], "nesterov=true needs momentum"),
        (["optim=adamw", "optim.momentum=0.5"], "optim.momentum=0.5: unknown key"),
        (["optim=adamw", "optim.betas=[1]"], "betas=[1.0]: two in [0, 1), such as [0.9,0.999]"),
        (["optim=adamw", "lr=0.1"], "lr=0.1: AdamW moves a weight by up to about lr a step"),
        (["schedule=piecewise", "schedule.milestones=[9,5]"], "must increase"),
        (
            ["schedule=torch", "schedule.name=ReduceLROnPlateau"],
            "schedule: name=ReduceLROnPlateau: it follows a measured number",
        ),
        (
            ["schedule=torch", "schedule.name=ExponentialLR", "schedule.kwargs={gamma: -1}"],
            "schedule.kwargs: the rate of epoch 1 would be -0.1",
        ),
        (["++method.budget._target_=os.system"], "only classes under ablation."),
        (["lr="], "lr"),
        (["lr"], "lr: write key=value"),
        (["=3"], "=3: write key=value"),
        (["data={name: x"], "data={name: x: no viable alternative"),
        (["+component/awp=enabled"], "it has an option already; write component/awp=enabled"),
        (["++method=trades"], "it has an option already; write method=trades"),
        (["init_from=nowhere"], "init_from=nowhere: no finished run there"),
        (["batch_size=9999"], "batch_size=9999: there are 1287 images to train on"),
        (["data.val_size=1437"], "data.val_size=1437: this training set allows 10"),
        (["data.train_size=1288"], "data.train_size=1288: this training set allows 10"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(overrides, message):
    found = problems(*overrides)
    assert any(message in problem for problem in found), found


def test_a_wrong_value_is_told_once_and_not_of_the_keys_that_take_it():
    assert [problem.split(":")[0] for problem in problems("eps=huge")] == ["eps='huge'"]
    both = problems("eps=huge", "method.budget.eps=vast")
    assert [problem.split(":")[0] for problem in both] == ["method.budget.eps='vast'", "eps='huge'"]


@pytest.mark.parametrize(
    "override",
    [
        "+method.terms.kl.term={_target_: ablation.terms.KL, view: boundary}",
        "+method.terms.ce.weight={_target_: ablation.weights.ProbabilisticMargin, view: boundary}",
        "+method.terms.ce.weight={_target_: ablation.weights.OneMinusTrueProbability, "
        "view: boundary}",
    ],
)
def test_what_needs_every_sample_is_refused_points_of_some(override):
    subset = [
        f"component/{name}=enabled"
        for name in ("margin_maximization", "fab_margin", "soft_boundary", "closed_form_gradient")
    ]
    assert not problems("method=at", *subset)
    found = problems("method=at", *subset, override)
    assert any("needs every sample, but the view boundary" in problem for problem in found), found


def test_good_command_lines_have_no_problems():
    assert problems() == []
    assert (
        problems("eps=8/255", "attack.step_size=2/255", "method=mart", "component/awp=enabled")
        == []
    )


def test_fractions_are_numbers_in_the_config():
    config = compose_config("eps=8/255", "attack.step_size=2/255")
    assert config.eps == 8 / 255
    crafter: Any = config.method.crafters["adv"]
    assert crafter.step_size == 0.25


def test_a_part_can_be_changed_added_and_removed():
    config = compose_config(
        "method=trades",
        "method.terms.kl.coef=3",
        "~method.roles.classify",
        "+method.terms.extra={term: {_target_: ablation.terms.BoostedCrossEntropy}, coef: 0.5}",
    )
    assert config.method.terms["kl"].coef == 3
    assert set(config.phases[0].method.terms) == {"ce", "kl", "extra"}


def test_component_columns_are_always_complete():
    assert compose_config().container()["component"]["awp"] == {"enabled": False}
    assert compose_plain()["component"]["awp"] == {"enabled": False}


def test_help_teaches_and_lists_the_groups():
    found = shell("ablation-train", "--help")
    assert found.returncode == 0
    methods = f"method: {', '.join(options('method'))}"
    for expected in ("ablation-train method=trades", methods, "eps:"):
        assert expected in found.stdout
    assert "component/awp: disabled, enabled" in found.stdout
    assert "\nhydra" not in found.stdout.partition("Keys")[0]
    assert shell("ablation-evaluate", "--help").returncode == 0


def test_help_shows_what_was_chosen_and_of_a_sweep_the_first_job(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [trades, _self_]\nname: mine\n")
    words = ("--config-dir", str(tmp_path), "-m", "method=mine,at", "eps=8/255", "seed=3,4")
    found = shell("ablation-train", "--help", *words)
    assert found.returncode == 0
    keys = found.stdout.splitlines()
    assert {"  name: mine", "eps: 8/255", "seed: 3"} <= set(keys)
    assert any(line.startswith("method: at, ") and ", mine, " in line for line in keys)


def test_help_with_a_mistake_names_it():
    found = shell("ablation-evaluate", "--help", "data=cifr10")
    assert found.returncode == 1
    assert "data=cifr10: no such option; did you mean cifar10?" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("typed", "expected"), [("method=t", "method=trades"), ("attack.st", "attack.steps=")]
)
def test_shell_completion_answers(typed, expected):
    line = f"ablation-train {typed}"
    found = shell(
        "ablation-train",
        "-sc",
        "query=bash",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
        _HYDRA_OLD_COMP="1",
    )
    assert expected in found.stdout.split()


def test_bad_input_exits_with_1_before_anything_starts(tmp_path):
    found = shell("ablation-train", "epochs=many", "modle=mlp", cwd=tmp_path)
    assert found.returncode == 1
    assert "2 problems in the configuration; nothing was started" in found.stderr
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_sigterm_saves_exits_with_75_and_the_same_command_resumes(tmp_path):
    command = [
        str(BIN / "ablation-train"),
        *("epochs=400", "evaluation=none", "tracking.mode=disabled", "runs_dir=runs"),
        *("attack.steps=1", "selection.every=1000"),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("runs/*/metrics.jsonl")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    (run,) = tmp_path.glob("runs/*-*")
    assert '"interrupted"' in (run / "status.json").read_text()
    done = len((run / "metrics.jsonl").read_text().splitlines())
    again = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len((run / "metrics.jsonl").read_text().splitlines()) > done:
            break
        time.sleep(0.1)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert again.returncode == 75
    epochs = [line.split(",")[0] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(epochs) == len(set(epochs)) > done


def test_a_read_only_folder_is_one_line(tmp_path):
    blocked = tmp_path / "runs"
    blocked.write_text("a file where the folder should be")
    found = shell("ablation-train", "epochs=1", "tracking.mode=disabled", cwd=tmp_path)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")
    assert "runs" in found.stderr
    assert "Traceback" not in found.stderr


def test_every_job_of_a_sweep_is_checked_before_the_first_starts():
    assert problems("-m", "seed=0,1", "method=at,trades") == []
    found = problems("-m", "eps=0.1,-0.1", "seed=0,1", "method=at,trads")
    text = "\n".join(found)
    assert "method=trads: no such option; did you mean trades?" in text
    assert "must not be negative (in job eps=-0.1 seed=0 and 1 more)" in text


def test_keys_that_the_yaml_does_not_spell_out_can_be_set(tmp_path):
    found = shell(
        *("ablation-train", "method.terms.ce.gate.stop=1", "method.crafters.adv.start_std=0.01"),
        *("scale=smoke", "tracking.mode=disabled", "evaluation=none"),
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    (config,) = tmp_path.glob("runs/*/config.yaml")
    assert "start_std: 0.01" in config.read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eps=8"], "did you mean 8/255?"),
        (["attack.step_size=-2/255"], "must not be negative"),
        (["schedule=piecewise"], "the rate never falls"),
        (["selection.attack.steps=0"], "steps must be at least 1"),
        (["method.passes=[craft:adv,adv,step,bn:adv]"], "comes after step"),
    ],
)
def test_what_would_silently_train_something_else_is_refused(overrides, message):
    assert any(message in problem for problem in problems(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["component.awp.enabled=true"], "add component/awp=enabled"),
        (["component.awp=enabled"], "write component/awp=enabled"),
        (["component.awp.gamma=0.1"], "component.awp is disabled"),
        (["seed=-1"], "between 0 and 2^63"),
        (["data.name=../x"], "it names a folder"),
        (["evaluation.n=0"], "at least 1"),
    ],
)
def test_a_single_mistake_is_enough(overrides, message):
    assert any(message in problem for problem in problems(*overrides))


def test_options_in_a_folder_of_ones_own(tmp_path):
    for name in ("method", "component/gentle"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [trades, _self_]\nname: mine\n")
    own = tmp_path / "component" / "gentle" / "enabled.yaml"
    own.write_text("_target_: ablation.components.Awp\ngamma: 0.001\n")
    arguments = ("--config-dir", str(tmp_path))
    assert problems(*arguments, "method=mine", "+component/gentle=enabled") == []
    assert any("did you mean mine?" in p for p in problems(*arguments, "method=mina"))


OPEN = "{_target_: builtins.open, file: %s, mode: w}"
"""Hydra would call it, and a file would appear."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["++hydra.callbacks.x=" + OPEN], "callbacks are not run"),
        (["+hydra/callbacks=log_job_return"], "callbacks are not run"),
        (["-m", "hydra/launcher=pool", "hydra.launcher.gpus=" + OPEN], "a plain value belongs"),
        (["-m", "hydra/launcher=pool", "hydra.launcher.jobs=[{a: " + OPEN + "}]"], "a plain value"),
        (["-m", "++hydra.launcher._target_=builtins.open"], "a plain value belongs here"),
        (["-m", "++hydra.launcher.gpus._target_=builtins.open"], "a plain value belongs here"),
        (["hydra.sweeper=" + OPEN], "sweeps have one planner"),
        (["hydra={callbacks: {x: " + OPEN + "}}"], "of Hydra's keys set only"),
        (["method@hydra.callbacks.x=at"], "of Hydra's keys set only"),
        (["hydra.job_logging.handlers.x=" + OPEN], "of Hydra's keys set only"),
        (["hydra.run.dir=/proc/nope"], "set runs_dir"),
        (["hydra.mode=MULTIRUN"], "write -m"),
        (["hydra.sweeper.plan=1,2"], "give one"),
        (["--help", "--experimental-rerun", "job.pickle"], "a pickle may run any code"),
        (["--experimental-rerun=job.pickle"], "a pickle may run any code"),
        (["--exp", "job.pickle"], "--exp: no such flag"),
        (["-m", "hydra.sweeper.max_batch_size=abc"], "expected a whole number"),
        (["-m", "hydra.sweeper.max_batch_size=0"], "at least 1; null means all"),
        (["-m", "hydra.sweeper.plan=maybe"], "plan='maybe': expected true or false"),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=x"], "expected a whole number"),
        (["-m", "hydra.launcher.jbs=2"], "hydra.launcher.jbs=2: unknown key of the launcher basic"),
        (["-m", "+hydra.launcher.n=2"], "hydra.launcher.n=2: unknown key of the launcher basic"),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.n_job=2"], "did you mean n_jobs?"),
        (["-m", "hydra.launcher=3"], "set its keys one by one"),
        (["-m", "~hydra.launcher.jobs"], "nothing of Hydra's can be removed"),
        (["-m", "hydra/launcher=nope"], "hydra/launcher=nope: choose from basic, joblib"),
        (["-m", "hydra/sweeper=basic"], "sweeps have one planner"),
        (["-m", "--cfg", "job"], "--cfg and --multirun: give one of them"),
        (["--cfg", "jobs"], "invalid choice"),
        (["--cfg", "job", "model=resnet81"], "did you mean resnet18?"),
        (["--cfg", "job", "--resolve", "eps=${nope}"], "nope"),
        (["--resolve"], "--resolve: goes with --cfg"),
        (["-p", "method"], "--package method: goes with --cfg"),
        (["-sc", "install=tcsh"], "write -sc install|uninstall|query=bash|fish|zsh"),
        (["-sc"], "-sc: write -sc install"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["--config-path", "."], "write --config-dir"),
        (["-m", "--config-name", "mine"], "a sweep starts from conf/config.yaml"),
        (["-m", "seed=interval(0,3)"], "list the values, as in seed=a,b, choice(a,b), range(0,3)"),
        (["-m", "method=glob(*)"], "list the values, as in method=a,b"),
        (["-m", "seed=range(0,1000000000)"], "more than 10000 values"),
    ],
)
def test_what_hydra_would_run_or_stumble_over_is_refused(arguments, message, tmp_path):
    file = tmp_path / "called"
    found = problems(*(text.replace("%s", str(file)) for text in arguments), planned=True)
    assert any(message in problem for problem in found), found
    assert not file.exists()


def own_folder(tmp_path: Path, name: str, text: str) -> list[str]:
    """Write an option file into a folder of one's own; the flags that read it."""
    path = tmp_path / "own" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, "latin-1")
    return ["--config-dir", str(tmp_path / "own")]


@pytest.mark.parametrize("more", some_of([[], ["-m", "seed=0,1"]], 2), ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "component/x/y.yaml",
            "# @package hydra.callbacks.x\n_target_: builtins.open",
            "callbacks",
        ),
        (
            "component/x/y.yaml",
            "# @package _global_\nhydra: {job_logging: {version: 2}}",
            "version",
        ),
        ("component/x/y.yaml", "# @package _global_\nhydra: {job: {env_set: {A: b}}}", "env_set.A"),
        (
            "component/x/y.yaml",
            "# @package _global_\ndefaults: [{override /hydra/launcher: joblib}]",
            "launcher._target_",
        ),
        (
            "hydra/launcher/basic.yaml",
            "_target_: builtins.open",
            "options of Hydra are not read here",
        ),
        ("component/x/y.yaml", "a: !!python/object/apply:os.getcwd []", "constructor for the tag"),
        ("component/x/y.yaml", "a: &a [*a]", "aliases"),
        ("component/x/y.yaml", "a: [1", "expected"),
        ("component/x/y.yaml", "\xff", "y.yaml"),
        ("component/x/y.yaml", "- 1", "y.yaml"),
    ],
)
def test_option_files_run_nothing_and_do_not_stop_hydra(tmp_path, name, text, message, more):
    flags = own_folder(tmp_path, name, text)
    chosen = ["+component/x=y"] if name.startswith("component") else []
    found = problems(*flags, *chosen, *more, planned=True)
    assert any(message in problem for problem in found), found


def test_option_files_may_size_a_sweep(tmp_path):
    flags = own_folder(
        tmp_path, "component/x/y.yaml", "# @package hydra.sweeper\nmax_batch_size: 2"
    )
    assert problems(*flags, "+component/x=y", "-m", planned=True) == []


def test_the_version_is_ours():
    found = shell("ablation-train", "--version")
    assert (found.returncode, found.stdout.split()[0]) == (0, "ablation")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=" + "9" * 30], "at most 1000000000"),
        (["attack.steps=" + "9" * 30], "at most 1000000000"),
        (["evaluation.batch_size=" + "9" * 30], "at most 1000000000"),
        (["lr=" + "9" * 400], "at most 1000000000"),
        (["seed=" + "9" * 30], "at most 9223372036854775807"),
        (["data.split_seed=-1"], "data.split_seed=-1: between 0 and 2^63"),
        (["data.train_size=0"], "data.train_size=0: at least 1"),
        (["model.spec.width=100000"], "model.spec.width=100000: at most 10000"),
        (["model=resnet18", "model.spec.width=9000"], "parameters, at most 1e+10"),
        (["model=resnet18", "model.spec.blocks=[9999,9999,9999]"], "at most 10000"),
        (["evaluation.eps=8"], "did you mean 8/255?"),
        (["evaluation.checkpoints=[]"], "null means the selected ones"),
        (["evaluation.checkpoints=[last,last]"], "name each once"),
        (["data.name='a\nb'"], "it names a folder"),
        (["data.name='$(true)'"], "it names a folder"),
        (["model.name='a\\b'"], "it names a folder"),
        (["data.val_size=0", "selection.metric=last", "batch_size=9999"], "batch_size=9999"),
    ],
)
def test_numbers_and_names_have_bounds(overrides, message):
    assert any(message in problem for problem in problems(*overrides))


def test_sizes_that_do_not_fit_the_data_are_told_together():
    found = problems("data.val_size=5000", "batch_size=9999", "data.train_size=7000")
    for key in ("data.val_size=5000", "batch_size=9999", "data.train_size=7000"):
        assert any(key in problem for problem in found), found


def test_a_key_of_another_command_is_unknown_here():
    check = partial(evaluate.check, known=said(["search=lma"]))
    found = cli.preflight("evaluate", ["search=lma"], check)
    assert any(problem.startswith("search='lma': unknown key") for problem in found), found


def test_torchrun_starts_no_sweep(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (problem,) = problems("-m", "seed=0,1", planned=True)
    assert problem.startswith("torchrun starts one run")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert problems("-m", "seed=0,1", planned=True) == []
