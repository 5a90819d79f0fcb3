"""The canary stops a run at its next look after engine and policy have parted, and not before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.rollout.torch_engine import TorchEngine
from grpo.run.metrics import read_jsonl


@pytest.mark.parametrize(
    ("parted_from", "canary_steps", "when"),
    [
        (0, 3, "at the start"),
        (2, 3, "before the update of step 3"),
        (3, 3, "after the weight sync of step 3"),
        (4, 3, "before the update of step 6"),
        (1, 0, None),
    ],
)
def test_a_run_stops_where_its_canary_says_so(
    tiny: Callable[..., list[str]],
    grpo_train: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    parted_from: int,
    canary_steps: int,
    when: str | None,
) -> None:
    generate = TorchEngine.generate

    def parting(self: TorchEngine, *args: Any, **kwargs: Any) -> Any:
        groups = generate(self, *args, **kwargs)
        shift = 1e-3 if self.version >= parted_from else 0.0
        return [
            [replace(c, sampler_log_probs=tuple(value + shift for value in c.sampler_log_probs)) for c in group]
            for group in groups
        ]

    monkeypatch.setattr(TorchEngine, "generate", parting)
    status, _, err = grpo_train(tiny(tmp_path, f"train.canary_steps={canary_steps}"))
    if when is None:
        assert status == 0
        assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["step"] == 6
    else:
        assert status == 1
        assert f"{when}, log-probs of engine and policy differ by 0.001 nats on average" in err
