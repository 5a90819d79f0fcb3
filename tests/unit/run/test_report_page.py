"""Pages hold what they should, load nothing, and run nothing that a model or a file's author wrote."""

import json
import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from grpo.run.report.completions import CompletionIndex
from grpo.run.report.curves import OverlaidRun, colors, draw_overlaid, overlaid_curve, run_curves
from grpo.run.report.page import MAX_BYTES, numbers, render, run_page
from grpo.run.report.panels import RUN_PANELS, SWEEP_PANELS, TABLE, thinned, tokens_sampled
from grpo.run.report.reading import read_run
from grpo.run.report.sweep import compare_points, read_sweep
from grpo.run.report.sweep_page import overlaid_runs, sweep_page
from tests.unit.run.report_runs import entry, group, make_run, make_sweep, metrics_row

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2> & 'quotes\" \ud800"


def page_of(folder: Path, watch_version: str = "") -> str:
    index = CompletionIndex(folder / "completions.jsonl")
    index.update()
    return run_page(read_run(folder), index, watch_version)


def data_of(page: str) -> list[dict]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of other parts: drawing takes most of a page's time."""
    monkeypatch.setattr("grpo.run.report.page.run_curves", lambda rows: [])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(make_run(tmp_path_factory.mktemp("page") / "my-run", overrides=["loss.cliprange=0.3"]))


def test_a_page_says_all_of_a_run(page: str) -> None:
    for panel in RUN_PANELS:
        assert f"<figcaption>{panel.panel.title}</figcaption>" in page
    for text in (
        "my-run",
        "finished: step 6 of 6",
        "Held-out accuracy 20.0% [10.0, 30.0] after step 0, 50.0% [40.0, 60.0] after step 6: +30.0 points",
        "on the same 40 problems, p = 0.00049 (McNemar)",  # 12 of 40 changed, all the same way: 2 / 2**12
        "<td>loss.cliprange</td><td>0.3</td><td>0.2</td>",
        "python -m grpo.train experiment=quickstart train.learning_rate=1e-3 train.n_grpo_steps=6 loss.cliprange=0.3",
        "12 of 12 groups are in this page",
    ):
        assert text in page, text
    assert "What is missing" not in page
    assert "To go on:" not in page
    assert len(data_of(page)) == 12


def test_a_page_loads_nothing(page: str) -> None:
    links = re.findall(r"""(?:src|href|action|url)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import""", page)
    assert {one or two for one, two in links} <= {"data:,", "#main", *(o or t for o, t in links if (o or t)[:1] == "#")}
    assert "default-src 'none'; script-src 'sha256-" in unescape(page)
    assert "connect-src" not in page


def test_identifiers_are_unique_and_drawings_are_whole(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == len(RUN_PANELS)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        used = re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)", drawing)
        assert {one or two for one, two in used} <= set(re.findall(r'\bid="([^"]*)"', drawing))
    assert "#010203" not in page


@pytest.mark.usefixtures("no_curves")
def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=4)
    for name in ("provenance.json", "completions.jsonl"):
        (folder / name).unlink()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, ')
    page = page_of(folder)
    assert "stopped after step 4 of 6" in page
    for text in (
        "provenance.json is not there",
        "The last line of metrics.jsonl is torn",
        "completions.jsonl is not there",
    ):
        assert text in page
    assert "There are none to show." in page
    assert "To go on:" in page
    assert "Made from config.yaml" in page


