"""Checkpoints: weights in Hugging Face layout, the optimiser's state, the step. Whole, or absent.

checkpoints/step_000050/
    config.json, model*.safetensors, tokenizer files    `AutoModelForCausalLM.from_pretrained` loads the folder
    optimizer.safetensors                               <state name>/<parameter name>, in the optimiser's dtype
    state.json                                          step, updates skipped in a row
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo.run.files import remove_folder, replace_folder

_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, slots=True)
class TrainState:
    """What the loop must know besides weights and optimiser.

    Attributes:
        step: GRPO steps that are done.
        skipped_in_a_row: steps at the end of them whose update was skipped.
    """

    step: int = 0
    skipped_in_a_row: int = 0


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
    folder: Path, state: TrainState, model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, *, keep_last: int
) -> Path:
    """Writes a checkpoint aside, syncs it, renames it, and then drops the oldest ones.

    Args:
        folder: of the run.
        state: of the loop.
        model: a transformers model; its weights are saved in their own dtype.
        tokenizer: saved with them.
        optimizer: over the model's parameters.
        keep_last: how many checkpoints stay.

    Raises:
        OSError: no room; what was there before is whole.
    """
    target = folder / "checkpoints" / f"step_{state.step:06d}"
    with replace_folder(target) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        _save_optimizer(aside / "optimizer.safetensors", model, optimizer)
        values = {"step": state.step, "skipped_in_a_row": state.skipped_in_a_row}
        (aside / "state.json").write_text(json.dumps(values))
    for old in checkpoints_in(folder)[:-keep_last]:
        remove_folder(old)
    return target


def _save_optimizer(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import save_file

    tensors = {
        f"{key}/{name}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    save_file(tensors, path)


def load_checkpoint(checkpoint: Path, model: Any, optimizer: torch.optim.Optimizer) -> TrainState:
    """Puts weights and optimiser state back, bit by bit.

    Raises:
        ValueError: files are missing, or do not fit the model.
    """
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
    moments = load_file(checkpoint / "optimizer.safetensors")
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        state, name = key.split("/", 1)
        parameter = parameters[name]
        device = parameter.device if state != "step" or optimizer.defaults.get("fused") else value.device
        optimizer.state[parameter][state] = value.to(device)
    return TrainState(**json.loads((checkpoint / "state.json").read_text()))
