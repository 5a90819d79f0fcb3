"""curves.png shows what is in the rows, and is drawn of any rows."""

from pathlib import Path

import numpy as np
import pytest

from grpo.run.plots import PANELS, _stack, draw_curves

image = pytest.importorskip("matplotlib.image")
KEYS = [key for panel in PANELS for key, _ in panel.lines + panel.right]


def rows(num_steps: int) -> list[dict[str, float]]:
    return [{"step": i} | dict.fromkeys(KEYS, 0.1 + 0.05 * i) for i in range(num_steps)]


def panels(path: Path) -> list[np.ndarray]:
    """The nine ninths of the picture."""
    pixels = image.imread(path)
    return [part for band in np.array_split(pixels, 3, axis=0) for part in np.array_split(band, 3, axis=1)]


def test_every_panel_shows_its_metrics(tmp_path: Path) -> None:
    draw_curves(rows(5), tmp_path / "all.png", "run")
    draw_curves([{"step": i} for i in range(5)], tmp_path / "none.png", "run")
    drawn, empty = panels(tmp_path / "all.png"), panels(tmp_path / "none.png")
    assert drawn[0].shape[0] > 200
    assert all((np.abs(a - b).max(axis=-1) > 0.2).mean() > 0.005 for a, b in zip(drawn, empty, strict=True))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_changed_value_changes_its_panel_only(tmp_path: Path) -> None:
    before = rows(6)
    after = [row | {"policy/entropy": 0.3} if row["step"] == 3 else row for row in before]
    for name, data in (("before", before), ("after", after), ("again", before)):
        draw_curves(data, tmp_path / f"{name}.png", "run")
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(panels(tmp_path / "before.png"), panels(tmp_path / "after.png"), strict=True)
    ]
    assert changed == [panel.title.startswith("Entropy") for panel in PANELS]
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "before.png").read_bytes()


def test_phases_stand_on_top_of_one_another() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    lines = (("time/rollout_s", "rollout"), ("time/save_s", "save"), ("time/grade_s", "grade"), ("time/none_s", "none"))
    data = [{"step": 1, "time/rollout_s": 3.0, "time/grade_s": 1.0}, {"step": 2, "time/rollout_s": 4.0}]
    data[1]["time/save_s"] = 2.0
    tops = [bars.get_data().values.tolist() for bars in _stack(figure.subplots(), lines, data)]
    assert tops == [[3.0, 4.0], [3.0, 6.0], [4.0, 6.0]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"step": 0, "eval/accuracy": 0.2, "eval/accuracy_low": 0.1, "eval/accuracy_high": 0.3}],
        [{"step": 1, "reward/mean": None, "policy/grad_norm": 0.0, "mismatch/max": float("nan")}],
        [*rows(2), {"step": 7, "time/save_s": 3.0}],
        rows(40),
    ],
)
def test_any_rows(tmp_path: Path, data: list[dict]) -> None:
    draw_curves(data, tmp_path / "curves.png", "a $x_{ title_ \\frac of [anything]$ {")
    assert image.imread(tmp_path / "curves.png").ndim == 3
