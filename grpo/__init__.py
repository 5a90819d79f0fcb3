"""GRPO training of math-reasoning language models; `grpo/loop.py` is where to start reading."""

import os
import sys
from pathlib import Path
from types import TracebackType

__version__ = "0.1.0"

# Before torch loads OpenMP: its threads otherwise spin while they wait for one another, which on cores that are shared
# with anything else makes small models 10 to 30 times slower. On Linux (libgomp) a short spin, some 10 microseconds,
# costs little there and on an idle machine wins back half of the time (12,700 tokens/s against 9,500 at 0.83M
# parameters, two threads, and 10,900 with the default).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# torch 2.11 on Hopper and Blackwell asks cuDNN for attention first, which makes a plan for every new shape, 0.03 to 0.5
# seconds each (modelscope/FunASR#3704): micro-batches and the cache of a rollout have a new shape all the time.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")


def _end_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a command still imports torch: a line and status 130, as later on, instead of a traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("grpo: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # so it is while `python -m grpo.<command>` looks for the command
    sys.excepthook = _end_quietly

# Hydra looks for its plugins on sys.path; an installation puts them there, a bare checkout does not.
_launchers = Path(__file__).resolve().parent.parent / "launchers"
if (_launchers / "hydra_plugins").is_dir() and str(_launchers) not in sys.path:
    sys.path.append(str(_launchers))
