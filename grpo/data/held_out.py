"""Problems to evaluate on: the held-out side alone, so that no training file is needed."""

from __future__ import annotations

from grpo.config import DataConfig, DataSource
from grpo.data.jsonl import load_problems
from grpo.types import Problem


def held_out_problems(cfg: DataConfig) -> list[Problem]:
    """What `grpo.data.dataset.load_data` calls test, without a look at the training side.

    Raises:
        ValueError: a file that does not hold problems; one sentence.
    """
    if cfg.source is DataSource.arithmetic:
        from grpo.data.arithmetic import test_problems

        return test_problems(cfg)
    assert cfg.test_path is not None
    return load_problems(cfg.test_path, cfg)[: cfg.num_test]
