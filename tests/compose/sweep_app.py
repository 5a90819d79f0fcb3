"""A Hydra program over the project's own conf/ for the launcher's tests: it does what `logging.wandb_project` says."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from grpo.config import config_path, register

register()


@hydra.main(config_path=config_path(), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    folder = Path(cfg.output_dir)
    seen = {"pid": os.getpid(), "group_size": cfg.train.group_size, "seed": cfg.seed, "argv": sys.argv[1:]}
    (folder / "seen.json").write_text(json.dumps(seen))
    if cfg.logging.wandb_project == "fail":
        print("the reason it failed", file=sys.stderr)
        sys.exit(3)
    if cfg.logging.wandb_project == "wait":
        wait_for_signal(folder)


def wait_for_signal(folder: Path) -> None:
    """Saves when asked to stop, like a training run, and takes its time over it."""
    received: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: received.append(number))
    (folder / "ready").touch()
    deadline = time.monotonic() + 60
    while not received and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.6)
    (folder / "saved.json").write_text(json.dumps(received))
    sys.exit(128 + received[0])


if __name__ == "__main__":
    main()
