"""``README.md`` of an ONNX folder: what is in it, and a block of Python that runs it."""

from __future__ import annotations

from collections.abc import Iterator

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.onnx_graphs import HeadGraph
from sbrrt_fast.training.cards.model_card import tasks_table
from sbrrt_fast.training.cards.usage import FIRST, FOLDER, SECOND


def onnx_readme(model: MultiTaskModel, max_length: int) -> str:
    """The text of the file."""
    return f"""# {", ".join(model.tasks)}, as ONNX

| file | what | inputs | outputs |
| --- | --- | --- | --- |
{_files_table(model)}

n is open, and so is the length up to {model.config.max_position_embeddings}; padding comes last.
`probabilities` are in the order of the labels. Tokenizer and settings are beside the graphs.

## Tasks

{tasks_table(model.tasks)}

## How to run it

```python
{_code(model, max_length)}
```
"""


def _files_table(model: MultiTaskModel) -> str:
    width, tokens = model.config.hidden_size, "`input_ids`, `attention_mask`, `token_type_ids`"
    lines = [
        f"| `model.onnx` | the encoder | {tokens}: int64 [n, length] | `last_hidden_state` [n, "
        f"length, {width}], `sentence_embedding` [n, {width}] |"
    ]
    for name, task in model.tasks.items():
        graph = HeadGraph(model, name)
        inputs = ", ".join(f"`{x}`" for x in graph.inputs)
        outputs = ", ".join(f"`{x}` {_shape(x, task)}" for x in graph.outputs)
        lines.append(
            f"| `heads/{name}.onnx` | a head | {inputs}: float32 [n, {width}] | {outputs} |"
        )
    return "\n".join(lines)


def _shape(output: str, task: TaskConfig) -> str:
    if output == "value" or (output == "logits" and task.head == "binary"):
        return "[n]"
    return f"[n, {task.num_classes or 2}]"


def _code(model: MultiTaskModel, max_length: int) -> str:
    calls = "\n".join(_calls(model))
    return f'''import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = "{FOLDER}"
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.enable_truncation({max_length})
tokenizer.enable_padding()
encoder = onnxruntime.InferenceSession(f"{{folder}}/model.onnx")


def vectors_of(texts):  # float32 [len(texts), {model.config.hidden_size}]
    tokens = [(t.ids, t.attention_mask, t.type_ids) for t in tokenizer.encode_batch(texts)]
    ids, mask, types = np.array(tokens, dtype=np.int64).transpose(1, 0, 2)
    inputs = {{"input_ids": ids, "attention_mask": mask, "token_type_ids": types}}
    return encoder.run(["sentence_embedding"], inputs)[0]


def outputs_of(task, **vectors):
    head = onnxruntime.InferenceSession(f"{{folder}}/heads/{{task}}.onnx")
    return dict(zip([x.name for x in head.get_outputs()], head.run(None, vectors)))


first, second = {FIRST!r}, {SECOND!r}
u, v = vectors_of(first), vectors_of(second)
outputs = {{}}
{calls}
print(outputs)'''


def _calls(model: MultiTaskModel) -> Iterator[str]:
    vectors = {
        "single": "sentence_embedding=u",
        "cross": "sentence_embedding=vectors_of(list(zip(first, second)))",
        "siamese": "sentence_embedding_a=u, sentence_embedding_b=v",
    }
    for name, task in model.tasks.items():
        yield f'outputs["{name}"] = outputs_of("{name}", {vectors[task.encoding]})'
