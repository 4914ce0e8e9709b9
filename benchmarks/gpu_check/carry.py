"""Copies a backbone with bf16 weights, half as large, to be carried to a machine without a network.

    python -m benchmarks.gpu_check.carry DIR [--backbone minilm]

There ``BACKBONE=DIR`` names it. Every float tensor is rounded to bfloat16; config, pooling and
tokenizer are copied. Training keeps float32 weights, which then begin with the rounded ones.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.backbone import POOLING_FOLDER, TOKENIZER_FILES, resolve_backbone
from sbrrt_fast.model.bert import MiniBert

MOST_BYTES = 64 * 2**20
OTHERS = ("config.json", "modules.json", f"{POOLING_FOLDER}/config.json", *TOKENIZER_FILES)


def carry(source: Path, folder: Path) -> int:
    """Writes the copy and returns its size in bytes.

    Raises:
        WeightsError: the source has no ``model.safetensors``, the folder exists, or the copy is
            larger than 64 MiB.
    """
    weights = source / "model.safetensors"
    if not weights.is_file():
        raise WeightsError(f"{source}: has no model.safetensors, which is what is copied")
    if folder.exists():
        raise WeightsError(f"{folder}: is there already; give a new folder")
    size = sum(2 * x.numel() for x in load_file(weights).values())
    if size > MOST_BYTES:
        raise WeightsError(f"{source}: {size >> 20} MiB in bf16, more than {MOST_BYTES >> 20} MiB")
    folder.mkdir(parents=True)
    tensors = {n: _rounded(x) for n, x in load_file(weights).items()}
    save_file(tensors, folder / weights.name, metadata={"format": "pt"})
    for name in OTHERS:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    MiniBert.from_folder(folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16) if x.is_floating_point() else x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="minilm", help="minilm, a folder or a hub id")
    args = parser.parse_args()
    try:
        size = carry(resolve_backbone(args.backbone), args.folder)
    except WeightsError as error:
        raise SystemExit(str(error)) from None
    print(f"{args.folder}: {size / 2**20:.1f} MiB; BACKBONE={args.folder} names it there")


if __name__ == "__main__":
    main()
