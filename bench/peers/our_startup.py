"""A command line of `grpo.train` up to its first rollout: `python -X importtime -m bench.peers.our_startup RESULT ...`.

Writes which of the modules that a run should not need were imported by then; Python itself says what importing cost.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

UNNEEDED = ("vllm", "wandb", "sympy", "matplotlib")


def main() -> None:
    """Runs the rest of the command line, and ends where the first step would begin."""
    result = Path(sys.argv.pop(1))
    import grpo.loop  # what it imports, a run imports too
    import grpo.train

    def stop(run: Any, step: int) -> None:
        result.write_text(json.dumps([name for name in UNNEEDED if name in sys.modules]), encoding="utf-8")
        run.grader.close()
        os._exit(0)  # what a run does at its end would be imported too

    loop: Any = grpo.loop
    loop.collect_groups = stop
    grpo.train.main()


if __name__ == "__main__":
    main()
