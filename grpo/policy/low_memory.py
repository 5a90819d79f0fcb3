"""AdamW in 2 bytes of state per weight, for weights that may be bfloat16.

    m = β1 m + (1 - β1) g,   v = β2 v + (1 - β2) g²,   w = w - lr λ w - lr m̂ / (√v̂ + ε)

Between steps a block of 128 values keeps √v in 8 bits, and m in 8 bits *as a multiple of √v*, each relative to its
largest in the block (block-wise: Dettmers et al., arXiv 2110.02861) and as a square root, which gives small values more
of the codes (companding: FlashOptim, arXiv 2602.23349). Three things differ from those papers:

1. Of m, what is stored is m / √v, the update itself. Where β1² < β2, Adam's sums obey |m| <= R √v with
   R² = (1 - β1)² / ((1 - β2) (1 - β1² / β2)), and whatever √v is rounded to, they still do afterwards: no rounding can
   make an update longer than Adam's can be.
2. √v is rounded at random, so that it decays: β2 = 0.999 moves a code by less than half a step, and rounding to nearest
   would put it back for ever. Always rounding up is worse: updates came out 8 to 30% too short.
3. What is not 0 never becomes 0 in √v.

Error of the update, relative to its norm, mean of 130 steps on the gradients of a small language model, β2 = 0.95, in
embedding / W_v / W_o / gate / down: 5.0 / 2.2 / 2.4 / 2.2 / 3.1%. FlashOptim's formulas to nearest, in the same blocks:
13.9 / 2.1 / 2.6 / 2.9 / 6.4%, the embedding's updates 4% too long. Where a fifth of the weights of every block had no
gradient any more, they went on with 0.1% of an update against 22%; with √v as here but m by itself, with 170%.

Why not torchao's AdamW8bit (0.18): its step needs a C++ compiler or Triton, it draws from the global random state,
which no checkpoint holds, and its states are tensor subclasses, which safetensors does not store.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from grpo.policy.block_states import BLOCK_SIZE, check_whole_blocks, new_state, own_part


def encode_signed(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of ±√(|x| / largest of the block), to nearest.

    The error of |x| is at most scale · (√(|x| / scale) / 127 + 1.6e-5), and its decoded value at most scale.

    Args:
        values: [N, 128] float32.

    Returns:
        [N, 128] int8 and [N, 1] float32 scales.
    """
    scales = values.abs().amax(dim=1, keepdim=True)
    roots = _relative(values.abs(), scales).sqrt_()
    return roots.mul_(127).round_().mul_(values.sign()).to(torch.int8), scales


def decode_signed(codes: Tensor, scales: Tensor) -> Tensor:
    """[N, 128] float32: what `encode_signed` encoded."""
    roots = codes.float().div_(127)
    return roots.mul_(roots.abs()).mul_(scales)


def random_bits(values: Tensor, generator: torch.Generator) -> Tensor:
    """31 for each of the values, int32: 16 that round its weight and 15 its state; to draw them twice takes long."""
    return torch.randint(0, 2**31, values.shape, generator=generator, device=values.device, dtype=torch.int32)


