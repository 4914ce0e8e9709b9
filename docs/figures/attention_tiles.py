"""Draws attention_tiles.svg, the picture of docs/kernels.md, beside itself."""

from __future__ import annotations

from pathlib import Path

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")  # one per warp
LENGTH, PADDED, TILE, UNIT = 20, 32, 16, 7  # tokens, tokens, rows, pixels of a token
CELL = 24  # pixels of an element of the fragment


def rect(x, y, width, height, fill, opacity=1.0, stroke="#333"):
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"'
        f' fill-opacity="{opacity}" stroke="{stroke}"/>'
    )


def text(x, y, words, size=12, anchor="start"):
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def scores(x, y, head, warps):
    """One (sequence, head): 32 padded queries by 32 padded keys, a warp for 16 queries."""
    size = PADDED * UNIT
    parts = [text(x, y - 8, f"head {head}: {LENGTH} queries x {LENGTH} keys")]
    for i, warp in enumerate(warps):
        top = y + i * TILE * UNIT
        parts.append(rect(x, top, size, TILE * UNIT, "#fff"))
        height = (min(LENGTH, (i + 1) * TILE) - i * TILE) * UNIT
        parts.append(rect(x, top, LENGTH * UNIT, height, COLOURS[warp], 0.45))
        parts.append(text(x + size + 6, top + TILE * UNIT / 2, f"warp {warp}"))
    for key in range(0, PADDED, 8):
        left = x + key * UNIT
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left}" y2="{y + size}" stroke="#999"/>')
    return parts


def fragment(x, y):
    """The accumulator of mma: which lane has which of the 16 x 8 scores."""
    parts = [text(x, y - 24, "one 16 x 8 tile of scores in a warp's registers:")]
    parts.append(text(x, y - 8, "the number is the lane, the shade c[0], c[1] or c[2], c[3]"))
    for row in range(16):
        for column in range(8):
            lane, half = row % 8 * 4 + column // 2, row // 8
            place = x + column * CELL, y + row * CELL
            parts.append(rect(*place, CELL, CELL, COLOURS[0], 0.55 if half else 0.2))
            parts.append(text(place[0] + CELL / 2, place[1] + 16, lane, 11, "middle"))
    parts.append(text(x + 8 * CELL + 8, y + 4.5 * CELL, "rows g = lane / 4"))
    parts.append(text(x + 8 * CELL + 8, y + 12.5 * CELL, "rows g + 8"))
    return parts


def picture():
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="800" height="560"']
    parts[0] += ' font-family="sans-serif"><rect width="800" height="560" fill="#fff"/>'
    parts.append(text(20, 24, "a block: 2 heads of a sequence of 20 tokens (longest: 32)", 14))
    parts += scores(20, 60, 0, (0, 1))
    parts += scores(20, 320, 1, (2, 3))
    parts += fragment(400, 110)
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
