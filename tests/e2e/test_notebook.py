"""The Colab notebook runs from top to bottom, is committed without outputs, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hydra import compose, initialize_config_dir
from nbclient import NotebookClient

from grpo.config import compose_run_config, config_path
from grpo.download import _parse

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "grpo_training_colab.ipynb"
# The same steps of every kind, fewer of each.
SHORT = (
    "train.n_grpo_steps=2 train.rollout_batch_size=16 train.train_batch_size=16 train.group_size=4 "
    "evaluation.num_problems=16 model.warm_start.steps=10 model.warm_start.batch_size=8 data.num_test=16"
)


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(runs: Path, **parameters: str) -> dict[str, Any]:
    """The code cells of the executed notebook by their ids; parameters are set after their defaults."""
    notebook = read()
    (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    settings = {"RUNS": str(runs), **parameters}
    injected = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in settings.items()))
    notebook.cells.insert(place + 1, injected)
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def text(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def check(cells: dict[str, Any], num_steps: int) -> None:
    assert f"step {num_steps:3}/{num_steps}" in text(cells["quickstart"]) or f"step {num_steps}/{num_steps}" in text(
        cells["quickstart"]
    )
    assert "grpo: " not in text(cells["quickstart"]) + text(cells["quickstart-evaluation"])
    (curves,) = cells["curves"].outputs
    assert len(curves.data["image/png"]) > 10_000
    assert "base" in text(cells["quickstart-evaluation"])
    for name, cell in cells.items():
        if "colab" in cell.metadata.get("tags", ()):
            assert cell.outputs == [], name


def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = execute(tmp_path, QUICKSTART=f"{SHORT} model.warm_start.cache_dir={tmp_path}/cache")
    check(cells, 2)


@pytest.mark.slow
def test_the_notebook_runs_with_the_quickstarts_settings(tmp_path: Path) -> None:
    cells = execute(tmp_path)
    check(cells, 100)
    accuracies = re.findall(r"evaluation after step \d+ +accuracy ([\d.]+)%", text(cells["quickstart"]))
    assert float(accuracies[-1]) > 90 > 40 > float(accuracies[0])


def test_it_is_committed_without_outputs_and_short() -> None:
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert len(notebook.cells) < 20


def commands() -> list[tuple[str, list[str]]]:
    """The commands of the notebook, with the defaults of its parameters: the module's name and the arguments."""
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    names: dict[str, Any] = {}
    exec(next(cell.source for cell in cells if cell.id == "parameters"), names)
    source = "\n".join(cell.source for cell in cells).replace("\\\n", " ")
    lines = re.findall(r"!\{sys\.executable\} -m grpo\.(\w+) ?(.*)", source)
    return [(module, shlex.split(eval(f"f{arguments!r}", names))) for module, arguments in lines]


def test_its_commands_exist() -> None:
    found = commands()
    assert [module for module, _ in found] == ["train", "evaluate", "download", "download", "train", "evaluate"]
    for module, arguments in found:
        if module == "train":
            assert compose_run_config(arguments).logging.console.name == "plain"
        elif module == "download":
            assert _parse(arguments).what in ("model", "dataset")
        else:
            with initialize_config_dir(version_base="1.3", config_dir=config_path()):
                assert len(compose("evaluate", arguments).compare) == 2


def test_cells_that_need_colab_are_guarded_and_tagged() -> None:
    for cell in read().cells:
        if cell.cell_type == "code" and "COLAB" in cell.source and cell.id != "parameters":
            assert cell.metadata.tags == ["colab"]
            assert re.search(r"^if COLAB:$", cell.source, re.MULTILINE)
            assert {line[:4] for line in cell.source.splitlines()} == {"if C", "    "}
