"""Makes a report's page and finds its parts."""

import xml.etree.ElementTree as ET
from pathlib import Path

from sbrrt_fast.cli import main


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
