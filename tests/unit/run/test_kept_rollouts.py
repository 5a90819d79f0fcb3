"""Rollouts in a checkpoint come back as they were."""

from __future__ import annotations

from pathlib import Path

import torch

from grpo.run.kept_rollouts import load_rollouts, save_rollouts
from grpo.types import Completion, Drawn, FinishReason, Grade, Outcome, Problem, RolloutGroup


def test_what_is_kept_comes_back_bit_by_bit(tmp_path: Path) -> None:
    scores = tuple((-torch.rand(3, generator=torch.Generator().manual_seed(1))).tolist())
    groups = [
        RolloutGroup(
            Problem("p1", "1 + 1\u2028?", "2", level="1"),
            (1, 2),
            (
                Completion((5, 6, 7), scores, "a\nb\ufffd", FinishReason.length, 3),
                Completion((), (), "", FinishReason.stop, 4),
            ),
            (
                Grade(1.0, 1.0, 1.0, Outcome.graded, "exact", "2"),
                Grade(0.0, 0.0, 0.0, Outcome.grader_error, "deadline"),
            ),
        ),
        RolloutGroup(Problem("p2", "", ""), (), (), ()),
    ]
    for drawn in (Drawn(7, groups, []), Drawn(7, groups[:1], groups[1:])):
        save_rollouts(tmp_path / "ahead.jsonl", drawn)
        assert load_rollouts(tmp_path / "ahead.jsonl", 7) == drawn
