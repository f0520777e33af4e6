"""Draws docs/figures/flow.svg, from sweep YAML to results: `python docs/figures/flow.py > docs/figures/flow.svg`."""

from __future__ import annotations

from html import escape

WIDTH, HEIGHT = 900, 300
BOX_WIDTH, BOX_HEIGHT = 150, 64

# name, what it does (two lines), x, y
BOXES = (
    ("sweep.yaml", "axes, allocations,", "seeds", 15, 45),
    ("sweep plan", "one run for each", "combination", 195, 45),
    ("sweep submit", "one job array for", "each allocation", 375, 45),
    ("Slurm", "queue, nodes,", "accounting", 555, 45),
    ("ranks", "one for each GPU:", "DDP training", 735, 45),
    ("sweep collect", "one row for", "each run", 375, 205),
    ("table, csv, json", "figures of a step", "and of the link", 195, 205),
)
# the corners of the arrow; label; where the label stands
ARROWS = (
    ("165,77 195,77", "", 0, 0),
    ("345,77 375,77", "", 0, 0),
    ("525,77 555,77", "", 0, 0),
    ("705,77 735,77", "", 0, 0),
    ("450,109 450,205", "ledger: what was asked", 300, 160),
    ("630,109 630,222 525,222", "sacct: how it ended", 505, 160),
    ("810,109 810,254 525,254", "records: what was measured", 625, 246),
    ("375,237 345,237", "", 0, 0),
)
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 }
.name { font-weight: 600 }
.note { font-size: 12px; fill: #555 }
rect { fill: #f4f6fb; stroke: #5468a8 }
path { stroke: #5468a8; stroke-width: 1.5; fill: none; marker-end: url(#tip) }
.place { font-size: 12px; fill: #777 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .note, .place { fill: #aaa } rect { fill: #262b3a }
}
"""


def draw() -> str:
    """The picture as svg."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' role="img" aria-label="From sweep YAML to results">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" style="fill:#5468a8;stroke:none;marker-end:none"/></marker></defs>',
        '<text class="place" x="15" y="30">login node</text><text class="place" x="735" y="30">compute nodes</text>',
    ]
    for name, first, second, x, y in BOXES:
        middle = x + BOX_WIDTH / 2
        parts.append(f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>')
        for text, style, down in ((name, "name", 20), (first, "note", 38), (second, "note", 54)):
            line = f'<text class="{style}" x="{middle:g}" y="{y + down}" text-anchor="middle">{escape(text)}</text>'
            parts.append(line)
    for corners, label, at_x, at_y in ARROWS:
        parts.append(f'<path d="M{corners.replace(" ", " L")}"/>')
        if label:
            parts.append(f'<text class="note" x="{at_x}" y="{at_y}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    print(draw())
