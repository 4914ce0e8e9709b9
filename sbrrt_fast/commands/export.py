"""``sbrrt-fast export``: a trained model for other programs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sbrrt_fast.checksums import CHECKSUMS, checksummed_directory
from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.errors import OutputError
from sbrrt_fast.files import make_folder, write_text, writing
from sbrrt_fast.messages import printable
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.hub import write_description
from sbrrt_fast.model.io import CARD, write_tasks
from sbrrt_fast.training.saved_run import SavedModel, read_saved

_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportArguments:
    """Write a trained run's model as ONNX and compare its outputs in onnxruntime.

    Attributes:
        run: folder of the run, the --output of its training, or of a saved model.
        onnx: folder to write: a new or empty one, or that of an earlier export.
        model: which of the run's models: best on dev, or last.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    onnx: Annotated[Path, arg(metavar="FOLDER")]
    model: Literal["best", "last"] = "best"


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(ExportArguments, argv, "sbrrt-fast export")
    _check_folder(arguments.onnx)
    _check_libraries()
    saved = read_saved(arguments.run, which=arguments.model, device="cpu", precision="fp32")
    _check_encoder(saved)
    make_folder(arguments.onnx.resolve().parent)
    with checksummed_directory(arguments.onnx) as folder:
        difference = _write(saved, folder)
    for path in sorted(arguments.onnx.rglob("*.onnx")):
        print(f"{printable(path)}: {path.stat().st_size / 1024:,.0f} KiB")
    print(f"compared with the model in onnxruntime: outputs differ by at most {difference:.1e}")
    return 0


def _write(saved: SavedModel, folder: Path) -> float:
    """Fills a folder; returns the largest difference of the graphs' outputs from the model's."""
    from sbrrt_fast.model.onnx_check import largest_difference
    from sbrrt_fast.model.onnx_graphs import write_graphs
    from sbrrt_fast.training.cards.onnx_readme import onnx_readme

    model, tokenizer = saved.model, saved.tokenizer
    longest = min(saved.config.model.max_length, model.config.max_position_embeddings)
    write_description(model.encoder, folder, tokenizer, longest)
    write_tasks(model, folder)
    write_graphs(model, folder)
    write_text(folder / CARD, onnx_readme(model, longest))
    return largest_difference(model, folder, tokenizer, longest)


def _check_encoder(saved: SavedModel) -> None:
    """OutputError unless the graphs are ours."""
    if not isinstance(saved.model.encoder, MiniBert):
        raise OutputError(
            "--onnx: writes encoders whose layers are BERT's, and this one is a "
            f"{saved.model.config.architecture}; its folder is one of transformers, for which "
            "optimum has an exporter"
        )


def _check_libraries() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise OutputError(
            f"--onnx: needs {', '.join(missing)}, which is not installed; run "
            "`pip install 'sbrrt_fast[onnx]'`"
        )


def _check_folder(folder: Path) -> None:
    """OutputError unless a folder is new, empty, or one that this command made."""
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file; give --onnx a folder")
        is_used = folder.is_dir() and any(folder.iterdir())
    if is_used and not ((folder / CHECKSUMS).is_file() and (folder / "model.onnx").is_file()):
        raise OutputError(
            f"{folder}: holds other files than an earlier export; give --onnx a new folder"
        )
