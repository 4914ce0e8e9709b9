"""JSON files that came with a checkpoint: whatever is in them, an error is one line with the file's
name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.messages import shown

_LONGEST_NUMBER = 40  # digits; no count, size or id has more


def read_json(path: Path, kind: type[dict] | type[list] = dict) -> Any:
    """The object (``dict``) or the array (``list``) in a JSON file.

    Raises:
        WeightsError: the file cannot be read, is not JSON, or holds another kind of value.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_whole_number)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise WeightsError(
            f"{path}: not valid JSON for a checkpoint, it is nested too deeply; download or save "
            "it again"
        ) from None
    except ValueError as error:  # malformed JSON or UTF-8
        raise WeightsError(f"{path}: not valid JSON ({error}); download or save it again") from None
    if not isinstance(value, kind):
        raise WeightsError(
            f"{path}: expected a JSON {_KINDS[kind]}, got {kind_of(value)}; download or save it "
            "again"
        )
    return value


def as_json(value: Any) -> str:
    """A value as JSON for messages: on one line, and cut where it is long."""
    try:
        text = json.dumps(value)
    except (RecursionError, TypeError, ValueError):
        text = kind_of(value)
    return shown(text)


def kind_of(value: Any) -> str:
    """A value's kind in JSON's words: ``an object``, ``null``, ``the number 3``."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict | list):
        return f"an {_KINDS[type(value)]}"
    return f"the {'string' if isinstance(value, str) else 'number'} {as_json(value)}"


_KINDS = {dict: "object", list: "array"}


def _whole_number(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)
