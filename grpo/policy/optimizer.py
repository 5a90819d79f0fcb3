"""AdamW and its learning rate."""

from __future__ import annotations

import math

import torch

from grpo.config import LrSchedule, OptimizerName, TrainConfig
from grpo.policy.low_memory import AdamW8bit


def build_optimizer(model: torch.nn.Module, cfg: TrainConfig, *, seed: int = 0, rank: int = 0) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over all parameters: torch's fused kernel, or 8-bit states.

    Args:
        model: its parameters may be float32 or bfloat16.
        cfg: names the optimiser and its constants.
        seed: of the random rounding that `adamw_8bit` does.
        rank: of this process, whose parts of the parameters are rounded with random numbers of their own.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr, betas, eps, decay = cfg.learning_rate, (cfg.adam_beta1, cfg.adam_beta2), cfg.adam_eps, cfg.weight_decay
    match cfg.optimizer:
        case OptimizerName.adamw:
            return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True)
        case OptimizerName.adamw_8bit:
            return AdamW8bit(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, seed=seed, rank=rank)


def move_state(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Moves what the optimiser remembers of every parameter, but for its counts of steps, to a device."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and name != "step":
                state[name] = value.to(device)


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
