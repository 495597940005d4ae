"""What table files and YAML files may say, whoever wrote them."""

from __future__ import annotations

import time

import pytest

from ablation.commands.cli import searching
from ablation.config.compose import Composer
from ablation.config.folders import read_yaml, register_components
from ablation.errors import ConfigError


@pytest.mark.parametrize(
    "override",
    [
        "++hydra.callbacks.x={_target_: builtins.open}",
        "hydra/callbacks=log_job_return",
        "method@hydra.callbacks.x=at",
        "hydra={job: {name: x}}",
        "~hydra.job",
    ],
)
def test_a_table_sets_no_key_of_hydra(override):
    register_components()
    with searching(None), pytest.raises(ConfigError, match="only a command line sets keys of"):
        Composer().plain(["method=at", override])


def test_an_option_that_only_a_table_chooses_sets_none_either(tmp_path):
    (tmp_path / "component" / "x").mkdir(parents=True)
    text = "# @package hydra.callbacks.x\n_target_: builtins.open\n"
    (tmp_path / "component" / "x" / "y.yaml").write_text(text)
    register_components()
    with searching(str(tmp_path)):
        composer = Composer()
        assert "hydra" not in composer.plain(["method=at"])
        with pytest.raises(ConfigError, match="an option file may not set it"):
            composer.plain(["method=at", "+component/x=y"])


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(12), "aliases"),
        ("a: &a {b: *a}", "aliases"),
        ("a: !!python/object/apply:os.getcwd []", "constructor for the tag"),
        ("- " * 3000, "nested too deeply"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: [", "expected"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_quickly(text, message, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(tmp_path / "x.yaml")
    assert time.monotonic() - start < 5
    assert len(error.value.problems) == 1
    assert "\n" not in error.value.problems[0]


def test_aliases_are_fine_where_they_are_few(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    assert read_yaml(tmp_path / "x.yaml")["b"] == [[1, 2], [1, 2]]
