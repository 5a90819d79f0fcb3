"""Weights and optimiser states that several ranks hold a part of each, in files: torch's distributed checkpoints.

The files are safetensors, nothing that could run code when it is read. Who reads need not be as many as who wrote: a
state's whole is the same on any number of ranks, and everybody reads the part that is theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from grpo.distributed import Ranks

OPTIMIZER_FOLDER = "optimizer"


def save_weights(folder: Path, model: Any, ranks: Ranks) -> None:
    """Weights in Hugging Face layout, as on one rank: gathered one after another into rank 0's memory.

    Raises:
        OSError: no room; on all ranks.
    """
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().full_tensor()
        if ranks.is_first:
            whole[name] = value.cpu()

    def write() -> None:
        with _errors_of_files():
            model.save_pretrained(folder, state_dict=whole)

    ranks.from_first(write)


def save_optimizer(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Every rank's part of <state name>/<parameter name>, in a file of its own.

    Raises:
        OSError: no room; on all ranks.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    values = _by_name(model, optimizer)
    if not values:  # it has not stepped yet
        return
    with _errors_of_files():
        save(values, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def load_weights(folder: Path, model: Any) -> None:
    """Fills the model's parameters, of which this rank may hold a part, from weights in Hugging Face layout.

    Raises:
        ValueError: they do not fit the model.
    """
    shapes = {name: shape for name, shape in _shapes(folder).items() if "/" not in name}
    _load(folder, shapes, dict(model.named_parameters()))


def load_optimizer(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Puts back what `save_optimizer` wrote, or optimizer.safetensors of a single rank, if there is either.

    Raises:
        ValueError: it does not fit the model.
    """
    shapes = {name: shape for name, shape in _shapes(folder).items() if "/" in name}
    if shapes:
        make_states(optimizer)
        _load(folder, shapes, _by_name(model, optimizer))


def _shapes(folder: Path) -> dict[str, torch.Size]:
    """Of every whole tensor in the folder's files, weights and states."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    if not any(folder.glob("*.safetensors")):
        return {}
    with _errors_of_files():
        found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in found.items()}


def _load(folder: Path, shapes: dict[str, torch.Size], values: dict[str, Any]) -> None:
    """Fills tensors in place, whole or sharded, if they are those that the folder holds."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    expected = {name: value.shape for name, value in values.items()}
    if different := sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)):
        raise ValueError(
            f"checkpoint {folder} does not fit the model: {different[0]} is of another shape, or on one side only; "
            "resume with the config that it was saved with"
        )
    reader = HuggingFaceStorageReader(str(folder))
    with _errors_of_files(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that one process alone reads it
        load(values, storage_reader=reader, no_dist=not torch.distributed.is_initialized())


def make_states(optimizer: torch.optim.Optimizer) -> None:
    """Gives every parameter the states that its first step would, and changes no weight."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _by_name(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


@contextmanager
def _errors_of_files() -> Iterator[None]:
    """What went wrong with files, on whichever rank, as an OSError on all of them."""
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except (CheckpointException, SafetensorError) as error:
        causes = getattr(error, "failures", {})
        first = next(iter(causes.values()), (error, None))[0]
        raise OSError(str(first).strip().splitlines()[-1]) from error
