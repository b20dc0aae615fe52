"""Tables as SVG: bars with their spread. Plain text, so that nothing has to be installed to draw them."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from benchmarks.tables import Table, number

_WIDTH, _LABELS, _FIGURES, _BAR, _GAP, _TOP = 760, 250, 130, 18, 8, 46
_OURS, _OTHERS, _REFERENCE = "#2f6fb0", "#9aa5b1", "#c9a227"


def svg(table: Table) -> str:
    """A bar per row, as long as its median, with a line from its least to its most.

    Where rows differ by more than a factor of 50, the lengths are logarithms.
    """
    spreads = {row: table.spread(row) for row in table.samples}
    most = max(spread.most for spread in spreads.values()) or 1.0
    least = min((s.least for s in spreads.values() if s.least > 0), default=most)
    logarithmic = most / least > 50
    room = _WIDTH - _LABELS - _FIGURES
    bottom = math.log10(least) - 0.3

    def length(value: float) -> float:
        if not logarithmic:
            return room * value / most
        if value <= 0:
            return 0.0
        return room * (math.log10(value) - bottom) / (math.log10(most) - bottom)

    height = _TOP + len(spreads) * (_BAR + _GAP) + 10
    better = "more is better" if table.more_is_better else "less is better"
    scale = ", logarithmic scale" if logarithmic else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-weight="bold">{escape(table.title)}</text>',
        f'<text x="10" y="37" fill="#555" font-size="11">{escape(table.unit)}; {better}{scale}; '
        "lines: least to most</text>",
    ]
    for place, (row, spread) in enumerate(spreads.items()):
        top = _TOP + place * (_BAR + _GAP)
        middle, text = top + _BAR / 2, top + _BAR - 5
        colour = _OURS if row.startswith("mppool") else _OTHERS
        if row in table.references[:1] and colour != _OURS:
            colour = _REFERENCE
        parts += [
            f'<text x="{_LABELS - 8}" y="{text}" text-anchor="end">{escape(row)}</text>',
            f'<rect x="{_LABELS}" y="{top}" width="{length(spread.middle):.1f}" height="{_BAR}" '
            f'fill="{colour}"/>',
            f'<line x1="{_LABELS + length(spread.least):.1f}" x2="{_LABELS + length(spread.most):.1f}" '
            f'y1="{middle}" y2="{middle}" stroke="#222"/>',
            f'<text x="{_LABELS + length(spread.most) + 6:.1f}" y="{text}">{number(spread.middle)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
