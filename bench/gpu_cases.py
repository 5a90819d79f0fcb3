"""What `bench.gpu` measures: the model, the batches and the configurations."""

from __future__ import annotations

from dataclasses import dataclass

from bench.rollout_cases import TINY, Size

QWEN = Size("1.5B", 1536, 28, 8960, 12, 2, 151_936)
GOAL_SHARE, GOAL_GIB = 0.45, 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        size: of the model.
        num_rows, subset: completions of the update, and of those with which packings and budgets are compared.
        prompt_tokens, response_tokens: of each.
        group_size: completions that share a prompt.
        budgets: micro-batch tokens to compare.
        rollout_rows, new_tokens, rounds: batches of the engine, tokens of every completion, calls of each.
        shapes, seconds: rows, inner and columns of the matrices that are multiplied, and how long.
    """

    size: Size
    num_rows: int
    subset: int
    prompt_tokens: int
    response_tokens: int
    group_size: int
    budgets: tuple[int, ...]
    rollout_rows: tuple[int, ...]
    new_tokens: int
    rounds: int
    shapes: tuple[tuple[int, int, int], ...]
    seconds: float


# Square ones for the rate; the other three are the update's: gate and up, down, the head.
_SQUARES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384))
_SHAPES = (*_SQUARES, (8192, 1536, 8960), (8192, 8960, 1536), (8192, 1536, 151_936))
FULL = Plan(QWEN, 256, 64, 200, 512, 8, (8192, 16384, 32768), (64, 256), 256, 2, _SHAPES, 0.5)
QUICK = Plan(TINY, 8, 4, 6, 9, 4, (16, 64), (4, 8), 6, 1, ((32, 64, 32), (64, 64, 64)), 0.001)


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration of the update: its name, overrides of the run config, the memory it should stay under."""

    name: str
    overrides: tuple[str, ...]
    goal_gib: int | None = None


CASES = (
    Case("float32 masters, AdamW", ()),
    Case("bfloat16 masters, 8-bit AdamW", ("model.master_dtype=bfloat16", "train.optimizer=adamw_8bit"), GOAL_GIB),
    Case("experiment=gpu_16gb", ("experiment=gpu_16gb",), GOAL_GIB),
    Case("float32 masters, AdamW, sharded (FSDP2) over one rank", ("hardware.sharded=true",)),
)
