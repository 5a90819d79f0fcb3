"""What an installation gets: the configs, the prompts and the launchers, wherever it was built."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_uv_and_pip_are_held_to_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    constraints = set((ROOT / "constraints.txt").read_text().splitlines())
    assert set(project["tool"]["uv"]["constraint-dependencies"]) <= constraints


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_a_run_needs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    held = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"grpo/{path.relative_to(ROOT).as_posix()}" in held
    for folder in ("data/prompts", "run/report/templates"):
        for path in (ROOT / "grpo" / folder).iterdir():
            assert path.relative_to(ROOT).as_posix() in held
    code = [*(ROOT / "grpo").rglob("*.c"), *(ROOT / "grpo").rglob("*.h")]
    assert len(code) == 3
    assert {path.relative_to(ROOT).as_posix() for path in code} <= held
    assert "grpo/conf/__init__.py" in held
    assert "hydra_plugins/grpo_launchers/subprocess_launcher.py" in held
    assert "hydra_plugins/__init__.py" not in held
    with tarfile.open(sdist) as archive:
        sources = {re.sub(r"^[^/]+/", "", name) for name in archive.getnames()}
    assert {"conf/config.yaml", "launchers/hydra_plugins/grpo_launchers/_points.py", "constraints.txt"} <= sources


@pytest.mark.slow
def test_the_wheel_alone_composes(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    program = (
        "import grpo.config as config\n"
        "run = config.compose_run_config(['hardware=cpu'])\n"
        "print(config.__file__, config.config_path(), run.hardware.name)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.stdout.split() == [str(installed / "grpo" / "config.py"), "pkg://grpo.conf", "cpu"], output.stderr
