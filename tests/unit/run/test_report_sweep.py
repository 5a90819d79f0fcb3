"""A sweep's points: what was swept, how each went, which is better."""

import json
from pathlib import Path

import pytest

from grpo.run.files import hold_folder
from grpo.run.report.paired import holm, paired_test, read_answers
from grpo.run.report.sweep import compare_points, point_folders, read_sweep
from grpo.run.report.sweep_page import pair_rows, point_cells
from tests.unit.run.report_runs import answers, make_run, make_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweep"))


def test_points_in_the_order_of_their_numbers(folder: Path) -> None:
    (folder / "notes").mkdir(exist_ok=True)  # no point
    assert [path.name for path in point_folders(folder)] == ["0", "1", "2", "3", "4", "10"]


def test_an_option_stands_for_the_settings_that_follow_from_it(folder: Path) -> None:
    sweep = read_sweep(folder)
    assert sweep.swept == ("loss", "train.group_size")
    assert [tuple(point.values.values()) for point in sweep.points] == [
        ("grpo_clip", "4"),
        ("grpo_clip", "8"),
        ("dr_grpo", "4"),
        ("dr_grpo", "8"),
        ("rloo", "8"),
        ("rloo", "4"),  # it has no config: its log's first line says so
    ]
    assert sweep.axes == ("loss", "train.group_size")


def test_a_setting_that_differs_within_an_option_is_swept_too(tmp_path: Path) -> None:
    for number, overrides in enumerate((["loss=dapo"], ["loss=dapo", "loss.cliprange=0.3"], ["loss=grpo_clip"])):
        make_run(tmp_path / str(number), overrides=overrides, completions=[])
    sweep = read_sweep(tmp_path)
    assert sweep.swept == ("loss", "loss.cliprange")
    assert [tuple(point.values.values()) for point in sweep.points] == [
        ("dapo", "0.2"),
        ("dapo", "0.3"),
        ("grpo_clip", "0.2"),
    ]


def test_without_any_config_the_commands_tell(tmp_path: Path) -> None:
    for number, size in enumerate((4, 7)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "log.txt").write_text(f"$ python -m grpo.train seed=1 train.group_size={size}\nno\n")
    sweep = read_sweep(tmp_path)
    assert sweep.swept == ("train.group_size",)
    assert [point.values["train.group_size"] for point in sweep.points] == ["4", "7"]


def test_how_points_went(folder: Path, tmp_path: Path) -> None:
    points = read_sweep(folder).points
    assert [point.status for point in points] == ["finished"] * 4 + ["stopped", "failed"]
    assert points[0].last_lines == ()
    assert len(points[-1].last_lines) == 12
    assert points[-1].last_lines[-1] == "Out of memory</pre><b>"  # without its colours
    elsewhere = make_run(tmp_path / "s" / "0", num_steps=2)
    with hold_folder(elsewhere):
        assert read_sweep(tmp_path / "s").points[0].status == "running"
    provenance = json.loads((elsewhere / "provenance.json").read_text()) | {"host": "another-machine"}
    (elsewhere / "provenance.json").write_text(json.dumps(provenance))
    assert read_sweep(tmp_path / "s").points[0].status == "not finished"


def test_a_row_of_the_table(folder: Path) -> None:
    # 6 steps of 3.1 s and an evaluation of 0.5 s before them; 6 steps of 2 s at 1,000 tokens/s
    last = read_sweep(folder).points[3]
    assert point_cells(last) == ("finished", "6/6", "86.0% [76.0, 96.0]", "86.0% after step 6", "19s", "12,000")
    assert point_cells(read_sweep(folder).points[-1]) == ("failed", "0", "-", "-", "-", "-")


def test_the_best_step_is_the_first_with_the_highest_accuracy(tmp_path: Path) -> None:
    make_run(tmp_path / "0", num_steps=6, gain=0.3)  # 0.9 from step 3 on
    assert read_sweep(tmp_path).points[0].best["step"] == 3


