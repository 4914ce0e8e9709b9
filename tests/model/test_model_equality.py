"""MiniBert computes what transformers.BertModel computes, forwards and backwards."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model.bert import MiniBert

SENTENCES = [
    "A gorgeous, witty, seductive movie.",
    "No.",
    "It's the kind of pigeonhole-resisting romp that Hollywood too rarely provides, naïve or not!",
    "Which is the best (and cheapest) way to get from 10 Downing St. to the airport at 3:45?",
    "",
]


@dataclass(frozen=True)
class Shape:
    """A random encoder and the lengths of the sequences it is given."""

    num_layers: int
    num_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    layer_norm_eps: float = 1e-12


SHAPES = [
    Shape(1, 1, 32, (1,)),
    Shape(1, 3, 64, (7, 1, 13), layer_norm_eps=1e-2),
    Shape(2, 4, 32, (5, 19, 2, 11, 3)),
    Shape(3, 2, 64, (128, 31, 65)),
    Shape(12, 4, 32, (17, 9, 1)),
    Shape(12, 2, 64, (23, 23)),
]
SMALL = Shape(2, 3, 32, (9, 4, 1, 6))


@dataclass(frozen=True)
class Inputs:
    """A padded batch in Hugging Face's form: int64 [num_sequences, max_length] each."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor

    @property
    def is_real(self) -> torch.Tensor:
        return self.attention_mask.bool()

    def batch(self, layout: str) -> TokenBatch:
        if layout == "padded":
            return TokenBatch.from_padded(self.input_ids, self.attention_mask, self.token_type_ids)
        lengths, real = self.attention_mask.sum(dim=1), self.is_real
        ids, types = self.input_ids[real], self.token_type_ids[real]
        rows = torch.arange(len(lengths))
        return TokenBatch.from_packed(ids, types, torch.zeros_like(ids).bool(), lengths, rows)


def random_inputs(shape: Shape, seed: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    size = (len(shape.lengths), max(shape.lengths))
    ids = torch.randint(1, 97, size, generator=generator)  # 0 is transformers' padding_idx
    mask = (torch.arange(size[1]) < torch.tensor(shape.lengths)[:, None]).long()
    types = torch.randint(0, 3, size, generator=generator)
    return Inputs(ids * mask, mask, types * mask)


def random_transformers_model(shape: Shape) -> transformers.BertModel:
    """Every parameter random, biases and LayerNorm too, so that none can be mistaken."""
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=shape.num_heads * shape.head_dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=83,
        max_position_embeddings=128,
        type_vocab_size=3,
        layer_norm_eps=shape.layer_norm_eps,
    )
    model = transformers.BertModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = centre + 0.1 * noise
    return model


def model_pair(shape: Shape, folder) -> tuple[transformers.BertModel, MiniBert]:
    theirs = random_transformers_model(shape)
    theirs.save_pretrained(folder)
    return theirs, MiniBert.from_folder(folder, pooling="cls")


def their_outputs(model, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the real tokens [num_tokens, hidden]; pooled [num_sequences, hidden]."""
    output = model(**vars(inputs))
    return output.last_hidden_state[inputs.is_real], output.pooler_output


def our_outputs(model: MiniBert, inputs: Inputs, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch = inputs.batch(layout)
    hidden = model.encode(model.embed(batch), batch)
    return batch.pad(hidden)[inputs.is_real], model.pool(hidden, batch)


def assert_same_outputs(theirs, ours: MiniBert, inputs: Inputs, layout: str) -> None:
    with torch.no_grad():
        expected, got = their_outputs(theirs, inputs), our_outputs(ours, inputs, layout)
    for name, want, have in zip(("hidden states", "pooled"), expected, got, strict=True):
        assert want.std() > 0.05, "the comparison needs outputs that vary"
        assert (want - have).abs().max() <= 1e-5, name


@pytest.fixture(scope="module")
def minilm_pair(minilm_dir):
    theirs = transformers.BertModel.from_pretrained(minilm_dir).eval()
    return theirs, MiniBert.from_folder(minilm_dir, pooling="cls")


@pytest.fixture(scope="module")
def minilm_inputs(minilm_dir) -> dict[str, Inputs]:
    tokenizer = Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    pairs = list(zip(SENTENCES, reversed(SENTENCES), strict=True))
    encoded = {"single": tokenizer.encode_batch(SENTENCES), "cross": tokenizer.encode_batch(pairs)}
    return {
        kind: Inputs(
            torch.tensor([e.ids for e in encodings]),
            torch.tensor([e.attention_mask for e in encodings]),
            torch.tensor([e.type_ids for e in encodings]),
        )
        for kind, encodings in encoded.items()
    }


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind", ["single", "cross"])
def test_minilm_equals_transformers(minilm_pair, minilm_inputs, kind, layout):
    inputs = minilm_inputs[kind]
    assert not inputs.is_real.all()
    assert_same_outputs(*minilm_pair, inputs, layout)


def test_minilm_forward_takes_hugging_face_tensors(minilm_pair, minilm_inputs):
    theirs, ours = minilm_pair
    inputs = minilm_inputs["cross"]
    with torch.no_grad():
        expected = theirs(**vars(inputs)).last_hidden_state
        got = ours(**vars(inputs))
    assert (expected - got)[inputs.is_real].abs().max() <= 1e-5


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_encoder_equals_transformers(shape, layout, tmp_path):
    assert_same_outputs(*model_pair(shape, tmp_path), random_inputs(shape), layout)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "floor"),
    [(torch.float64, 1e-11, 1e-14), (torch.float32, 1e-4, 1e-6)],
    ids=["float64", "float32"],
)
def test_gradients_equal_transformers(dtype, tolerance, floor, layout, tmp_path):
    """Per tensor, relative to its norm; the floor is relative to the largest gradient.

    The key biases' true gradient is zero (a constant added to a row of scores cancels in the
    softmax), so that only rounding is left of it.
    """
    inputs = random_inputs(SMALL)
    theirs, ours = (model.to(dtype) for model in model_pair(SMALL, tmp_path))
    expected = gradients(theirs, their_outputs(theirs, inputs))
    got = gradients(ours, our_outputs(ours, inputs, layout))
    assert expected.keys() == got.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, want in expected.items():
        error = (want - got[name]).norm()
        assert error <= tolerance * want.norm() + floor * largest, name
        assert want.norm() > 1e-4 * largest or name.endswith("key.bias"), f"{name} is not tested"


def gradients(model, outputs) -> dict[str, torch.Tensor]:
    """Of a fixed random combination of the outputs, with respect to every parameter."""
    generator = torch.Generator().manual_seed(2)
    total = sum(
        (output * torch.randn(output.shape, generator=generator, dtype=torch.float64)).sum()
        for output in outputs
    )
    total.backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}