@pytest.mark.usefixtures("no_curves")
def test_groups_too_large_for_a_page_are_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.run.report.page.MAX_BYTES", 1)
    page = page_of(make_run(tmp_path / "run"))
    assert "None of the 12 groups fits into this page; they are in completions.jsonl." in page
    assert data_of(page) == []


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("name", ["config.yaml", "completions.jsonl", "metrics.jsonl"])
def test_one_file_alone_gives_a_page(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    for path in list(folder.iterdir()):
        if path.is_file() and path.name != name:
            path.unlink()
    for path in (folder / "evaluations").iterdir():
        path.unlink()
    assert "What is missing" in page_of(folder)


@pytest.mark.usefixtures("no_curves")
def test_hostile_text_is_text(tmp_path: Path) -> None:
    completions = [group(1, EVIL, [entry(EVIL, 1.0, reason=EVIL, extracted=EVIL, outcome=EVIL)], question=EVIL)]
    folder = make_run(tmp_path / "<img src=x>", completions=completions)
    config = (folder / "config.yaml").read_text().replace("path: null", f"path: {json.dumps(EVIL)}")
    (folder / "config.yaml").write_text(config)
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance |= {"platform": EVIL, "command": f"python -m grpo.train '{EVIL[:40]}'"}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    page = page_of(folder)
    assert "<img" not in page
    assert page.count("<script") == 2  # the data, and browser.js
    assert "window.hacked" not in re.sub(r'<script type="application/json".*?</script>', "", page).replace(
        "&lt;script&gt;window.hacked", ""
    ).replace("onerror=window.hacked", "")
    assert data_of(page)[0]["completions"][0]["text"] == EVIL
    page.encode("utf-8")


def test_only_the_pages_own_scripts_are_allowed() -> None:
    values = dict.fromkeys(("title", "folder", "status", "status_kind", "verdict"), "x") | {"facts": [], "missing": []}
    rest = {key: [] for key in ("swept", "columns", "points", "curves", "pairs", "failed", "options", "differences")}
    page = render(
        "sweep.html",
        values
        | rest
        | dict.fromkeys(("table_note", "curves_note", "pairs_note"), "")
        | {"multiples": None, "pairs_header": []},
        "",
    )
    assert "script-src 'none'" in unescape(page)
    assert "<script" not in page


def test_two_hundred_long_steps_stay_below_five_megabytes(tmp_path: Path) -> None:
    text = "All of this is thought about at great length. " * 40
    words = [f" {word}" for word in text.split()]
    one = group(1, "p", [entry(text, (-1.0) ** i, tokens=words) for i in range(8)])
    completions = [one | {"step": step, "problem": f"p{step}"} for step in range(1, 201)]
    folder = make_run(tmp_path / "run", num_steps=200, total_steps=200, gain=0.002, completions=completions)
    assert (folder / "completions.jsonl").stat().st_size > 7e6
    page = page_of(folder)
    assert 3e6 < len(page.encode()) <= MAX_BYTES < 5e6
    data = data_of(page)
    assert len(data) < 200
    assert f"{len(data):,} of 200 groups are in this page, from {len(data):,} of 200 steps, evenly spread" in page
    assert {1, 200} <= {g["step"] for g in data}


def test_long_runs_are_drawn_as_means_and_keep_their_evaluations() -> None:
    rows = [metrics_row(step, evaluated=step % 100 == 0) for step in range(1001)]
    thin, width = thinned(rows, 100)
    assert width == 11
    assert len(thin) <= 100 + 11
    assert [row["step"] for row in thin if "eval/accuracy" in row] == list(range(0, 1001, 100))
    # steps 0 to 10, of which step 0 has no reward: the mean of 0.25, 0.30, ..., 0.70
    assert thin[1]["reward/mean"] == pytest.approx(0.475)
    assert [row["step"] for row in thin] == sorted(row["step"] for row in thin)
    assert thinned(rows[:50], 100) == (rows[:50], 1)
    assert thinned([], 100) == ([], 1)
    big = run_curves(thinned([metrics_row(step) for step in range(5001)])[0])
    assert sum(len(curve.svg) for curve in big) < 1_000_000


def test_tokens_of_a_step_that_was_sampled_behind_another() -> None:
    row = {"rollout/tokens_per_s": 100.0, "time/rollout_s": 0.5}
    assert tokens_sampled(row) == 50
    assert tokens_sampled(row | {"overlap/rollout_s": 2.0}) == 200
    assert tokens_sampled({"step": 0}) == 0


def test_numbers_of_the_table() -> None:
    rows = [metrics_row(step, evaluated=True) for step in range(4)]
    table = {name: cells for name, *cells in numbers(rows)}
    assert table["held-out accuracy"] == ["20.0%", "35.0%", "20.0%", "35.0%"]
    assert table["entropy, nats"] == ["1.000", "0.333", "0.333", "1.000"]
    assert len(table) == len(TABLE)
    assert numbers([]) == []


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_curves_of_few_rows() -> None:
    for rows in ([], [metrics_row(0), {"step": 1, "time/rollout_s": 1.0}]):
        assert len(run_curves(rows)) == len(RUN_PANELS)
    assert run_curves([{"step": 1, "policy/entropy": 0.25}])[2].summary == "at the last step: entropy 0.25"


def test_labels_are_whole_and_places_are_short() -> None:
    drawing = run_curves([{"step": step, "policy/clip_fraction": 0.0012 + 0.0001 * step} for step in range(5)])[6].svg
    assert re.search(r">0\.00\d\d+</text>", drawing)
    assert not re.search(r"\d\.\d{3}", re.sub(r">[^<]*<", "><", drawing))


def test_a_changed_value_changes_its_drawing_only() -> None:
    rows = [metrics_row(step) for step in range(6)]
    changed = [row | ({"policy/entropy": 0.9} if row["step"] == 3 else {}) for row in rows]
    pairs = zip(run_curves(rows), run_curves(changed), strict=True)
    assert [before.svg != after.svg for before, after in pairs] == [
        panel.panel.title.startswith("Entropy") for panel in RUN_PANELS
    ]


def test_a_page_of_a_sweep(tmp_path: Path) -> None:
    sweep = read_sweep(make_sweep(tmp_path / "sweep"))
    page = sweep_page(sweep, compare_points(sweep.points))
    for title, _ in SWEEP_PANELS:
        assert f"<figcaption>{title}</figcaption>" in page
    for text in (
        "6 points: 4 finished, 1 stopped, 1 failed",
        "Highest last held-out accuracy: 86.0% [76.0, 96.0], point 3: loss=dr_grpo, train.group_size=8.",
        "<td>86.0% after step 6</td><td>19s</td><td>12,000</td>",
        "loss against train.group_size",
        "<figcaption>loss=rloo, train.group_size=4</figcaption>",
        "adjusted by Holm&#39;s procedure for 10 tests",
        "line 29\nOut of memory&lt;/pre&gt;&lt;b&gt;</pre>",
        "<h3>10: loss=rloo, train.group_size=4</h3>",
        "<td>train.learning_rate</td><td>0.001</td>",
    ):
        assert text in page, text
    assert page.count('<figure role="img" aria-label="loss=') == 6
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert "line 17" not in page  # of 31 lines the last 12


def test_curves_of_a_sweep_differ_by_point(tmp_path: Path) -> None:
    shades = colors(12)
    assert len(set(shades)) == 12
    runs = [
        OverlaidRun(f"r{i}", [{"step": s, "reward/mean": s * i} for s in range(3)], c) for i, c in enumerate(shades)
    ]
    curve = overlaid_curve("Reward", "reward/mean", runs, "x", 3)
    assert all(shade in curve.svg for shade in shades)
    assert "r11 22" in curve.summary
    draw_overlaid(SWEEP_PANELS[:4], runs, tmp_path / "a.png", "of $x_{")
    draw_overlaid(SWEEP_PANELS[:4], runs[:-1], tmp_path / "b.png", "of $x_{")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert overlaid_runs(read_sweep(make_sweep(tmp_path / "sweep")))[0].name == "0: loss=grpo_clip, train.group_size=4"
