"""Sentence vectors of texts, against sentence-transformers, which sorts them by length too.

Both begin with the same texts and the same weights, tokenise, and end with vectors of length 1.
``32 at a time`` is the batch of both; ours as it is used takes as many texts as have 4096 tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.cases.round import has_slow_bf16, slow_bf16_reason
from benchmarks.harness.benchmark import Absent, Benchmark
from benchmarks.harness.check import check_close
from benchmarks.harness.lengths import typical
from benchmarks.harness.rounds import backbone
from benchmarks.harness.shapes import Case
from benchmarks.peers.optional import sentence_transformer
from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Example, TaskConfig
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.backbone import resolve_backbone
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.training.scores.vectors import sentence_vectors

TEXT = TaskConfig(files={}, text_columns=("text",), label_column="label", head="regression")
PER_BATCH = 32
LIKE, PEER = "32 at a time", "sentence-transformers"
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


class Encode(Benchmark):
    name, graph = "encode", False
    variants = (
        f"ours fp32 {LIKE}", f"{PEER} fp32 {LIKE}", f"ours bf16 {LIKE}", f"{PEER} bf16 {LIKE}",
        "ours fp32", "ours bf16",
    )  # fmt: skip

    def cases(self):
        yield Case(Path(backbone()).name, "texts", "", "vectors")

    def tokens(self, case: Case) -> int:
        return sum(self._lengths())

    def budget(self, case: Case):
        return replace(self.settings.op_budget, seconds=12.0, min_samples=5, warm_ups=2)

    def calls(self, case: Case, variant: str, num_sets: int):
        folder = self.once("folder", case, backbone_folder)
        precision = variant.split()[1]
        if precision == "bf16" and variant.startswith(PEER) and has_slow_bf16(self.settings):
            raise Absent(slow_bf16_reason(self.settings))
        texts = self.once("texts", case, lambda: self._texts(folder))
        call = self._call(folder, texts, variant, precision)
        exact = self.once("fp32", case, lambda: self._ours(folder, texts, "", "fp32")())
        check_close(f"{self.name} {variant}", [call()], [exact], TOLERANCE[precision])
        return [call]

    def _call(self, folder: Path, texts: list[str], variant: str, precision: str):
        if variant.startswith(PEER):
            return self._peer(folder, texts, precision)
        return self._ours(folder, texts, variant, precision)

    def _lengths(self) -> list[int]:
        """In tokens, in random order."""
        lengths = torch.tensor(typical("sts", 1024 if self.settings.is_gpu else 128))
        return lengths[torch.randperm(len(lengths), generator=seeded())].tolist()

    def _texts(self, folder: Path) -> list[str]:
        """Of random words that are one token each."""
        known = load_tokenizer(folder).get_vocab()
        words = sorted(word for word in known if word.isascii() and word.isalpha())
        return [
            " ".join(words[i] for i in torch.randint(len(words), (n - 2,), generator=g).tolist())
            for g in [seeded()]
            for n in self._lengths()
        ]

    def _ours(self, folder: Path, texts: list[str], variant: str, precision: str):
        tokenizer = load_tokenizer(folder)
        encoder = MiniBert.from_folder(folder).to(self.device).eval()
        if LIKE in variant:
            return lambda: self._in_batches(encoder, texts, tokenizer, precision)
        return lambda: F.normalize(
            sentence_vectors(encoder, tokenized(texts, tokenizer), precision=precision)
        )

    @torch.no_grad()
    def _in_batches(
        self, encoder: MiniBert, texts: list[str], tokenizer: Tokenizer, precision: str
    ) -> Tensor:
        """Vectors of 32 texts at a time, the longest first, without padding."""
        vectors = torch.empty(len(texts), encoder.config.hidden_size)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        is_low = precision == "bf16" and not has_slow_bf16(self.settings)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_low):
            for start in range(0, len(order), PER_BATCH):
                chosen = order[start : start + PER_BATCH]
                rows = tokenized([texts[i] for i in chosen], tokenizer)
                batch = assemble(rows, torch.arange(len(chosen))).to(self.device)
                hidden = encoder.encode(encoder.embed(batch), batch)
                vectors[chosen] = encoder.pool(hidden.float(), batch).cpu()
        return F.normalize(vectors)

    def _peer(self, folder: Path, texts: list[str], precision: str):
        """sentence-transformers' own batches and order, in bfloat16 as a whole."""
        model = sentence_transformer(folder, self.device)
        model = model.bfloat16() if precision == "bf16" else model

        def call() -> Tensor:
            vectors = model.encode(
                texts, batch_size=PER_BATCH, convert_to_tensor=True, normalize_embeddings=True,
                show_progress_bar=False,
            )  # fmt: skip
            return vectors.float().cpu()

        return call


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def backbone_folder() -> Path:
    """Of MiniLM or of BACKBONE. Raises Absent."""
    try:
        return resolve_backbone(backbone())
    except WeightsError as error:
        raise Absent(str(error)) from None


def tokenized(texts: list[str], tokenizer: Tokenizer) -> TokenizedTask:
    examples = [Example(str(i), (text,)) for i, text in enumerate(texts)]
    return TokenizedTask.build("texts", TEXT, "test", examples, tokenizer, 512)
