"""What a run was made with."""

import json
import subprocess
from pathlib import Path

import pytest

from grpo import __version__
from grpo.run import provenance
from grpo.run.provenance import collect, git_state


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_collect_is_json_and_imports_nothing_heavy(run_python) -> None:
    program = """
import json, sys
from grpo.run.provenance import collect
print(json.dumps(collect(), allow_nan=False))
print([name for name in ("torch", "transformers", "matplotlib", "wandb", "vllm") if name in sys.modules])
"""
    first, second = run_python(program, "an argument").stdout.splitlines()
    found = json.loads(first)
    assert second == "[]"
    assert found["versions"]["grpo"] == __version__
    assert {"python", "torch", "transformers", "hydra-core", "omegaconf"} <= found["versions"].keys()
    assert found["command"].endswith("'an argument'")
    assert found["num_cpus"] >= 1
    assert found["num_ranks"] == 1
    assert found["devices"][0]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package-of-ours", "pytest"))
    versions = collect()["versions"]
    assert versions["no-such-package-of-ours"] is None
    assert versions["pytest"] == pytest.__version__


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / "file").write_text("a")
    assert git_state(tmp_path) == {"commit": None, "dirty": True}
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_a_folder_inside_another_checkout_is_not_one(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") is None


def test_no_git_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None
