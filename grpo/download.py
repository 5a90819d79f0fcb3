"""Loads problems or a model from the Hugging Face Hub: with a bar, resumed where it broke off, checked, whole or not.

    python -m grpo.download dataset                     # MATH into data/math, where data=math looks for it
    python -m grpo.download dataset --id openai/gsm8k --subset main --output-dir data/gsm8k
    python -m grpo.download model                       # Qwen2.5-Math-1.5B into the Hub's cache
    python -m grpo.download model --id Qwen/Qwen2.5-0.5B --output-dir models/qwen2.5-0.5b

Every gold answer is graded against itself; those that fail are listed in <split>.failed_golds.jsonl and not trained on.
What is there is not loaded again, and what was changed is left alone, unless --force is given. HF_TOKEN, HF_ENDPOINT,
HF_HOME and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from grpo.data.hub import Hub
from grpo.downloads.dataset import DatasetRequest, download_dataset
from grpo.downloads.model import ModelRequest, download_model
from grpo.errors import user_errors

DATASET = "nlile/hendrycks-MATH-benchmark"  # MATH in the 12,000/500 split
MODEL = "Qwen/Qwen2.5-Math-1.5B"


def main() -> None:
    """What `python -m grpo.download` does."""
    with user_errors():
        run(sys.argv[1:])


def run(arguments: Sequence[str]) -> None:
    """Loads what the command line says.

    Raises:
        ValueError: something a user can mend; one sentence.
    """
    args = _parse(arguments)
    hub = Hub(args.token)
    if args.what == "dataset":
        splits = tuple(dict.fromkeys(args.splits))
        download_dataset(hub, DatasetRequest(args.id, args.output_dir, splits, args.subset, args.revision, args.force))
    else:
        include = None if args.include is None else tuple(args.include)
        exclude = tuple(args.exclude)
        download_model(hub, ModelRequest(args.id, args.output_dir, args.revision, include, exclude, args.force))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line without repeating a token that stands in it."""

    def error(self, message: str) -> NoReturn:
        super().error(re.sub(r"hf_\w+", "hf_...", message))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m grpo.download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    dataset = commands.add_parser("dataset", help="problems, as JSON Lines", allow_abbrev=False)
    dataset.add_argument("--id", default=DATASET, help="on the Hub; default: %(default)s")
    dataset.add_argument("--output-dir", type=_folder, default=Path("data/math"), help="default: %(default)s")
    dataset.add_argument("--splits", nargs="+", type=_split, default=["train", "test"], help="default: train test")
    dataset.add_argument("--subset", help="of a data set that has several, such as main of openai/gsm8k")
    model = commands.add_parser("model", help="weights, tokenizer and config", allow_abbrev=False)
    model.add_argument("--id", default=MODEL, help="on the Hub; default: %(default)s")
    model.add_argument("--output-dir", type=_folder, help="default: the Hub's cache, where model.path=ID finds it")
    model.add_argument("--include", nargs="+", metavar="PATTERN", help="default: all but weights in other formats")
    model.add_argument("--exclude", nargs="+", metavar="PATTERN", default=[], help="such as '*.md'")
    for command in (dataset, model):
        command.add_argument("--revision", help="a branch, a tag or a commit; default: the main branch")
        command.add_argument(
            "--token", help="for what is not public; HF_TOKEN in the environment is seen by fewer eyes"
        )
        command.add_argument("--force", action="store_true", help="load again, and replace what was changed")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _split(text: str) -> str:
    """The name of a split, which becomes that of a file."""
    if not text.replace("_", "").replace("-", "").isalnum():
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a split; use letters and digits, such as train")
    return text


if __name__ == "__main__":
    main()
