"""Scores as people read them: lines, tables, and what must be said beside them."""

from __future__ import annotations

from sbrrt_fast.config import RunConfig


def flatten_scores(scores: dict) -> dict[str, float]:
    """``{"sst/accuracy": …, …, "overall": …}``, for logs."""
    flat = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{metric}": score for metric, score in value.items()}
        else:
            flat[name] = value
    return flat


def format_scores(scores: dict) -> str:
    """One line: ``sst/accuracy .505  para/accuracy .719  …``."""
    return "  ".join(f"{name} {value:.4f}" for name, value in flatten_scores(scores).items())


def score_table(scores: dict, num_examples: dict[str, int] | None = None) -> str:
    """A row per task and metric and one for the overall score, with the number of rows if given."""
    rows = [("task", "metric", "score", "rows" if num_examples else "")]
    for name, value in scores.items():
        if isinstance(value, dict):
            count = f"{num_examples[name]:,}" if num_examples else ""
            rows += [(name, metric, f"{score:.4f}", count) for metric, score in value.items()]
        else:
            rows.append((name, "", f"{value:.4f}", ""))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"  {a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}".rstrip()
        for a, b, c, d in rows
    )


def exposure_note(config: RunConfig) -> str:
    """What to know of a Quora score from MiniLM, or an empty string."""
    is_minilm = "minilm" in config.model.backbone.lower()
    if not (is_minilm and "para" in config.tasks and config.data_dir is not None):
        return ""
    return (
        "all-MiniLM-L6-v2 saw Quora's duplicate pairs in its own training: this para score does "
        "not compare with that of an encoder which did not"
    )
