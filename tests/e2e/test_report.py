"""`python -m grpo.report`: its command line on runs that were run, and its pages in a real browser."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo.report import main, run
from grpo.run.files import hold_folder
from grpo.run.metrics import JsonlLog
from grpo.run.report.completions import CompletionIndex
from grpo.run.report.page import run_page
from grpo.run.report.reading import read_run
from grpo.run.report.server import WatchedPage, make_server
from grpo.run.report.sweep import compare_points, read_sweep
from grpo.run.report.sweep_page import sweep_page
from tests.e2e import processes
from tests.unit.run.report_runs import entry, group, groups, make_run, make_sweep, metrics_row

ROOT = Path(__file__).resolve().parents[2]
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
Report = Callable[..., tuple[int, str, str]]
Page = Any  # of playwright, which is imported where a browser is

Overrides = Callable[..., list[str]]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """`python -m grpo.report`, in this process: its exit status, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["grpo.report", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return call


def test_runs_that_were_run_and_the_sweep_that_they_are(tmp_path: Path, tiny: Overrides, report: Report) -> None:
    sweep, points = tmp_path / "sweep", []
    for number, lr in enumerate(("1e-2", "1e-3", "bad")):
        folder = sweep / str(number)
        folder.mkdir(parents=True)
        overrides = tiny(folder, "train.n_grpo_steps=3", f"train.learning_rate={lr}")
        (folder / "log.txt").write_text(f"$ python -m grpo.train {' '.join(overrides)}\n")
        points.append(processes.start(overrides, folder / "log.txt"))
    for process in points:
        process.join(120)
    assert [process.exitcode for process in points] == [0, 0, 1]
    rows = [json.loads(line) for line in (sweep / "0" / "completions.jsonl").read_text().splitlines()]
    entries = [entry for row in rows for entry in row["completions"]]
    assert len(entries) == 3 * 16  # four groups of four a step: all have their tokens
    assert all(len(entry["tokens"]) == len(entry["token_log_probs"]) == entry["num_tokens"] for entry in entries)
    trained = [entry for entry in entries if entry["advantage"] != 0]
    assert trained
    assert all(entry["token_ratios"] == [1.0] * entry["num_tokens"] for entry in trained)  # on policy
    status, out, err = report(sweep / "0")
    assert (status, err) == (0, "")
    assert re.search(r"^  reward  .*[▁█]", out, re.MULTILINE)
    assert "missing: " not in out
    page = (sweep / "0" / "report.html").read_text()
    assert "finished: step 3 of 3" in page
    assert (sweep / "0" / "report.png").read_bytes().startswith(b"\x89PNG")

    status, out, err = report(sweep)
    assert (status, err) == (0, "")
    assert "  the same held-out problems; 95% interval by the paired bootstrap" in out
    rows = [line.split() for line in out.splitlines()]
    assert [row[1:3] for row in rows if row[:1] in (["0"], ["1"], ["2"])] == [
        ["0.01", "finished"],
        ["0.001", "finished"],
        ["bad", "failed"],
    ]
    page = (sweep / "report.html").read_text()
    assert "train.learning_rate=bad does not fit" in page  # the last lines of the log of what failed
    assert "adjusted by Holm" in page


def test_the_page_goes_where_it_is_told(tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.run.report.page.run_curves", lambda rows: [])  # drawing takes most of a page's time
    folder = make_run(tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())
    status, out, _ = report(folder, "--out", tmp_path / "mine.html")
    assert status == 0
    assert f"page    {tmp_path / 'mine.html'}\ncurves  {tmp_path / 'mine.png'}" in out
    assert (tmp_path / "mine.html").exists()
    assert (tmp_path / "mine.png").exists()
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent"], "absent is no folder; name a run's or a sweep's"),
        (["."], "holds no run (metrics.jsonl, config.yaml) and no sweep"),
        (["run", "--out", "page.txt"], "--out page.txt is no .html file in a folder that exists"),
        (["run", "--out", "no/page.html"], "--out no/page.html is no .html file in a folder that exists"),
    ],
)
def test_bad_input_costs_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "run" in arguments:
        make_run(tmp_path / "run", num_steps=1)
    status, _, err = report(*arguments)
    assert status == 1
    assert err.startswith("grpo: ")
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["run", "--watch", "--out", "x.html"], ["run", "--port", "80"], []])
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(arguments)
    assert left.value.code == 2


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        reason = "needs chromium and playwright: apt-get install chromium, pip install playwright"
        if os.environ.get("REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # Without a sandbox: root, as in a container, has none; the pages are this project's own.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
    with warnings.catch_warnings():  # of pipes that playwright leaves open; else they are some later test's warning
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def run_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run of 12 steps with a hostile completion among its 72."""
    folder = tmp_path_factory.mktemp("browser") / "a run"
    evil = group(3, "evil", [entry(EVIL, 2.5, reason=EVIL), entry("x" * 3000, -2.5)], question=EVIL)
    off = entry(" one two", 0.5, tokens=[" one", " two", "<|end|>"], token_ratios=[1.0, 1.2, 0.8])
    rows = [*groups(12), evil, group(12, "ratios", [off])]
    make_run(folder, num_steps=12, total_steps=12, overrides=["loss.cliprange=0.3"], completions=rows)
    return written(folder)


def written(folder: Path) -> str:
    """The address of a run's page; without the picture beside it, which takes as long as the page."""
    index = CompletionIndex(folder / "completions.jsonl")
    index.update()
    (folder / "report.html").write_text(run_page(read_run(folder), index), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def sweep_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_sweep(tmp_path_factory.mktemp("browser") / "sweep")
    sweep = read_sweep(folder)
    (folder / "report.html").write_text(sweep_page(sweep, compare_points(sweep.points)), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end of the test nothing may have gone wrong in it, nor left the machine."""
    pages, troubles = [], []

    def open_(url: str, **options: Any) -> Page:
        page = browser.new_page(**options)
        page.set_default_timeout(20_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: None if local(request.url) else troubles.append(request.url))
        page.goto(url)
        pages.append(page)
        return page

    yield open_
    still_open = [page for page in pages if not page.is_closed()]
    hacked = [page.evaluate("window.hacked") for page in still_open]
    for page in still_open:
        page.close()
    assert troubles == []
    assert hacked == [None] * len(still_open)


def local(url: str) -> bool:
    return url.startswith(("file:", "data:", "http://127.0.0.1:"))


def wait_until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Asks again and again: playwright's own waiting evaluates text, which the page's policy does not allow."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s"
        time.sleep(0.05)


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def chosen(page: Page) -> str:
    """The line below the chosen completion's question."""
    return page.locator("#detail .note").first.inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_without_a_word_in_the_console(
    open_page: Callable[..., Page], run_url: str, sweep_url: str, scheme: str
) -> None:
    for url, title in ((run_url, "a run"), (sweep_url, "Sweep sweep")):
        page = open_page(url, color_scheme=scheme)
        assert page.title() == title
        back, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (brightness(back) > brightness(ink)) == (scheme == "light")
        label = page.locator("svg text").first
        assert label.evaluate("e => getComputedStyle(e).fill") == ink


def brightness(color: str) -> int:
    return sum(map(int, re.findall(r"\d+", color)[:3]))


@pytest.mark.browser
def test_filters(open_page: Callable[..., Page], run_url: str) -> None:
    page = open_page(run_url)
    assert page.locator("#count").inner_text() == "75 of 75 completions"
    page.select_option("[name=outcome]", "format failure")
    assert page.locator("#count").inner_text() == "24 of 75 completions"
    page.select_option("[name=step]", "7")
    assert texts(page, "[role=option] div:last-child") == ["step 7 · p7-0", "step 7 · p7-1"]
    page.select_option("[name=outcome]", "truncated")
    assert page.locator("#count").inner_text() == "2 of 75 completions"
    page.select_option("[name=step]", "")
    page.select_option("[name=outcome]", "")
    page.fill("[name=problem]", "what IS p11-1")
    assert set(texts(page, "[role=option] div:last-child")) == {"step 11 · p11-1"}
    page.fill("[name=problem]", "nothing like it")
    assert page.locator("#detail").inner_text() == "No completion fits these filters."


@pytest.mark.browser
def test_sorting(open_page: Callable[..., Page], run_url: str) -> None:
    page = open_page(run_url)

    def column() -> list[float]:
        return [
            float(re.match(r"[−\d.]+", text)[0].replace("−", "-"))
            for text in texts(page, "[role=option] div:first-child")
        ]

    assert column() == sorted(column(), reverse=True)
    assert column()[0] == 2.5
    page.select_option("[name=sort]", "advantage")
    assert column() == sorted(column())
    page.select_option("[name=sort]", "step")
    assert texts(page, "[role=option] div:last-child")[0].startswith("step 1 ")
    page.select_option("[name=sort]", "-num_tokens")
    assert texts(page, "[role=option] div:last-child")[0] == "step 1 · p1-0"


@pytest.mark.browser
def test_the_completion_that_was_asked_for_is_shown(open_page: Callable[..., Page], run_url: str) -> None:
    page = open_page(run_url)
    page.fill("[name=problem]", "p5-1")
    page.locator("[role=option]", has_text="wrong").click()
    detail = page.locator("#detail").inner_text()
    for text in (
        "What is p5-1?",
        "step 5, problem p5-1",
        "p5-1 wrong",
        "wrong (different)",
        "−1.050",
        "7 · 7",
        "−1.50",
    ):
        assert text in detail
    again = open_page(page.url)  # the address names it
    assert again.locator("#detail").inner_text() == detail
    straight = open_page(f"{run_url}#completion=6.2")
    assert (chosen(straight), straight.locator("#text").inner_text()) == ("step 3, problem p3-1", "p3-1 cut")
    straight.locator("#detail button").click()
    assert straight.locator("#count").inner_text() == "3 of 75 completions"
    assert chosen(straight) == "step 3, problem p3-1"


@pytest.mark.browser
def test_tokens_are_coloured(open_page: Callable[..., Page], run_url: str) -> None:
    page = open_page(f"{run_url}#completion=1.0")
    shades = "spans => spans.map((s) => +(getComputedStyle(s).backgroundColor.match(/[\\d.]+(?=\\))/)[0]))"
    alphas = page.locator("#text span").evaluate_all(shades)
    assert alphas == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.01)  # log-probs of 0, -0.5, -1, -1.5 nats
    page.select_option("[name=colour]", "")
    assert page.locator("#text span").evaluate_all(shades) == [0] * 4
    page.select_option("[name=colour]", "ratio")
    assert "not recorded" in page.locator("#detail").inner_text()
    page.fill("[name=problem]", "ratios")
    colors = page.locator("#text span").evaluate_all("spans => spans.map((s) => getComputedStyle(s).backgroundColor)")
    same, more, less = ([float(x) for x in re.findall(r"[\d.]+", color)] for color in colors)
    assert same[3] == 0
    assert more[2] > more[0]  # blue
    assert less[0] > less[2]  # orange
    page.locator("#text span").nth(2).hover()
    assert page.locator("#token").inner_text() == 'token 3 "<|end|>": log-prob −1.00, probability 0.37, ratio 0.800'


@pytest.mark.browser
def test_keys(open_page: Callable[..., Page], run_url: str) -> None:
    page = open_page(run_url)
    page.select_option("[name=sort]", "step")
    page.locator("[role=option]").first.click()
    page.locator("h1").click()  # the keys are the page's, not the list's

    def active() -> str:
        row = page.locator("[role=option][aria-selected=true]")
        assert row.count() == 1
        assert page.locator("#list").get_attribute("aria-activedescendant") == row.get_attribute("id")
        return row.get_attribute("id").removeprefix("row-")

    seen = [active()]
    for key in ("j", "j", "k"):
        page.keyboard.press(key)
        seen.append(active())
    assert seen == ["1.0", "1.1", "1.2", "1.1"]
    page.keyboard.press("/")
    page.keyboard.type("jk")  # letters again
    assert (page.input_value("[name=problem]"), page.locator("#count").inner_text()) == ("jk", "0 of 75 completions")
    page.fill("[name=problem]", "")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    for key, row in (("End", "26.0"), ("ArrowUp", "24.2"), ("Home", "1.0"), ("ArrowUp", "1.0"), ("ArrowDown", "1.1")):
        page.keyboard.press(key)
        assert active() == row
    visible = (
        "r => { const l = r.parentElement; return r.offsetTop >= l.scrollTop"
        " && r.offsetTop + r.offsetHeight <= l.scrollTop + l.clientHeight + 1; }"
    )
    for key in ("End", "Home"):
        page.keyboard.press(key)
        assert page.locator("[role=option][aria-selected=true]").evaluate(visible)
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.locator("#token").inner_text().startswith('token 2 " plus": log-prob −0.50')
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "detail"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#token").inner_text().startswith("token 1 ")
    unnamed = (
        "all => all.filter((e) => !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).length"
    )
    assert page.locator("select, input, button, [tabindex]").evaluate_all(unnamed) == 0


@pytest.mark.browser
def test_a_long_list_is_made_as_it_is_scrolled(open_page: Callable[..., Page], tmp_path: Path) -> None:
    rows = [group(1, f"p{i}", [entry(f"t{i}", float(-i))]) for i in range(450)]
    page = open_page(written(make_run(tmp_path / "run", completions=rows)))
    assert page.locator("#count").inner_text() == "450 of 450 completions"
    assert page.locator("[role=option]").count() == 200
    page.locator("#list").evaluate("l => { l.scrollTop = l.scrollHeight; }")
    wait_until(lambda: page.locator("[role=option]").count() == 400)
    page.locator("#list").focus()
    page.keyboard.press("End")
    assert chosen(page) == "step 1, problem p449"


@pytest.mark.browser
def test_what_a_model_wrote_is_text(open_page: Callable[..., Page], run_url: str) -> None:
    page = open_page(f"{run_url}#problem=evil")
    assert page.locator("#text").inner_text() == EVIL
    assert page.locator("#detail h3").inner_text() == EVIL
    assert page.locator("img").count() == 0


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(open_page: Callable[..., Page], run_url: str, sweep_url: str) -> None:
    for url in (run_url, f"{run_url}#problem=evil&sort=advantage", sweep_url):
        page = open_page(url, viewport={"width": 375, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.locator("details").evaluate_all("all => all.forEach((d) => { d.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        narrowest = page.locator("figure svg").evaluate_all("all => Math.min(...all.map((s) => s.clientWidth))")
        assert narrowest > 140


@pytest.mark.browser
def test_on_paper(open_page: Callable[..., Page], run_url: str) -> None:
    page = open_page(run_url, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    for selector, shown in (("#filters", False), ("#list", False), ("#detail", True), ("figure svg", True)):
        assert page.locator(selector).first.is_visible() == shown
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_a_folder_that_cannot_be_read_just_now_leaves_the_page_as_it_is(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.run.report.page.run_curves", lambda rows: [])
    folder = make_run(tmp_path / "run", num_steps=2)
    index = CompletionIndex(folder / "completions.jsonl")
    index.update()
    asked = iter((1, 1))  # when the server starts, and for the page; then the folder is away

    def state() -> str:
        if next(asked, None) is None:
            raise FileNotFoundError("the folder is away")
        return "1"

    with make_server(
        WatchedPage(lambda version: run_page(read_run(folder), index, version), state, rest=0), 0
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        wait_until(lambda: page.locator("body").get_attribute("data-watch") == "off", 20)
        assert page.locator("#count").inner_text() == "12 of 12 completions"
        page.close()
        server.shutdown()
        thread.join()


@pytest.mark.browser
def test_watch_follows_a_run_and_keeps_what_is_looked_at(open_page: Callable[..., Page], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=2, total_steps=4)
    before = sorted(path.name for path in folder.iterdir())
    with hold_folder(folder):
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", "grpo.report", str(folder), "--watch"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            page = open_page(re.search(r"http://127\.0\.0\.1:\d+/", line)[0])
            assert page.locator(".status").inner_text() == "running: step 2 of 4, about 6s left"
            page.evaluate("window.mark = 1")
            page.fill("[name=problem]", "p2-1")
            page.locator("[role=option]").nth(2).click()
            JsonlLog(folder / "completions.jsonl").extend(groups(3)[-2:])
            JsonlLog(folder / "metrics.jsonl").append(metrics_row(3, evaluated=True))
            wait_until(lambda: page.locator(".status").inner_text().startswith("running: step 3 of 4"))
            wait_until(lambda: page.locator("#count").inner_text() == "3 of 18 completions")
            assert page.evaluate("window.mark") == 1  # the same page, no reload
            assert chosen(page) == "step 2, problem p2-1"
            assert "3" in texts(page, "[name=step] option")
            page.close()  # it would say that the server is gone
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
            assert server.stdout.read() == "\nthe report is no longer served; the run, if it goes on, is not touched\n"
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
    assert sorted(path.name for path in folder.iterdir()) == before
