"""What a name on the command line is: a folder, a checkpoint, a run, a Hub id, or a mistake."""

from pathlib import Path

import pytest

from grpo.run.evals.models import NamedModel, find_model, fingerprint, slug, unique_labels


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    folder = tmp_path / "outputs" / "mine"
    for step in (50, 100):
        checkpoint = folder / "checkpoints" / f"step_{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "model.safetensors").write_bytes(bytes([step]) * 100)
    (folder / "config.yaml").write_text("data:\n  prompt: qwen_boxed\n")
    return folder


def test_a_run_is_its_last_checkpoint_and_brings_its_config(run: Path) -> None:
    model = find_model(str(run), "model.path")
    assert model.path == str(run / "checkpoints" / "step_000100")
    assert model.run_config == {"data": {"prompt": "qwen_boxed"}}
    assert model.note == f"{run}: its last checkpoint, step_000100"
    assert model.label.endswith("mine/step_000100")


def test_a_checkpoint_is_itself_and_brings_its_runs_config(run: Path) -> None:
    path = str(run / "checkpoints" / "step_000050")
    model = find_model(path, "model.path")
    assert (model.path, model.run_config, model.note) == (path, {"data": {"prompt": "qwen_boxed"}}, "")


def test_a_folder_of_its_own_and_a_hub_id_have_no_run(run: Path, tmp_path: Path) -> None:
    folder = (run / "checkpoints" / "step_000050").rename(tmp_path / "copied")
    assert find_model(str(folder), "model.path") == NamedModel(str(folder), str(folder))
    assert find_model("Qwen/Qwen2.5-Math-1.5B", "compare") == NamedModel(*["Qwen/Qwen2.5-Math-1.5B"] * 2)


def test_what_is_nothing_is_said(run: Path, tmp_path: Path) -> None:
    for name in (str(tmp_path / "no"), "no/such/folder", "./no", "no"):
        with pytest.raises(
            ValueError, match=r"compare=\S+ does not exist under .* and is no Hub id, which is owner/name"
        ):
            find_model(name, "compare")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError, match=r"has neither config.json nor checkpoints; name a folder in Hugging Face layout"
    ):
        find_model(str(empty), "model.path")
    (empty / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="is a run without a checkpoint; let it go on"):
        find_model(str(empty), "model.path")


def test_the_folder_of_a_sweep_names_its_runs(run: Path) -> None:
    with pytest.raises(ValueError, match=r"but the runs mine are in it; name one: model\.path=.*/outputs/mine"):
        find_model(str(run.parent), "model.path")


def test_a_fingerprint_is_of_contents(run: Path, tmp_path: Path) -> None:
    one, other = (str(run / "checkpoints" / f"step_{step:06d}") for step in (50, 100))
    assert fingerprint(one, None) == fingerprint(one, None) != fingerprint(other, None)
    copied = Path(one).rename(tmp_path / "elsewhere")
    before = fingerprint(str(copied), None)
    (copied / "optimizer.safetensors").write_bytes(b"moments")
    (copied / "README.md").write_text("anything")
    assert fingerprint(str(copied), None) == before
    (copied / "tokenizer.json").write_text("{}")
    assert fingerprint(str(copied), None) != before


@pytest.mark.parametrize("place", [0, 5, 9])
def test_a_fingerprint_sees_large_files_from_end_to_end(tmp_path: Path, place: int) -> None:
    size = 10 * 2**20
    content = bytearray(size)
    (tmp_path / "model.safetensors").write_bytes(content)
    before = fingerprint(str(tmp_path), None)
    start = size * place // 9 - (1 if place == 9 else 0)
    content[max(0, start - 2**20) : start + 2**20] = b"\1" * (min(size, start + 2**20) - max(0, start - 2**20))
    (tmp_path / "model.safetensors").write_bytes(content)
    assert fingerprint(str(tmp_path), None) != before


def test_a_hub_id_is_told_by_its_revision() -> None:
    assert fingerprint("a/b", None) != fingerprint("a/b", "v2")


def test_labels_tell_models_apart() -> None:
    a, b = NamedModel("x/a", "x/a"), NamedModel("y/x/a", "y/x/a")
    assert unique_labels([a]) == ["x/a"]
    assert unique_labels([a, b]) == ["x/a", "y/x/a"]
    assert slug("Qwen/Qwen2.5-Math-1.5B") == "Qwen_Qwen2.5-Math-1.5B"
    assert slug("..") == "model"
