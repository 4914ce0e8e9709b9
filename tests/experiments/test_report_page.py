"""``sbrrt-fast report``: the page is complete, well-formed, and needs nothing from elsewhere."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.experiments.run_report.texts import MINUS
from tests.experiments.made_up_run import (
    METRICS,
    SCORES,
    TASKS,
    class_rows,
    log_lines,
    made_up_run,
    write_lines,
    write_rows,
)
from tests.helpers import train_tiny

SECTIONS = ["scores", "curves", "adversary", *(f"task-{n}" for n in TASKS)]
SECTIONS += ["time", "recipe", "environment"]


def parsed(path: Path) -> ET.Element:
    """The page as XML, which is stricter than HTML: everything is closed and quoted."""
    text = path.read_text(encoding="utf-8")
    doctype, _, rest = text.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ET.fromstring(rest)


def report_on(*runs: Path, output: Path | None = None) -> ET.Element:
    flags = [] if output is None else ["--output", str(output)]
    assert main(["report", *map(str, runs), *flags]) == 0
    return parsed(output or runs[0] / "report.html")


def text_of(element: ET.Element | None) -> str:
    assert element is not None
    return " ".join(" ".join(element.itertext()).split())


def section(page: ET.Element, name: str) -> ET.Element:
    found = page.find(f".//section[@id='{name}']")
    assert found is not None, name
    return found


def titles_of(part: ET.Element) -> list[str]:
    return [text_of(caption) for caption in part.iter("figcaption")]


def refused(argv: list[str], capsys) -> str:
    """What a command line that cannot be used says: one line on stderr, with status 2."""
    capsys.readouterr()
    assert main(["report", *argv]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made_up_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run) -> ET.Element:
    return report_on(run)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> ET.Element:
    folder = tmp_path_factory.mktemp("comparison")
    runs = [made_up_run(folder / f"seed-{seed}", seed=seed) for seed in (0, 1, 2)]
    return report_on(*runs, output=folder / "new" / "page.html")


@pytest.fixture(params=["one run", "three runs"])
def any_page(request, page, comparison) -> ET.Element:
    return page if request.param == "one run" else comparison


def test_every_section_is_there_and_in_the_contents(page):
    assert [found.get("id") for found in page.iter("section")] == SECTIONS
    links = [link.get("href") for link in page.find(".//nav").iter("a")]
    assert links == [f"#{name}" for name in SECTIONS]


def test_ids_are_unique_and_references_lead_to_them(any_page):
    ids = Counter(e.get("id") for e in any_page.iter() if e.get("id"))
    assert max(ids.values()) == 1
    for element in any_page.iter():
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((element.get(name) or "").split()) <= set(ids)
        assert (element.get("href") or "#").removeprefix("#") in {*ids, "", "data:,"}


def test_nothing_is_fetched_and_nothing_is_run(any_page):
    tags = {element.tag for element in any_page.iter()}
    assert not tags & {"script", "iframe", "object", "embed", "img", "image", "base", "form"}
    attributes = {name for element in any_page.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcset")}
    style = text_of(any_page.find(".//style"))
    assert "url(" not in style
    assert "@import" not in style
    policy = any_page.find(".//meta[@http-equiv]").get("content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    whole = ET.tostring(any_page, encoding="unicode")
    assert re.findall(r"(?:https?:)?//[a-z]", whole) == []


def test_pictures_have_names_and_words(any_page):
    pictures = [svg for svg in any_page.iter("svg") if svg.get("role") == "img"]
    assert len(pictures) >= 20
    named = {e.get("id"): text_of(e) for e in any_page.iter() if e.get("id")}
    for svg in pictures:
        assert named[svg.get("aria-labelledby")]
        assert re.search(r"\d", named[svg.get("aria-describedby")])
    decorations = [svg for svg in any_page.iter("svg") if svg.get("role") != "img"]
    assert {svg.get("aria-hidden") for svg in decorations} == {"true"}


def test_tables_have_captions_and_headers(any_page):
    tables = list(any_page.iter("table"))
    assert len(tables) >= 10
    for table in tables:
        assert text_of(table.find("caption"))
        headers = table.findall("./thead//th")
        assert headers
        assert {header.get("scope") for header in headers} == {"col"}
        assert {th.get("scope") for th in table.findall("./tbody//th")} <= {"row"}
        num_columns = len(headers)
        assert {len(row) for row in table.iter("tr")} == {num_columns}


def test_headings_do_not_skip_a_level(any_page):
    levels = [int(e.tag[1]) for e in any_page.iter() if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip([0, *levels], levels, strict=False))


def test_scores_with_their_intervals(page):
    part = section(page, "scores")
    rows = {text_of(row.find("th")): text_of(row) for row in part.find(".//tbody")}
    assert list(rows) == [*TASKS, "overall"]
    for name in TASKS:
        assert f"{next(iter(SCORES[name].values())):.3f}" in rows[name]
        assert re.search(r"0\.\d{3} to 0\.\d{3}", rows[name])
    assert "0.688" in rows["overall"]


def test_intervals_of_metrics_json_come_first(tmp_path):
    intervals = {"sst": {"accuracy": [0.125, 0.875]}}
    page = report_on(made_up_run(tmp_path / "run", intervals=intervals))
    assert "0.125 to 0.875" in text_of(section(page, "scores"))


def test_a_metric_without_an_interval_has_none(tmp_path):
    page = report_on(made_up_run(tmp_path / "run", intervals={"sst": {"accuracy": None}}))
    rows = [text_of(row) for row in section(page, "scores").find(".//tbody")]
    assert rows[0] == "sst accuracy 0.512"
    assert " to " in rows[1]


def test_every_metric_of_a_task_is_shown(tmp_path):
    dev = {"sst": {"accuracy": 0.5, "f1": 0.25, "mcc": -0.125}, "overall": 0.5}
    tasks = {"sst": BUILTIN_TASKS["sst"]}
    page = report_on(made_up_run(tmp_path / "run", tasks=tasks, dev=dev))
    rows = [text_of(row) for row in section(page, "scores").find(".//tbody")]
    assert [row.split()[1] for row in rows[:3]] == ["accuracy", "f1", "mcc"]
    assert f"{MINUS}0.125" in rows[2]


def test_an_undefined_score_has_its_reason(tmp_path):
    dev = SCORES | {"sts": {"pearson": None, "undefined": "all labels are 3"}, "overall": None}
    page = report_on(made_up_run(tmp_path / "run", dev=dev))
    rows = [text_of(row) for row in section(page, "scores").find(".//tbody")]
    assert rows[2] == "sts pearson — all labels are 3"
    assert rows[3] == "overall —"


def test_learning_curves_of_every_task_and_term(page):
    titles = titles_of(section(page, "curves"))
    assert titles[:4] == [*(f"{n}: {METRICS[n]}" for n in TASKS), "overall score"]
    assert titles[4:8] == ["task loss", "SMART term R_s", "Bregman term D_Breg", "total"]
    assert len(titles) == 4 + 4 * 3
    first = section(page, "curves").find(".//svg[@role='img']/desc")
    assert text_of(first) == "run: from 0.5 at round 10 to 0.8 at round 40."
    adversary = section(page, "adversary")
    assert [text_of(h) for h in adversary.findall("h3")] == [
        "Size of the perturbation",
        "Gain over a random direction",
    ]
    assert titles_of(adversary) == [*TASKS, *TASKS]


def test_the_curves_are_those_of_the_log(page):
    """The highest loss is the highest point, and rounds are where the axis says."""
    losses = [r["sst/loss"] for r in log_lines(0, True) if "sst/loss" in r]
    figure = section(page, "curves").findall(".//figure")[4]
    points = figure.find(".//polyline").get("points").split()
    places = [tuple(map(float, point.split(","))) for point in points]
    assert len(places) == len(losses)
    top = min(range(len(places)), key=lambda i: places[i][1])
    assert losses[top] == max(losses)
    steps = {round(b[0] - a[0]) for a, b in itertools.pairwise(places)}
    assert max(steps) - min(steps) <= 1


def test_a_run_without_an_adversary_says_so(tmp_path):
    page = report_on(made_up_run(tmp_path / "run", weight=0.0))
    part = section(page, "adversary")
    assert "no adversary" in text_of(part)
    assert titles_of(part) == []


def test_confusion_matrix_scatter_lengths_and_wrong_rows(page):
    sst, sts = section(page, "task-sst"), section(page, "task-sts")
    rows = class_rows(5)
    counts = Counter((row["label"], row["prediction"]) for row in rows)
    for label, row in enumerate(sst.find(".//table[@class='matrix']/tbody")):
        cells = [int(cell.text) for cell in row.findall("td")[:-1]]
        assert cells == [counts[label, prediction] for prediction in range(5)]
    num_wrong = sum(row["label"] != row["prediction"] for row in rows)
    assert text_of(sst.find("h3")) == f"dev: 80 rows, {num_wrong} wrong"
    assert len(sst.findall(".//ol/li")) == 10
    assert len(sts.findall(".//svg[@role='img']//circle")) == 80
    assert sts.find(".//table[@class='matrix']") is None
    for part in (sst, sts):
        assert "lengths" in titles_of(part)
        captions = [text_of(caption) for caption in part.iter("caption")]
        assert [caption for caption in captions if caption.startswith("By length: ")]


def test_without_rows_it_says_how_to_get_them(tmp_path):
    folder = made_up_run(tmp_path / "my run", with_rows=False)
    page = report_on(folder)
    for name in ("scores", *(f"task-{n}" for n in TASKS)):
        assert f"sbrrt-fast evaluate '{folder}'" in text_of(section(page, name))
    assert len(titles_of(section(page, "curves"))) == 16


def test_the_rows_of_other_splits_are_shown_too(tmp_path):
    folder = made_up_run(tmp_path / "run")
    write_rows(folder, "sst", class_rows(5, num_rows=7), split="test")
    headings = [text_of(h) for h in section(report_on(folder), "task-sst").findall("h3")]
    assert [heading.partition(",")[0] for heading in headings] == ["dev: 80 rows", "test: 7 rows"]


def test_classes_have_the_users_names(tmp_path):
    tasks = {"sst": replace(BUILTIN_TASKS["sst"], num_classes=3)}
    folder = made_up_run(tmp_path / "run", tasks=tasks, with_rows=False)
    names = ("contradiction", "entailment", "<neutral> & co")
    write_rows(folder, "sst", class_rows(3, names=names))
    matrix = section(report_on(folder), "task-sst").find(".//table[@class='matrix']")
    headers = [text_of(header) for header in matrix.findall("./thead//th")]
    assert headers == ["label", "<neutral> & co", "contradiction", "entailment", "recall"]


def test_many_classes_are_a_list_of_confusions(tmp_path):
    tasks = {"sst": replace(BUILTIN_TASKS["sst"], num_classes=40)}
    folder = made_up_run(tmp_path / "run", tasks=tasks, with_rows=False)
    write_rows(folder, "sst", class_rows(40, num_rows=400))
    part = section(report_on(folder), "task-sst")
    assert part.find(".//table[@class='matrix']") is None
    assert "The most frequent confusions" in text_of(part)


def test_texts_cannot_become_part_of_the_page(tmp_path):
    folder = made_up_run(tmp_path / "run", with_rows=False)
    text = "</p><script>alert(1)</script> & \x00\x1b[31m\ud800 <b>"
    row = class_rows(2, num_rows=1)[0] | {"texts": [text], "label": 1, "prediction": 0}
    write_rows(folder, "para", [row])
    example = section(report_on(folder), "task-para").find(".//ol/li/p")
    assert example.text == "</p><script>alert(1)</script> & \\x00\\x1b[31m\\ud800 <b>"


def test_names_cannot_become_part_of_the_page_either(tmp_path):
    folder = made_up_run(tmp_path / "<i>\x07 & run", with_rows=False)
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    config = config.replace("recipe: made-up", 'recipe: "</title><b>"')
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    page = report_on(folder)
    assert text_of(page.find(".//h1")) == "</title><b> on sst, para and sts"
    assert text_of(page.find(".//header//tbody/tr/th")) == "<i>\\x07 & run"


def test_time_recipe_and_environment(page):
    time = text_of(section(page, "time"))
    for words in ("2.50 rounds per second, 20.0 s in all", "16.0 s 80%", "30.0 ms 10.0 ms 75%"):
        assert words in time
    recipe = section(page, "recipe")
    rows = {text_of(row.find("th")): text_of(row.find("td")) for row in recipe.find(".//tbody")}
    assert rows == {"recipe": "made-up", "smart.weight": "1.0"}
    environment = text_of(section(page, "environment"))
    assert "torch 2.13.0" in environment
    assert "a made-up processor" in environment


def test_a_run_without_a_profile_says_how_to_get_one(tmp_path):
    page = report_on(made_up_run(tmp_path / "run", profile=None, environment=None))
    assert "train with --profile" in text_of(section(page, "time"))
    assert "Not recorded" in text_of(section(page, "environment"))


def test_the_sample_is_no_result(page):
    assert "made up: these scores are no results" in text_of(page.find(".//header"))


def test_an_unfinished_run_is_shown_as_such(tmp_path):
    folder = made_up_run(tmp_path / "run", is_finished=False)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"round": 45, "sst/lo')  # a line that training is writing just now
    page = report_on(folder)
    assert "not finished" in text_of(page.find(".//header"))
    assert "0.800" in text_of(section(page, "scores"))


def test_a_run_that_has_just_begun(tmp_path):
    folder = made_up_run(tmp_path / "run", is_finished=False, with_rows=False)
    (folder / "metrics.jsonl").unlink()
    page = report_on(folder)
    assert "No round was logged yet" in text_of(section(page, "curves"))


def test_runs_are_compared_with_paired_intervals(comparison):
    part = section(comparison, "comparison")
    rows = [[text_of(cell) for cell in row] for row in part.find(".//tbody")]
    expected = [[n, METRICS[n], s] for n in TASKS for s in ("seed-1", "seed-2")]
    assert [row[:3] for row in rows] == expected
    for *_, difference, interval in rows:
        value, low, high = (
            float(text.replace(MINUS, "-")) for text in (difference, *interval.split()[:3:2])
        )
        assert low <= value <= high
        assert interval.endswith("includes 0" if low <= 0 <= high else "excludes 0")
    first, other = ([r["label"] == r["prediction"] for r in class_rows(5, seed=s)] for s in (0, 1))
    expected = (sum(other) - sum(first)) / 80
    assert float(rows[0][3].replace(MINUS, "-")) == pytest.approx(expected, abs=6e-4)


def test_runs_that_differ_in_their_seed_alone_have_a_mean(comparison):
    table = section(comparison, "scores").find(".//table")
    assert text_of(table.find("./thead/tr")[-1]) == "mean ± sd"
    assert text_of(table.find("./tbody/tr")[-1]) == "0.512 ± 0.000"


def test_runs_of_other_recipes_have_none(tmp_path):
    runs = [made_up_run(tmp_path / n, weight=w, seed=3) for n, w in (("a", 1.0), ("b", 0.0))]
    page = report_on(*runs, output=tmp_path / "page.html")
    assert "mean ± sd" not in text_of(section(page, "scores"))
    recipe = section(page, "recipe").find(".//tbody")
    assert [[text_of(cell) for cell in row] for row in recipe] == [["smart.weight", "1.0", "0.0"]]


def test_runs_of_other_tasks_are_compared_in_what_they_share(tmp_path):
    runs = [
        made_up_run(tmp_path / "both", with_rows=True),
        made_up_run(tmp_path / "one", tasks={"sst": TASKS["sst"]}, dev={"sst": {"accuracy": 0.25}}),
    ]
    page = report_on(*runs, output=tmp_path / "page.html")
    rows = [text_of(row.find("th")) for row in section(page, "comparison").find(".//tbody")]
    assert rows == ["sst"]
    assert "not scored" in text_of(section(page, "scores"))


def test_colours_and_dashes_tell_runs_apart(comparison):
    figure = section(comparison, "curves").find(".//figure")
    assert [g.get("class") for g in figure.iter("g")] == ["run-0", "run-1", "run-2"]
    key = section(comparison, "curves").find("./ul")
    assert [text_of(item) for item in key] == ["seed-0", "seed-1", "seed-2"]
    style = text_of(comparison.find(".//style"))
    for number in range(1, 8):
        assert f"--run-{number}:" in style
        assert f".run-{number} .curve {{ stroke-dasharray:" in style


def test_a_trained_run_from_start_to_page(tmp_path, capsys):
    folder = train_tiny(tmp_path, "--profile", "--smart.weight", "1")
    capsys.readouterr()
    page = report_on(folder)
    assert capsys.readouterr().out == f"{folder / 'report.html'}: open it in a browser\n"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['dev']['overall']:.3f}" in text_of(page.find(".//header"))
    assert "Stages of a round" not in text_of(section(page, "time"))
    # The page goes when the run is replaced.
    train_tiny(tmp_path, "--overwrite")
    assert not (folder / "report.html").exists()


def test_several_runs_have_their_page_where_one_is(tmp_path, monkeypatch):
    runs = [made_up_run(tmp_path / name) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 0
    assert (tmp_path / "report.html").exists()
    assert not any((run / "report.html").exists() for run in runs)


def test_what_cannot_be_used_is_one_line(tmp_path, capsys):
    run = made_up_run(tmp_path / "run")
    assert "is not the folder of a run" in refused([str(tmp_path)], capsys)
    assert "is not the folder of a run" in refused([str(tmp_path / "none")], capsys)
    assert "given twice" in refused([str(run), str(run)], capsys)
    assert "at most 8" in refused([f"{run}{i}" for i in range(9)], capsys)
    assert "name the folder of a run" in refused([], capsys)
    assert "see `sbrrt-fast report --help`" in refused(["--colour", "red"], capsys)
    assert "cannot be written" in refused([str(run), "--output", str(tmp_path)], capsys)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.json", "[]", "is not what training wrote"),
        ("metrics.json", "{", "is not what training wrote"),
        ("metrics.json", "{}", "is not what training wrote (dev: Field required)"),
        ("metrics.json", '{"dev": {}, "rounds": "x"}', "is not what training wrote (rounds: "),
        ("metrics.jsonl", "{}\n", "metrics.jsonl:1: is not a line that training wrote"),
        ("metrics.jsonl", '{"round": 1}\n{\n', "metrics.jsonl:2: "),
        ("config.yaml", "nonsense: 1\n", "unknown key 'nonsense'"),
        ("evaluation/dev-sst.jsonl", "{}\n", "dev-sst.jsonl:1: is no row of an evaluation"),
    ],
)
def test_a_damaged_file_is_named_and_the_old_page_stays(run, tmp_path, capsys, name, text, reason):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "report.html").write_text("old")
    (folder / name).write_text(text)
    assert reason in refused([str(folder)], capsys)
    assert (folder / "report.html").read_text() == "old"


def test_a_log_of_a_long_run_stays_a_small_page(tmp_path):
    folder = made_up_run(tmp_path / "run", with_rows=False)
    lines = [{"round": i, "sst/loss": 1 / i, "rounds_per_second": 1.0} for i in range(1, 20_001)]
    write_lines(folder / "metrics.jsonl", lines)
    report_on(folder)
    assert (folder / "report.html").stat().st_size < 200_000
