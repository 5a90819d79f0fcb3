"""README.md says what the program does: its commands compose; its options, settings and files exist."""

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from grpo import download, grade, report
from grpo.config import compose_config, compose_run_config, known_keys, to_evaluate_config
from grpo.run.evals.settings import named_keys

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [body.replace("\\\n", " ") for body in re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)]
# In the repository's tree a command stands behind its file's description.
COMMAND = re.compile(r"(?:uv run )?(?:python|torchrun [^`\n]*?) -m (grpo\.\w+)[^`\n]*")
PARSERS = {"grpo.download": download._parse, "grpo.report": report._parse, "grpo.grade": grade._parse}
GROUPS = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in CONF.iterdir() if path.is_dir()}
GROUPS = {group: options for group, options in GROUPS.items() if options}
SECTIONS = "model|hardware|loss|data|reward|train|sampling|evaluation|checkpoint|logging|sweep|launch"
TABLE_ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.rstrip().endswith("|")
]
FLAG_ROWS = [row for row in TABLE_ROWS if row[0].startswith("`--")]


def commands() -> list[str]:
    """Every command of this project, from code blocks and from `code` in the text, without its comment."""
    lines = [line for block in BLOCKS for line in block.splitlines()]
    quoted = re.findall(r"`([^`\n]+)`", PAGE)
    found = [match[0] for text in [*lines, *quoted] if (match := COMMAND.search(text))]
    return list(dict.fromkeys(re.sub(r"\s+#.*", "", text).strip() for text in found))


def split(command: str) -> tuple[str, list[str]]:
    """The module that a command runs, and the words after it."""
    words = shlex.split(command)
    place = words.index("-m") + 1
    return words[place], words[place + 1 :]


def compositions(command: str) -> Iterator[list[str]]:
    """The overrides that a command composes: one list, or one a point of its sweep."""
    _, words = split(command)
    if "--help" in words:
        return
    multirun = "--multirun" in words or "launch=slurm" in words
    words = words[: words.index("--cfg")] + words[words.index("--cfg") + 2 :] if "--cfg" in words else words
    overrides = [word for word in words if not word.startswith("--")]
    for name in [word.removeprefix("sweep=") for word in overrides if word.startswith("sweep=")]:
        multirun = True
        params = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"][
            "params"
        ]
        overrides += [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides(overrides)
    assert multirun or not any(override.is_sweep_override() for override in parsed), command
    values = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed
    ]
    yield from map(list, itertools.product(*values))


def test_the_page_is_short_and_has_commands() -> None:
    assert len(PAGE.splitlines()) < 350
    modules = Counter(split(command)[0] for command in commands())
    assert modules["grpo.train"] >= 20
    assert modules["grpo.evaluate"] >= 3
    assert min(modules[name] for name in PARSERS) >= 2
    assert any(command.startswith("torchrun ") for command in commands())
    assert len(FLAG_ROWS) == 15


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_its_program_takes(command: str) -> None:
    module, words = split(command)
    if module in PARSERS:
        if words:  # without any it is the program's name
            PARSERS[module](words)
    elif module == "grpo.evaluate":
        named_keys(words)
        to_evaluate_config(compose_config(words, "evaluate"))
    else:
        assert module in ("grpo.train", "grpo.warm_start")
        for overrides in compositions(command):
            compose_run_config(overrides)


def test_the_sweep_of_the_page_has_its_points() -> None:
    (command,) = (command for command in commands() if "--multirun" in command)
    configs = [compose_run_config(overrides) for overrides in compositions(command)]
    assert len(configs) == 12
    assert all(config.loss.clips and config.train.updates_per_step > 1 for config in configs)  # else some are the same


@pytest.mark.parametrize("row", FLAG_ROWS, ids=lambda row: row[0].strip("`").split()[0])
def test_every_override_for_a_flag_composes(row: list[str]) -> None:
    overrides = re.findall(r"`([^`]+)`", row[1])
    assert overrides
    for words in overrides:
        compose_run_config(words.split())


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_option_is_in_its_row_and_every_option_of_the_row_exists(group: str) -> None:
    (row,) = (row for row in TABLE_ROWS if row[0] == f"`{group}=`" and len(row) == 2)
    named = re.findall(r"`([a-z]\w*)`", row[1])
    assert sorted(named) == GROUPS[group]
    chosen = next(
        (item[group] for item in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"] if group in item), None
    )
    assert re.findall(r"`(\w+)` \(default\)", row[1]) == ([chosen] if chosen else [])


def test_every_option_that_is_named_exists() -> None:
    named = re.findall(rf"(?<![\w./])({'|'.join(GROUPS)})=([a-z][\w,]*)", PAGE)
    assert named
    known_typo = ("loss", "grpo_clp")
    unknown = [
        (group, option)
        for group, options in named
        for option in options.split(",")
        if option not in GROUPS[group] and (group, option) != known_typo
    ]
    assert not unknown


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(rf"(?<![\w./])((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)", PAGE))
    settings = {name for name in named if not name.endswith((".py", ".log", ".json", ".jsonl", ".yaml", ".csv"))}
    assert len(settings) > 30
    assert not settings - set(known_keys())


@pytest.mark.parametrize("loss", GROUPS["loss"])
def test_the_table_of_losses_says_what_the_files_say(loss: str) -> None:
    (row,) = (row for row in TABLE_ROWS if row[0] == f"`{loss}`" and len(row) == 5)
    config = compose_run_config([f"loss={loss}"]).loss
    assert row[1:4] == [f"`{part.name}`" for part in (config.advantage, config.objective, config.aggregation)]
    clips = [] if row[4] == "none" else [float(value) for value in row[4].split(", ")]
    assert clips == [value for value in (config.cliprange, config.cliprange_high) if value is not None]


def test_every_file_that_is_named_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE)
    paths = re.findall(r"`((?:grpo|conf|tests|docs|launchers|bench)/[\w/.]*)`", PAGE)
    assert len(paths) > 15
    assert not [path for path in {*links, *paths} if not (ROOT / path).exists()]


def test_every_file_in_the_tree_exists() -> None:
    tree = next(block for block in BLOCKS if block.startswith("grpo/\n"))
    folder, missing = "", []
    for line in tree.splitlines():
        name = line.split()[0]
        folder = "" if not line.startswith(" ") else folder
        missing += [] if (ROOT / folder / name).exists() else [folder + name]
        folder = name if not line.startswith(" ") and name.endswith("/") else folder
    assert not missing


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGE, re.MULTILINE))
    assert named >= {"quickstart", "test", "check"}
    assert named <= targets
