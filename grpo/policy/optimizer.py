"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch

from grpo.config import LrSchedule, TrainConfig


def build_optimizer(model: torch.nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over all parameters; one fused kernel where torch has it."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=cfg.learning_rate,
        betas=(cfg.adam_beta1, cfg.adam_beta2),
        eps=cfg.adam_eps,
        weight_decay=cfg.weight_decay,
        fused=True,
    )


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """The rate of a GRPO step: linear warm-up, then the schedule down to 0 after the last step.

    Args:
        cfg: peak, warm-up, schedule and number of steps.
        step: counted from 1.
    """
    if step <= cfg.warmup_steps:
        return cfg.learning_rate * step / cfg.warmup_steps
    done = (step - 1 - cfg.warmup_steps) / max(1, cfg.n_grpo_steps - cfg.warmup_steps)
    match cfg.lr_schedule:
        case LrSchedule.constant:
            return cfg.learning_rate
        case LrSchedule.linear:
            return cfg.learning_rate * (1 - done)
        case LrSchedule.cosine:
            return cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
