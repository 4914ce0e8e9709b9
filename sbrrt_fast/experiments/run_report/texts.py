"""Numbers as they are printed, with a typographic minus."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"


def decimal(value: float, spec: str = ".3f") -> str:
    """A number by a format specification; ``+.3f`` shows the sign of positive ones."""
    return format(value, spec).replace("-", MINUS)


def with_interval(value: float, interval: tuple[float, float] | None) -> str:
    """A score with its interval, in words."""
    if interval is None:
        return decimal(value)
    low, high = (decimal(bound) for bound in interval)
    return f"{decimal(value)}, 95% interval {low} to {high}"


def percent(share: float) -> str:
    return f"{share:.0%}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
