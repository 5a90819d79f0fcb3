"""Imports point one way (DESIGN: types <- rl <- the packages <- loop <- the commands), and heavy ones are lazy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "grpo").rglob("*.py"))
PACKAGES = {"reward", "data", "rollout", "policy", "run"}
BELOW = {"types", "config"}
HEAVY = (
    *("transformers", "vllm", "wandb", "math_verify", "sympy", "matplotlib", "submitit", "rich"),
    *("huggingface_hub", "pyarrow", "jinja2"),
)
# Who may import what is not everybody's; paths as fnmatch patterns.
ONLY = {
    "vllm": ("rollout/vllm_*.py",),
    "math_verify": ("reward/last_resort.py",),
    "latex2sympy2_extended": ("reward/last_resort.py",),
    "sympy": ("reward/*.py",),
    "wandb": ("run/metrics.py",),
    "huggingface_hub": ("data/hub.py", "downloads/model.py"),
    "pyarrow": ("data/splits.py",),
    "jinja2": ("run/report/page.py",),
}


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "grpo":
                yield from (f"grpo.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    """The parts of grpo that a file imports: `rl` for grpo.rl.objectives."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("grpo.")} - {"__version__"}


def part(path: Path) -> str:
    return path.relative_to(ROOT / "grpo").with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own, others = part(path), parts_imported(path) - {part(path)}
    if own == "rl":
        assert others <= {"types"}
        assert {name.split(".")[0] for name in imported(path)} <= {"grpo", "torch", *sys.stdlib_module_names}
    elif own in PACKAGES:
        assert others <= BELOW | {"rl", "parallel", "distributed", "products", "native"}
    elif own in ("parallel", "native"):
        assert not others
    elif own in (*BELOW, "distributed"):
        assert others <= BELOW
    elif own == "loop":
        assert "train" not in others
    for module, allowed in ONLY.items():
        if module in {name.split(".")[0] for name in imported(path)}:
            relative = path.relative_to(ROOT / "grpo")
            assert any(map(relative.match, allowed)), f"{module} is imported by {', '.join(allowed)} only"


def test_a_sweep_starts_without_the_heavy_modules() -> None:
    program = (
        "import sys\n"
        "from grpo.config import compose_run_config\n"
        "compose_run_config([])\n"
        "assert 'hydra_plugins.grpo_launchers.subprocess_launcher' in sys.modules\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
