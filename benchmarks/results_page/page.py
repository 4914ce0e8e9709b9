"""The text of ``docs/results.md``: a template, filled in with what the records give."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from benchmarks.results_page.figures import figures
from benchmarks.results_page.results import Results
from sbrrt_fast.experiments.report import pipes

TEMPLATE = "results.md.j2"


def page(results: Results) -> str:
    """The page. A value that no run has is an error of the template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown
    )
    environment.filters["pipes"] = pipes
    template = environment.get_template(TEMPLATE)
    text = template.render(results=results, pictures=list(figures(results)), **_FACTS)
    return re.sub(r"\n{3,}", "\n\n", text)


_FACTS = {
    "of_backbone": lambda record: record.backbone,
    "of_precision": lambda record: record.precision,
    "of_processor": lambda record: record.machine.get("gpu") or record.machine.get("processor"),
    "of_commit": lambda record: record.commit,
}
