"""dropout(LN(word + position + type)) at a round's sizes, against what one writes in torch.

Bytes per element forward: three tables read, y written (16). Backward: grad and the tables read,
and the dense gradient of the word table written: 30522 x hidden x 4 bytes, zeros for the most.
``eager`` writes those zeros too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, SITE, Cost, Differentiable, Variant
from benchmarks.harness.shapes import BACKWARD, BOTH, FORWARD, Case, cases, token_batch
from benchmarks.peers.torch_ops import eager_or_compiled
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.ops.embed import embed

EPS = 1e-12


def eager(ids, positions, types, word, position, type_, weight, shift, p):
    total = F.embedding(ids, word) + F.embedding(positions, position) + F.embedding(types, type_)
    return F.dropout(F.layer_norm(total, weight.shape, weight, shift, EPS), p, p > 0)


class Embed(Differentiable):
    """Float32 alone: embeddings are what the residual stream begins with."""

    name = "embed"
    variants = (*BACKENDS, "eager", "compile")

    def cases(self):
        return cases(self.settings, dtypes=("fp32",), parts=(FORWARD, BACKWARD))

    def tensors(self, case: Case) -> list[Tensor]:
        config = case.config
        sizes = config.vocab_size, config.max_position_embeddings, config.type_vocab_size
        hidden = {"device": self.device, "size": (config.hidden_size,)}
        tables = [torch.randn(n, config.hidden_size, device=self.device) for n in sizes]
        return [*tables, torch.randn(**hidden), torch.randn(**hidden)]

    def peer(self, case: Case, name: str) -> Variant:
        function, tokens = eager_or_compiled(name, eager, self.settings, case), self._tokens(case)
        ids = tokens.input_ids, tokens.positions, tokens.token_types
        return Variant(lambda inputs, p: function(*ids, *inputs, p))

    def _tokens(self, case: Case) -> TokenBatch:
        generator = torch.Generator().manual_seed(1)
        return token_batch(case.lengths, case.config.vocab_size, generator).to(self.device)

    def ours(self, case: Case, backend: str) -> Variant:
        tokens, config, rng = self._tokens(case), case.config, self.rng
        ids = tokens.input_ids, tokens.positions, tokens.token_types
        offsets = tokens.hidden_offsets(config.max_position_embeddings, config.hidden_size)

        def run(inputs: list[Tensor], p: float) -> Tensor:
            return embed(*ids, *inputs, EPS, p, rng, SITE, offsets, backend=backend)

        return Variant(run)

    def cost(self, case: Case) -> Cost:
        hidden, tokens = case.config.hidden_size, case.num_tokens
        table = 4 * case.config.vocab_size * hidden
        forward, backward = 16 * tokens * hidden, 16 * tokens * hidden + table
        parts = {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}
        return Cost(parts[case.part])
