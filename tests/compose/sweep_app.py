"""A Hydra program over the project's own conf/ for the launchers' tests: it does what `logging.wandb_project` says."""

import json
import math
import os
import signal
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import hydra
from omegaconf import DictConfig

import grpo
import hydra_plugins.grpo_launchers as launchers
from grpo.config import config_path, register
from grpo.errors import user_errors
from grpo.run.files import hold_folder

register()


@hydra.main(config_path=config_path(), config_name="config", version_base="1.3")
def program(cfg: DictConfig) -> None:
    folder = Path(cfg.output_dir)
    rank = int(os.environ.get("RANK", 0))
    seen = {
        "pid": os.getpid(),
        "group_size": cfg.train.group_size,
        "seed": cfg.seed,
        "argv": sys.argv[1:],
        "typed": os.environ.get("GRPO_TYPED_COMMAND"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "grpo": grpo.__file__,
        "launchers": list(launchers.__path__),
    }
    (folder / ("seen.json" if rank == 0 else f"seen_{rank}.json")).write_text(json.dumps(seen))
    what = cfg.logging.wandb_project
    with hold_folder(folder) if rank == 0 else nullcontext():  # as a training run does
        do(what, cfg, folder, rank)


def do(what: str, cfg: DictConfig, folder: Path, rank: int) -> None:
    if what == "fail":
        print("the reason it failed", file=sys.stderr)
        sys.exit(3)
    if what == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fill":
        fill_disk(folder.parent)
    if what == "measure":  # best at a learning rate of 1e-5
        accuracy = 1 - abs(math.log10(cfg.train.learning_rate) + 5)
        rows = ({"step": 0, "eval/accuracy": 0.125}, {"step": 4, "eval/accuracy": accuracy, "reward/mean": 0.5})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if what in ("wait", "slow"):
        wait_for_signal(folder, f"_{rank}" if rank else "", folder.parent / "open" if what == "slow" else None)
    if what == "gate":
        wait_for(folder.parent / "open")
    if what.startswith("pair"):
        (folder / "here").touch()
        for other in range(2):
            wait_for(folder.parent / str(other) / "here")
    if what.startswith("ranks"):
        all_reduce(folder, fail=what == "ranks_fail")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def fill_disk(folder: Path) -> None:
    """To the last byte."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            with suppress(OSError):
                while True:
                    assert file.tell() < 1 << 24, f"{folder} is not the small disk that a test has for this"
                    file.write(b"\0" * size)


def wait_for_signal(folder: Path, suffix: str, gate: Path | None) -> None:
    """Saves when asked to stop, like a training run, and takes its time over it; started again, it ends well."""
    if (folder / f"saved{suffix}.json").exists():
        (folder / f"went_on{suffix}").touch()
        return
    received: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: received.append(number))
    (folder / f"ready{suffix}").touch()
    deadline = time.monotonic() + 150
    while not received and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(2.5 if suffix else 0.6)  # the first rank is done before the others
    if gate is not None:
        wait_for(gate)
    (folder / f"saved{suffix}.json").write_text(json.dumps(received))
    sys.exit(128 + received[0])


def all_reduce(folder: Path, *, fail: bool) -> None:
    """The sum of all ranks plus one, over gloo; or rank 1 fails and rank 0 waits for it."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if fail:
        if dist.get_rank() == 1:
            print("rank 1 has its reasons", file=sys.stderr, flush=True)
            os._exit(5)
        time.sleep(150)  # until Slurm ends it: a collective would fail by itself at the same time
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURMD_NODENAME")
    told = {"total": total.item(), **{name: os.environ.get(name) for name in names}}
    (folder / f"sum_{dist.get_rank()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    with user_errors():
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        program()
