"""``sbrrt-fast report``: the page is complete, well-formed, and needs nothing from elsewhere."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace

import pytest

from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.experiments.run_report.texts import MINUS
from tests.experiments.made_up_run import (
    METRICS,
    SCORES,
    TASKS,
    class_rows,
    log_lines,
    made_up_run,
    write_rows,
)
from tests.experiments.report_pages import report_on, section, text_of, titles_of

SECTIONS = ["scores", "curves", "adversary", *(f"task-{n}" for n in TASKS)]
SECTIONS += ["time", "recipe", "environment"]


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
