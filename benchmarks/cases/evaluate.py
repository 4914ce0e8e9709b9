"""Predictions for rows of STS, against Hugging Face's BertModel.

Ours puts rows of like length together and pads nothing. The peer takes 32 rows at a time in their
order, padded to the longest, as a plain evaluation loop does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases.round import has_slow_bf16, slow_bf16_reason
from benchmarks.harness.benchmark import Absent, Benchmark
from benchmarks.harness.check import check_close
from benchmarks.harness.rounds import SBRRT, Rounds, build_model
from benchmarks.harness.shapes import MODELS, Case
from benchmarks.harness.stored import stored_task
from benchmarks.peers.optional import hugging_face
from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.training.scores.evaluate import predict

TASK, ROWS_PER_BATCH = "sts", 32
PEERS = {
    "hf fp32 eager": ("fp32", "eager"),
    "hf fp32 sdpa": ("fp32", "sdpa"),
    "hf bf16 sdpa": ("bf16", "sdpa"),
}
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}


class PaddedEvaluation:
    """An evaluation loop over Hugging Face's model."""

    def __init__(self, ours, task: TokenizedTask, precision: str, attention: str):
        self.device, self.is_low = next(ours.parameters()).device, precision == "bf16"
        self.model = hugging_face().HuggingFaceModel(ours, attention).to(self.device).eval()
        rows = torch.arange(task.num_examples).split(ROWS_PER_BATCH)
        self.batches = [self._padded(task, examples) for examples in rows]

    def _padded(self, task: TokenizedTask, examples: Tensor) -> tuple[Tensor, Tensor]:
        tokens = assemble(task, examples).padded()
        shape = tokens.num_sequences, tokens.max_length
        return tokens.input_ids.view(shape), tokens.is_real.long().view(shape)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        outputs = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_low):
            for ids, mask in self.batches:
                ids, mask = ids.to(self.device), mask.to(self.device)
                pooled = self.model.encoder(self.model.embed(ids), mask)
                outputs += self.model.head_outputs([(TASK, len(ids))], pooled)
        return torch.cat(outputs).float().cpu()


class Evaluate(Benchmark):
    name, graph = "evaluate", False
    variants = ("ours fp32", "ours bf16", *PEERS)

    def cases(self):
        for model in MODELS if self.settings.is_gpu else ["minilm"]:
            yield Case(model, f"sts-{256 if self.settings.is_gpu else 64}", "", "predict")

    def tokens(self, case: Case) -> int:
        return len(self._task(case).tokens)

    def budget(self, case: Case):
        return replace(self.settings.op_budget, seconds=8.0, min_samples=3, warm_ups=1)

    def _task(self, case: Case) -> TokenizedTask:
        return stored_task(TASK, int(case.batch.partition("-")[2]))

    def calls(self, case: Case, variant: str, num_sets: int):
        encoder = Rounds.of(self.settings, case).encoder()
        model = build_model(encoder, SBRRT, self.device, 0.1).eval()
        task = self._task(case)
        call = self._call(model, task, variant)
        expected = self.once("fp32", case, lambda: predict(model, task, precision="fp32"))
        check_close(f"{self.name} {variant}", [call()], [expected], TOLERANCE[variant.split()[1]])
        return [call]

    def _call(self, model, task: TokenizedTask, variant: str):
        if variant in PEERS:
            if "bf16" in variant and has_slow_bf16(self.settings):
                raise Absent(slow_bf16_reason(self.settings))
            return PaddedEvaluation(model, task, *PEERS[variant])
        precision = variant.split()[1]
        return lambda: predict(model, task, precision=precision)
