"""What a user sees of an error that a user can cause: one sentence, exit status 1, no traceback."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from grpo.types import RunError

_WRONG_TYPE = re.compile(r"Error merging override (?P<override>.+)")
_COULD_NOT_OVERRIDE = re.compile(r"Could not override '(?P<key>[^']+)'")
_FULL_KEY = re.compile(r"full_key: (?P<key>\S+)")


@contextmanager
def user_errors(status: int = 1, command: str = "train") -> Iterator[None]:
    """Turns errors that a user can cause into a sentence on standard error and an exit status.

    Ctrl-C ends the program with a line and status 130. GRPO_FULL_ERROR=1 in the environment lets errors through with
    their traceback.

    Args:
        status: of the program that ends so.
        command: whose config it is, for the sentence on a setting that does not exist.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("grpo: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (ValueError, RunError, RuntimeError, OSError, HydraException, OmegaConfBaseException, YAMLError) as error:
        is_bug = isinstance(error, RuntimeError) and not _is_out_of_memory(error)
        if is_bug or os.environ.get("GRPO_FULL_ERROR") == "1":
            raise
        sys.stdout.flush()
        print(f"grpo: {sentence(error, command)}", file=sys.stderr)
        raise SystemExit(status) from None


@contextmanager
def late_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the block ends.

    For imports of C extensions: one that is broken off half-way cannot be begun again in the same process, and numpy's
    and torch's own code tries to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory on a GPU or a Mac; by its words, for Metal has no class for it."""
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


def sentence(error: Exception, command: str = "train") -> str:
    """The error's own words, in one line, with the near names where a name is unknown."""
    if _is_out_of_memory(error):
        words = " ".join(str(error).split()).split(" Of the allocated memory")[0].rstrip(".")
        return (
            f"{words}; lower hardware.micro_batch_tokens where that was the update, hardware.engine_cache_tokens where "
            "it was sampling, or end what else holds memory there (GRPO_FULL_ERROR=1 shows where it happened)"
        )
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.filename or 'a file'}: {error.strerror}; check its path, its permissions and the room on its disk"
        )
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} is no override ({' '.join(error.message.splitlines()[:1])}); write key=value, in quotes"
        )
    cause = error.__cause__
    if match := _COULD_NOT_OVERRIDE.search(str(error)):  # of a group, with the key in braces, where the cause says so
        return _unknown_key((_FULL_KEY.search(str(cause)) or match)["key"], command)
    if (match := _WRONG_TYPE.fullmatch(str(error))) and cause is not None:
        reason = str(cause).splitlines()[0]
        return (
            f"{match['override']} does not fit ({reason}); `python -m grpo.{command} --cfg job` prints values that do"
        )
    words = str(cause) if isinstance(error, HydraException) and cause is not None else str(error)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("reference_type=", "object_type=", "full_key: hydra."))]
    kept = [line.removeprefix("ValueError raised while resolving interpolation: ") for line in kept]
    prefix = f"{error}: " if words is not str(error) and isinstance(error, HydraException) else ""
    return f"{' '.join(prefix.split())} {', '.join(kept)}".strip()


def _unknown_option(error: MissingConfigException) -> str:
    """The option that does not exist, and those that do."""
    missing = str(error.missing_cfg_file)
    group, _, name = missing.rpartition("/")
    options = sorted(error.options or ())
    if missing == "hydra/sweeper/optuna":
        return (
            "sweep=optuna needs hydra-optuna-sweeper, which is not installed; pip install -e '.[optuna]', or use "
            "another sweep"
        )
    if not group or not options:
        return " ".join(str(error).split("\n", 1)[0].split())
    return f"{group}={name} is no option of {group}{_near(name, options)}; use one of {', '.join(options)}"


def _unknown_key(key: str, command: str) -> str:
    from grpo.config import known_keys

    keys = [name for name in known_keys(command) if not f"{key}.".startswith(f"{name}.")]
    return f"{key} is no setting{_near(key, keys)}; `python -m grpo.{command} --cfg job` prints them all"


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