def encode_positive(values: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of √(x / largest of the block), rounded up with the probability of the remainder; only 0 becomes 0.

    Args:
        values: [N, 128] float32, 0 or more.
        bits: of `random_bits`, for these values.

    Returns:
        [N, 128] uint8 and [N, 1] float32 scales.
    """
    scales = values.amax(dim=1, keepdim=True)
    roots = _relative(values, scales).sqrt_()
    dither = (bits >> 16) * 2**-15
    codes = roots.mul_(255).add_(dither).floor_().clamp_(max=255)
    return torch.maximum(codes, (values > 0).float()).to(torch.uint8), scales


def decode_positive(codes: Tensor, scales: Tensor) -> Tensor:
    """[N, 128] float32: what `encode_positive` encoded."""
    return codes.float().div_(255).square_().mul_(scales)


def _relative(values: Tensor, scales: Tensor) -> Tensor:
    """[N, 128] in [0, 1]; a block of zeros stays one."""
    return torch.where(scales > 0, values / scales, 0)


def round_to_bfloat16(values: Tensor, bits: Tensor) -> Tensor:
    """Rounds up or down at random so that the mean is the value itself (arXiv 2010.06192).

    bfloat16 is the upper half of a float32: adding 16 random bits carries into it with the probability of the lower
    half. The bits are those of sign and magnitude, so that "up" is away from 0.

    Args:
        values: float32, any shape; infinities and nan stay what they are.
        bits: of `random_bits`, for these values.
    """
    rounded = ((values.contiguous().view(torch.int32) + (bits & 0xFFFF)) & -(2**16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with 8-bit states (see the module), arithmetic in float32, and bfloat16 weights rounded at random.

    State of a parameter of 4,096 values or more, in N blocks: `exp_avg_codes` [N, 128] int8 of m / √v,
    `exp_avg_sq_codes` [N, 128] uint8 of √v, `exp_avg_scales` and `exp_avg_sq_scales` [N, 1] float32. Smaller ones keep
    `exp_avg` and `exp_avg_sq` in float32. All have `step`, on the CPU as in torch's AdamW.

    The random numbers of a step are a function of (seed, step, which parameter, rank) and of the device's kind, so that
    there is no random state to save. A sharded parameter's states are sharded like it, whole blocks at a time.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        seed: int,
        rank: int = 0,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed, self._rank = seed, rank
        for group in self.param_groups:
            for parameter in group["params"]:
                check_whole_blocks(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, place)
                place += 1
        return loss

    def _update(self, parameter: Tensor, grads: Tensor, group: dict[str, Any], place: int) -> None:
        """Steps the parameter that is number `place` of all."""
        state = self.state[parameter]
        if not state:
            state.update(new_state(parameter))
        state["step"] += 1
        step = int(state["step"])
        generator = _generator(parameter.device, self._seed, step, place, self._rank)
        state = {key: own_part(value) for key, value in state.items()}
        parameter, grads = own_part(parameter), own_part(grads)
        if "exp_avg" in state:
            weights = parameter.float()
            _adamw(weights, grads.float(), state["exp_avg"], state["exp_avg_sq"], group, step)
            _write(parameter, weights, random_bits(weights, generator))
            return
        flat, grads = parameter.view(-1), grads.reshape(-1)
        num_blocks = _slice_blocks(parameter.device)
        for start in range(0, len(state["exp_avg_scales"]), num_blocks):
            blocks = slice(start, start + num_blocks)
            values = slice(start * BLOCK_SIZE, (start + num_blocks) * BLOCK_SIZE)
            part = {key: value[blocks] for key, value in state.items() if key != "step"}
            _quantized_update(flat[values], grads[values], part, group, step, generator)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the states as they are; torch would cast scales and float32 moments to the parameter's dtype."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                device = value.device if key == "step" else parameter.device
                self.state[parameter][key] = value.detach().to(device, copy=True)


def _slice_blocks(device: torch.device) -> int:
    """How many blocks are stepped at once: ten float32 copies of them exist meanwhile, 160 MiB on a GPU."""
    return (2**18 if device.type == "cpu" else 2**22) // BLOCK_SIZE


def _generator(device: torch.device, seed: int, step: int, place: int, rank: int) -> torch.Generator:
    """A generator for one parameter's step. Hashed, for a CPU's uses the lower 32 bits of its seed only."""
    name = f"{seed} {step} {place}" + (f" {rank}" if rank else "")
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def _adamw(
    weights: Tensor, grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, group: dict[str, Any], step: int
) -> None:
    """AdamW in place on float32 tensors of one shape; `step` counts from 1."""
    lr, (beta1, beta2) = group["lr"], group["betas"]
    weights.mul_(1 - lr * group["weight_decay"])
    exp_avg.lerp_(grads, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
    denominators = exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    weights.addcdiv_(exp_avg, denominators, value=-lr / (1 - beta1**step))


def _quantized_update(
    flat: Tensor, grads: Tensor, state: dict[str, Tensor], group: dict[str, Any], step: int, generator: torch.Generator
) -> None:
    """AdamW in place on a stretch of weights [n] and the blocks of states that belong to it."""
    roots = decode_positive(state["exp_avg_sq_codes"], state["exp_avg_sq_scales"])
    exp_avg = decode_signed(state["exp_avg_codes"], state["exp_avg_scales"]).mul_(roots)
    exp_avg_sq = roots.square_()
    weights = _in_blocks(flat.float())
    bits = random_bits(weights, generator)
    _adamw(weights, _in_blocks(grads.float()), exp_avg, exp_avg_sq, group, step)
    _write(flat, weights.view(-1)[: len(flat)], bits.view(-1)[: len(flat)])
    roots = exp_avg_sq.sqrt_()
    ratios = torch.where(roots > 0, exp_avg / roots, 0)
    for key, (codes, scales) in {
        "exp_avg": encode_signed(ratios),
        "exp_avg_sq": encode_positive(roots, bits),
    }.items():
        state[f"{key}_codes"].copy_(codes)
        state[f"{key}_scales"].copy_(scales)


def _in_blocks(values: Tensor) -> Tensor:
    """[N, 128]; zeros fill up the last block."""
    return torch.nn.functional.pad(values, (0, -len(values) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)


def _write(target: Tensor, weights: Tensor, bits: Tensor) -> None:
    """Puts float32 weights into the parameter, where it is bfloat16 rounded by these random bits."""
    target.copy_(round_to_bfloat16(weights, bits) if target.dtype is torch.bfloat16 else weights)
