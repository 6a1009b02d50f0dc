"""How do many paths compare at a glance? A bar chart as SVG, on a logarithmic axis, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

ROW_PX, LABEL_PX, PLOT_PX, TOP_PX = 26, 250, 520, 64
OURS, OTHERS = "#4355e8", "#9aa3b2"


def bars(title: str, unit: str, rows: Sequence[tuple[str, float, bool]]) -> str:
    """One bar for each (label, value above 0, is ours)."""
    low = 10 ** math.floor(math.log10(min(value for _, value, _ in rows)))
    high = 10 ** math.ceil(math.log10(max(value for _, value, _ in rows)))
    decades = round(math.log10(high / low))

    def x(value: float) -> float:
        return LABEL_PX + PLOT_PX * math.log10(value / low) / decades

    height = TOP_PX + ROW_PX * len(rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL_PX + PLOT_PX + 80}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="16" y="46" fill="#5b6472">{escape(unit)}, logarithmic axis</text>',
    ]
    for decade in range(decades + 1):
        value = low * 10**decade
        parts.append(f'<path d="M{x(value):.1f} {TOP_PX - 6}V{height - 26}" stroke="#e3e6ec"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{height - 10}" text-anchor="middle" fill="#5b6472">{value:g}</text>')
    for index, (label, value, is_ours) in enumerate(rows):
        y = TOP_PX + ROW_PX * index
        colour = OURS if is_ours else OTHERS
        parts.append(f'<text x="{LABEL_PX - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        parts.append(
            f'<rect x="{LABEL_PX}" y="{y + 3}" width="{x(value) - LABEL_PX:.1f}" height="16" fill="{colour}"/>'
        )
        parts.append(f'<text x="{x(value) + 6:.1f}" y="{y + 16}">{value:.3g}</text>')
    return "\n".join([*parts, "</svg>\n"])
