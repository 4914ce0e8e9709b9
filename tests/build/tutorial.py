"""docs/tutorial.md and the files that its reader has."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.build.markdown import ROOT, blocks_of

PAGE = ROOT / "docs" / "tutorial.md"
MESSAGES = ROOT / "docs" / "tutorial" / "messages.csv"


def texts(language: str) -> list[str]:
    """The page's blocks of a language."""
    return [block.text for block in blocks_of(PAGE) if block.language == language]


def write_files(folder: Path, backbone: str = "minilm") -> None:
    """The table, the recipe as it is printed but for its encoder, and the new messages."""
    shutil.copy(MESSAGES, folder)
    (recipe,) = texts("yaml")
    (folder / "messages.yaml").write_text(recipe.replace("minilm", backbone), encoding="utf-8")
    (folder / "new.txt").write_text(texts("csv")[1], encoding="utf-8")
