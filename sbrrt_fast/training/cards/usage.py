"""How a saved model is loaded in three libraries, as blocks of Python that can be run."""

from __future__ import annotations

import json
from collections.abc import Iterator

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.multitask import MultiTaskModel

FOLDER = "path/to/this/folder"  # what a reader replaces
FIRST, SECOND = ["A quiet, funny film."], ["The film is funny and calm."]

_POOLED = {
    "mean": [
        '    mask = tokens["attention_mask"][..., None]',
        "    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)",
    ],
    "cls_token": ["    return hidden[:, 0]"],
    "cls": ["    return encoder.pooler(hidden)"],
}
_DENSE = [
    '    dense = load_file(f"{folder}/2_Dense/model.safetensors")',
    '    return (hidden[:, 0] @ dense["linear.weight"].T + dense["linear.bias"]).tanh()',
]


def usage(model: MultiTaskModel, max_length: int) -> str:
    """The section of a model card, in Markdown."""
    return "\n\n".join(
        [
            "With `sentence-transformers`, the vectors that the heads take. They are not of length "
            "1; `normalize_embeddings=True` makes them so, and a cosine is the same with it.",
            _block(_sentence_transformers()),
            "With `transformers` and the heads in `heads.safetensors`, all outputs:",
            _block(_transformers(model, max_length)),
            "With `sbrrt_fast`, predictions of any number of texts:",
            _block(_sbrrt_fast(model)),
            "`sbrrt-fast export` writes the model as ONNX.",
        ]
    )


def example(task: TaskConfig) -> str:
    """A list of one input of a task, as Python."""
    first, second = json.dumps(FIRST[0]), json.dumps(SECOND[0])
    return f"[({first}, {second})]" if task.is_pair else f"[{first}]"


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


def _sentence_transformers() -> str:
    return f'''from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{FOLDER}")
vectors = model.encode({json.dumps(FIRST + SECOND)})
print(model.similarity(vectors, vectors))'''


def _sbrrt_fast(model: MultiTaskModel) -> str:
    name, task = next(iter(model.tasks.items()))
    return f'''from sbrrt_fast import load

model = load("{FOLDER}")
print(model.predict("{name}", {example(task)}).labels)'''


def _transformers(model: MultiTaskModel, max_length: int) -> str:
    is_dense = model.encoder.pooling == "cls" and not model.config.has_pooler
    pooled = "\n".join(_DENSE if is_dense else _POOLED[model.encoder.pooling])
    outputs = "\n".join(_output_lines(model))
    return f'''import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder = "{FOLDER}"
tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
heads = load_file(f"{{folder}}/heads.safetensors")


@torch.no_grad()
def vectors_of(*texts):  # float32 [num_texts, {model.config.hidden_size}]
    how = {{"padding": True, "truncation": True, "max_length": {max_length}}}
    tokens = tokenizer(*texts, return_tensors="pt", **how)
    hidden = encoder(**tokens).last_hidden_state  # [num_texts, length, {model.config.hidden_size}]
{pooled}


def linear(task, features):
    return features @ heads[f"{{task}}.classifier.weight"].T + heads[f"{{task}}.classifier.bias"]


first, second = {json.dumps(FIRST)}, {json.dumps(SECOND)}
u, v = vectors_of(first), vectors_of(second)
outputs = {{}}
{outputs}
print(outputs)'''


def _output_lines(model: MultiTaskModel) -> Iterator[str]:
    parts = "u, v, (u - v).abs()" if model.pair_features == "concat_difference" else "u, v"
    features = {
        "single": "u",
        "cross": "vectors_of(first, second)",
        "siamese": f"torch.cat([{parts}], dim=-1)",
    }
    for name, task in model.tasks.items():
        yield f'outputs["{name}"] = {_output(name, task, features[task.encoding])}'


def _output(name: str, task: TaskConfig, features: str) -> str:
    linear = f'linear("{name}", {features})'
    if task.head == "cosine":
        return f"{task.label_range[1]!r} * torch.cosine_similarity(u, v)  # the value"
    if task.head == "regression":
        units = f'heads["{name}.units.scale"] * {linear}[:, 0] + heads["{name}.units.mean"]'
        return f"{units}  # the value"
    if task.head == "binary":
        return f"{linear}[:, 0]  # the logit of the second label"
    return f"{linear}  # logits of {task.num_classes} classes"
