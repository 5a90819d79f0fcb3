"""Checkpoints: weights in Hugging Face layout, the optimiser's state, the step. Whole, or absent.

checkpoints/step_000050/
    config.json, model*.safetensors, tokenizer files    `AutoModelForCausalLM.from_pretrained` loads the folder
    optimizer.safetensors                               <state name>/<parameter name>, in the optimiser's dtype
    optimizer/                                          in its place if several ranks saved it: see `sharded_state`
    state.json                                          step, updates skipped in a row
    ahead.jsonl                                         rollouts of the next step, with hardware.overlap
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grpo.distributed import ONE_RANK, Ranks
from grpo.run import sharded_state
from grpo.run.files import remove_folder, replace_folder
from grpo.run.kept_rollouts import load_rollouts, save_rollouts
from grpo.types import Drawn

_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, slots=True)
class TrainState:
    """What the loop must know besides weights and optimiser.

    Attributes:
        step: GRPO steps that are done.
        skipped_in_a_row: steps at the end of them whose update was skipped.
        ahead: rollouts of the step after, if they are drawn already.
    """

    step: int = 0
    skipped_in_a_row: int = 0
    ahead: Drawn | None = None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints below a run's folder, oldest first."""
    found = (folder / "checkpoints").glob("step_*")
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def save_checkpoint(
    folder: Path,
    state: TrainState,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    *,
    keep_last: int,
    ranks: Ranks = ONE_RANK,
) -> Path:
    """Writes a checkpoint aside, syncs it, renames it, and then drops the oldest ones.

    Args:
        folder: of the run.
        state: of the loop.
        model: a transformers model; its weights are saved in their own dtype.
        tokenizer: saved with them.
        optimizer: over the model's parameters.
        keep_last: how many checkpoints stay.
        ranks: who holds the model; all of them call this together.

    Raises:
        OSError: no room; what was there before is whole. If one rank raises, all do.
    """
    target = folder / "checkpoints" / f"step_{state.step:06d}"
    with ExitStack() as stack:
        aside = ranks.from_first(lambda: stack.enter_context(replace_folder(target)))
        if ranks.size == 1:
            model.save_pretrained(aside)
            _save_optimizer(aside / "optimizer.safetensors", model, optimizer)
        else:
            sharded_state.save_weights(aside, model, ranks)
            sharded_state.save_optimizer(aside / sharded_state.OPTIMIZER_FOLDER, model, optimizer)
        ranks.from_first(lambda: _save_rest(aside, state, tokenizer))
        ranks.from_first(stack.pop_all().close)  # renames it
    ranks.from_first(lambda: [remove_folder(old) for old in checkpoints_in(folder)[:-keep_last]])
    return target


def _save_rest(folder: Path, state: TrainState, tokenizer: Any) -> None:
    tokenizer.save_pretrained(folder)
    values = {"step": state.step, "skipped_in_a_row": state.skipped_in_a_row}
    (folder / "state.json").write_text(json.dumps(values))
    if state.ahead is not None:
        save_rollouts(folder / "ahead.jsonl", state.ahead)


def _save_optimizer(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import save_file

    tensors = {
        f"{key}/{name}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    save_file(tensors, path)


def load_checkpoint(checkpoint: Path, model: Any, optimizer: torch.optim.Optimizer) -> TrainState:
    """Puts weights and optimiser state back, bit by bit, on as many ranks as there are now.

    Raises:
        ValueError: files are missing, or do not fit the model.
    """
    parts = checkpoint / sharded_state.OPTIMIZER_FOLDER
    if hasattr(next(model.parameters()), "device_mesh"):  # this rank's parts
        sharded_state.load_optimizer(parts if parts.is_dir() else checkpoint, model, optimizer)
        sharded_state.load_weights(checkpoint, model)
    elif not (checkpoint / "optimizer.safetensors").exists():  # several ranks saved it
        sharded_state.load_optimizer(parts, model, optimizer)
        _load_weights(checkpoint, model)
    else:
        _load_weights(checkpoint, model)
        _load_optimizer(checkpoint / "optimizer.safetensors", model, optimizer)
    state = TrainState(**json.loads((checkpoint / "state.json").read_text()))
    ahead = checkpoint / "ahead.jsonl"
    return replace(state, ahead=load_rollouts(ahead, state.step + 1)) if ahead.exists() else state


def _load_weights(checkpoint: Path, model: Any) -> None:
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("model*.safetensors")):
        weights |= load_file(file)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    for tied in model.all_tied_weights_keys:  # saved once, under the other name
        expected.pop(tied, None)
    found = {name: value.shape for name, value in weights.items()}
    if different := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ValueError(
            f"checkpoint {checkpoint} does not fit the model: {different[0]} is of another shape, or on one side only; "
            "resume with the config that it was saved with"
        )
    model.load_state_dict(weights, strict=False)


def _load_optimizer(file: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters())
    for key, value in load_file(file).items():
        state, name = key.split("/", 1)
        parameter = parameters[name]
        device = parameter.device if state != "step" or optimizer.defaults.get("fused") else value.device
        optimizer.state[parameter][state] = value.to(device)
