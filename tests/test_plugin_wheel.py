"""The example plug-in from a wheel, beside ours from a wheel, in an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin"


def command(*words: str, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bin_of_wheels(tmp_path_factory) -> Path:
    """The commands of an environment with both wheels; other libraries are those of this one."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed in this environment")
    place = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, EXAMPLE):
        command(uv, "build", "--quiet", "--wheel", "--out-dir", str(place), str(project), cwd=place)
    command(uv, "venv", "--quiet", "--python", sys.executable, "env", cwd=place)
    wheels = map(str, sorted(place.glob("*.whl")))
    python: Path = place / "env" / "bin" / "python"
    install = (uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python))
    command(*install, *wheels, cwd=place)
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return python.parent


@pytest.mark.slow
def test_an_installed_plugin_is_listed_trained_and_tabled(bin_of_wheels, tmp_path):
    train = str(bin_of_wheels / "ablation-train")
    assert "plug-in ablation-example 0.1.0" in command(train, "--version", cwd=tmp_path)
    listed = command(train, "--help", cwd=tmp_path)
    assert "component/logit_norm: disabled, enabled" in listed
    words = (train, "scale=smoke", "tracking.mode=disabled")
    said = command(*words, "component/logit_norm=enabled", cwd=tmp_path)
    assert "at with logit_norm" in said
    assert "Logit norm (digits)" in command(*words, "table=logit_norm", cwd=tmp_path)
    origin = (
        "import ablation_example, ablation; print(ablation.__file__, ablation_example.__file__)"
    )
    places = command(str(bin_of_wheels / "python"), "-c", origin, cwd=tmp_path).split()
    assert all(path.startswith(str(bin_of_wheels.parent)) for path in places)


@pytest.mark.slow
def test_the_contract_tests_of_the_plugin_pass_against_the_wheels(bin_of_wheels, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    python = str(bin_of_wheels / "python")
    said = command(python, "-m", "pytest", "-p", "no:cacheprovider", "tests", cwd=tmp_path)
    assert "passed" in said
