"""docs/papers.md says what the code does: every loss is in it, and what it names exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
LOSSES = sorted((ROOT / "conf" / "loss").glob("*.yaml"))
FUNCTIONS = sorted(set(re.findall(r"`((?:advantages|objectives|aggregation)\.\w+)`", PAGE)))
TEST_IDS = sorted(set(re.findall(r"`(test_\w+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize("path", LOSSES, ids=lambda path: path.stem)
def test_every_loss_has_a_row_with_its_own_functions(path: Path) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{path.name}` |"))
    loss = yaml.safe_load(path.read_text(encoding="utf-8"))
    advantage = {"none": "raw"}.get(loss["advantage"], loss["advantage"])
    assert f"`advantages.{advantage}`" in row
    assert f"`objectives.{loss['objective']}`" in row
    assert f"`aggregation.{loss['aggregation']}`" in row
    assert "::test_" in row


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_on_the_page_exists(name: str) -> None:
    module, function = name.split(".")
    assert callable(getattr(importlib.import_module(f"grpo.rl.{module}"), function))


@pytest.mark.parametrize(("file", "test"), TEST_IDS)
def test_every_test_on_the_page_exists(file: str, test: str) -> None:
    assert f"def {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")
