"""Tables as SVG: bars with their spread. Plain text, so that nothing has to be installed to draw them."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from benchmarks.tables import Table, number

_WIDTH, _LABELS, _FIGURES, _BAR, _GAP, _TOP = 760, 250, 130, 18, 8, 46
_FONT = 'font-family="sans-serif" font-size="12"'
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
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-weight="bold">{escape(table.title)}</text>',
        _text(10, 37, f"{table.unit}; {better}{scale}; lines: least to most", 'fill="#555"'),
    ]
    for place, (row, spread) in enumerate(spreads.items()):
        top = _TOP + place * (_BAR + _GAP)
        middle, bottom_line = top + _BAR / 2, top + _BAR - 5
        colour = _OURS if row.startswith("mppool") else _OTHERS
        if row in table.references[:1] and colour != _OURS:
            colour = _REFERENCE
        start, width = _LABELS + length(spread.least), length(spread.middle)
        end = _LABELS + length(spread.most)
        lines += [
            _text(_LABELS - 8, bottom_line, row, 'text-anchor="end"'),
            f'<rect x="{_LABELS}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<path d="M{start:.1f} {middle}H{end:.1f}" stroke="#222"/>',
            _text(end + 6, bottom_line, number(spread.middle)),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'
