#!/usr/bin/env python3
"""Turns what a terminal shows into a picture (SVG) whose text can be read and copied.

    tmux new-session -d -s picture -x 110 -y 20 'larder top shop -n shop'
    tmux capture-pane -ep -t picture | devenv/picture.py 'kubectl larder top shop -n shop' > docs/pictures/top.svg
"""

import re
import sys
from html import escape

WIDTH, HEIGHT, MARGIN = 8.4, 18, 14  # of a character, of a line, around the text
# Of the colors that the program uses (cli/src/paint.rs), and the text itself.
CLASSES = {"1": "bold", "31": "bad", "32": "good"}
STYLE = """
  text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d8dee4; white-space: pre; }
  .bold { font-weight: bold; fill: #ffffff; } .good { fill: #6bc46d; } .bad { fill: #f47067; } .title { fill: #8b949e; }
"""


def runs(line, classes):
    """Yields (column, text, classes) of each run; `classes` is kept from line to line, as on a terminal."""
    column = 0
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if code := re.fullmatch(r"\x1b\[([0-9;]*)m", part):
            for number in code[1].split(";"):
                if number in CLASSES:
                    classes.add(CLASSES[number])
                elif number in ("", "0"):
                    classes.clear()
                elif number == "39":
                    classes -= {"bad", "good"}
        elif part:
            yield column, part, " ".join(sorted(classes))
            column += len(part)


def picture(title, lines):
    columns = max([len(title), *(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines)])
    width, height = columns * WIDTH + 2 * MARGIN, (len(lines) + 2) * HEIGHT + MARGIN
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}">'
    yield f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    yield '<rect width="100%" height="100%" rx="8" fill="#161b22"/>'
    yield f'<text x="{MARGIN}" y="{MARGIN + 10}" class="title">$ {escape(title)}</text>'
    classes = set()
    for number, line in enumerate(lines, start=2):
        for column, text, names in runs(line, classes):
            if not text.strip():
                continue
            place = f'x="{MARGIN + column * WIDTH:.1f}" y="{MARGIN + 10 + number * HEIGHT}" textLength="{len(text) * WIDTH:.1f}"'
            named = f' class="{names}"' if names else ""
            yield f'<text {place}{named} xml:space="preserve">{escape(text)}</text>'
    yield "</svg>"


def main():
    lines = [line.rstrip() for line in sys.stdin.read().rstrip("\n").split("\n")]
    print("\n".join(picture(sys.argv[1], lines)))


if __name__ == "__main__":
    main()