def test_pairs_are_tested_on_the_same_problems(folder: Path) -> None:
    sweep = read_sweep(folder)
    pairs = compare_points(sweep.points)
    # 5 points have an evaluation; the one that stopped after step 2 has that of step 0
    assert len(pairs) == 10
    pair = next(pair for pair in pairs if (pair.first, pair.second) == (0, 3))
    assert pair.test is not None
    # right after step 6: floor(40 (0.2 + 6 gain)): 12 with a gain of 0.02, 34 with one of 0.11
    assert (pair.test.only_first, pair.test.only_second, pair.test.num_problems) == (0, 22, 40)
    assert pair.test.difference == pytest.approx(-22 / 40)
    assert pair.test.p == pytest.approx(2 / 2**22)
    assert pair.test.low < pair.test.difference < pair.test.high < 0
    adjusted = [pair.p_adjusted for pair in pairs if pair.p_adjusted is not None]
    assert all(p >= pair.test.p for p, pair in zip(adjusted, pairs, strict=True) if pair.test)
    rows = pair_rows(sweep.points, pairs)
    assert rows[0][0].startswith("3: loss=dr_grpo") or rows[0][1].startswith("3: loss=dr_grpo")
    assert [float(row[-1]) for row in rows] == sorted(float(row[-1]) for row in rows)


def test_a_paired_test_by_hand(tmp_path: Path) -> None:
    first = {("a", 0): True, ("b", 0): True, ("c", 0): True, ("d", 0): False, ("only", 0): True}
    second = {("a", 0): False, ("b", 0): False, ("c", 0): True, ("d", 0): False, ("other", 0): True}
    test = paired_test(first, second)
    assert test is not None
    # two of four problems changed, both the same way: p = 2 * (1/2)^2
    assert (test.num_problems, test.only_first, test.only_second, test.difference, test.p) == (4, 2, 0, 0.5, 0.5)
    same = paired_test(first, first)
    assert same is not None
    # nothing differs on 5 problems, which does not show that nothing would on others: Wilson, 3.8415 / 8.8415
    assert (same.difference, same.low, same.high, same.p) == pytest.approx((0, -0.43448, 0.43448, 1), abs=1e-5)
    assert paired_test(first, {("z", 0): True}) is None
    rows = [{"problem": "a", "answer_reward": 1.0}, {"problem": "a", "answer_reward": 0.0}, *answers(1, 2)]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    assert read_answers(tmp_path / "e.jsonl") == {("a", 0): True, ("a", 1): False, ("q0", 0): True, ("q1", 0): False}


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, never falling
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_the_launchers_note_is_used(tmp_path: Path) -> None:
    for number, (status, size) in enumerate((("ok", 4), ("stopped", 8), ("killed by SIGKILL", 16), (None, 32))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "log.txt").write_text("$ python -m grpo.train  # as frozen in point.yaml\nlast words\n")
        (folder / "point.yaml").write_text(f"# frozen\ntrain:\n  group_size: {size}\nlaunch:\n  nodes: {number}\n")
        if status is not None:
            (folder / "result.json").write_text(json.dumps({"status": status, "digest": "", "seconds": 1}))
    planned = {str(n): {"folder": "x", "overrides": [f"train.group_size={4 * 2**n}"]} for n in range(6)}
    (tmp_path / "sweep.json").write_text(json.dumps({"points": planned}))
    sweep = read_sweep(tmp_path)
    assert [point.status for point in sweep.points] == ["finished", "stopped", "failed", "failed"]
    assert [point.reason for point in sweep.points] == ["", "", "killed by SIGKILL", ""]
    assert (sweep.swept, sweep.num_not_started) == (("train.group_size",), 2)
    assert [point.values["train.group_size"] for point in sweep.points] == ["4", "8", "16", "32"]
    for path in tmp_path.glob("*/point.yaml"):
        path.write_text("{ broken")
    (tmp_path / "2" / "result.json").write_text("{ torn")
    again = read_sweep(tmp_path)  # the overrides say it, too
    assert [point.values["train.group_size"] for point in again.points] == ["4", "8", "16", "32"]
    assert again.points[2].status == "failed"
