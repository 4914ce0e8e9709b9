"""Pages that several test files look at."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.experiments.made_up_run import (
    made_up_run,
)
from tests.experiments.report_pages import report_on


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
