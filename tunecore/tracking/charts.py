"""Line charts as inline SVG and matrices as shaded tables: HTML text, no script, no network.

Colours are CSS variables, so one drawing serves light and dark. Text is escaped here; callers pass plain strings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from tunecore.tracking.progress import short

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 28
NUM_COLOURS = 6
MAX_POINTS = 400
"""More points than pixels only make the file large: longer lines are thinned, extremes kept."""
SMOOTH_FROM = 60
"""Lines of more points than this are drawn pale, with a running mean over a fortieth of them on top."""


class Series(NamedTuple):
    """One line: (step, value) in order; values that are not finite break it. ``dots`` marks and labels each point."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers (1, 2, 2.5 or 5 times a power of ten) from at most ``low`` to at least ``high``."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label, short enough for the margin: 0.25, 1,000, 2.5e-4."""
    if value and (abs(value) < 1e-2 or abs(value) >= 1e5):
        digits, power = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,g}" if abs(value) >= 1 else f"{value:g}"


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Keep the first, last, lowest and highest point of each stretch, at most about ``limit`` in all."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) * 4 / limit)
    kept: list[tuple[float, float]] = []
    for begin in range(0, len(points), size):
        part = range(begin, min(begin + size, len(points)))
        low, high = min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])
        kept.extend(points[i] for i in sorted({part[0], low, high, part[-1]}))
    return kept


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Mean of the last ``window`` values at each point."""
    out, total = [], 0.0
    for i, (x, y) in enumerate(points):
        total += y
        if i >= window:
            total -= points[i - window][1]
        out.append((x, total / min(i + 1, window)))
    return out


def _stretches(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """The parts between values that are not finite."""
    part: list[tuple[float, float]] = []
    for point in points:
        if math.isfinite(point[1]):
            part.append(point)
        elif part:
            yield part
            part = []
    if part:
        yield part


class _Frame(NamedTuple):
    """From data to picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / ((self.x_high - self.x_low) or 1)
        up = (y - self.y_low) / ((self.y_high - self.y_low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in points)


def _axes(frame: _Frame, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[float]) -> Iterator[str]:
    for y in y_ticks:
        _, py = frame.at(frame.x_low, y)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{tick_text(y)}</text>'
    for x, text in x_ticks:
        if frame.x_low <= x <= frame.x_high:
            px, _ = frame.at(x, frame.y_low)
            anchor = "end" if px > WIDTH - RIGHT - 14 else "middle"
            yield f'<text class="tick" x="{px:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(frame: _Frame, series: Series, colour: int) -> Iterator[str]:
    noisy = len(series.points) > SMOOTH_FROM and not series.dots
    for part in _stretches(series.points):
        if len(part) == 1 and not series.dots:
            px, py = frame.at(*part[0])
            yield f'<circle class="dot c{colour}" cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>'
            continue
        yield f'<path class="line c{colour}{" pale" if noisy else ""}" d="{frame.path(thin(part))}"/>'
        if noisy:
            smooth = running_mean(part, max(len(series.points) // 40, 2))
            yield f'<path class="line c{colour}" d="{frame.path(thin(smooth))}"/>'
    if series.dots:
        for x, y in thin([p for p in series.points if math.isfinite(p[1])], 120):
            px, py = frame.at(x, y)
            label = escape(f"{series.name}, step {short(x)}: {short(y)}")
            yield f'<circle class="dot c{colour}" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>{label}</title></circle>'


def _legend(series: Sequence[Series]) -> str:
    items = []
    for i, one in enumerate(series):
        finite = [y for _, y in one.points if math.isfinite(y)]
        last = f" <b>{short(finite[-1])}</b>" if finite else ""
        items.append(f'<li><span class="key c{i % NUM_COLOURS}"></span>{escape(one.name)}{last}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def line_chart(title: str, series: Sequence[Series], *, note: str = "") -> str:
    """A figure of lines over steps, with a legend that gives each last value; "" where nothing is finite.

    At most six lines; the values that were not finite are counted below the picture with their first step.
    """
    series = [one for one in series if any(math.isfinite(y) for _, y in one.points)][:NUM_COLOURS]
    if not series:
        return ""
    finite = [(x, y) for one in series for x, y in one.points if math.isfinite(y)]
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    y_ticks = ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    frame = _Frame(x_low, x_high if x_high > x_low else x_low + 1, y_ticks[0], y_ticks[-1])
    body = [*_axes(frame, [(x, tick_text(x)) for x in ticks(x_low, frame.x_high)], y_ticks)]
    for i, one in enumerate(series):
        body.extend(_line(frame, one, i % NUM_COLOURS))
    notes = [note] if note else []
    for one in series:
        odd = [x for x, y in one.points if not math.isfinite(y)]
        if odd:
            rows = f"{len(odd)} of {len(one.points)} rows"
            notes.append(f"{one.name}: not finite in {rows}, first at step {short(odd[0])}")
    caption = "".join(f"<p class='note'>{escape(text)}</p>" for text in notes)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{_legend(series)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
        f"{caption}</figure>"
    )


class Point(NamedTuple):
    """One point of a scatter chart; ``label`` shows under the pointer, ``colour`` is one of NUM_COLOURS."""

    x: float
    y: float
    label: str
    colour: int = 0


def scatter_chart(
    title: str, points: Sequence[Point], *, log: bool = False, names: Sequence[str] | None = None, note: str = ""
) -> str:
    """A figure of points; "" where there are none.

    Args:
        title: plain text.
        points: those with a value that is not finite are left out.
        log: the x axis counts in powers of ten; every x is above 0.
        names: x counts into these names instead of being a number.
        note: a line below.
    """
    points = [point for point in points if math.isfinite(point.y)]
    if not points:
        return ""
    y_ticks = ticks(min(p.y for p in points), max(p.y for p in points))
    if names is not None:
        places = [(float(i), _shortened(name, len(names))) for i, name in enumerate(names)]
        frame = _Frame(-0.5, len(names) - 0.5, y_ticks[0], y_ticks[-1])
    else:
        across = [math.log10(p.x) if log else p.x for p in points]
        low, high = min(across), max(across)
        pad = (high - low) * 0.05 or (0.3 if log else abs(low) * 0.1 or 1.0)
        frame = _Frame(low - pad, high + pad, y_ticks[0], y_ticks[-1])
        places = _log_ticks(frame) if log else [(x, tick_text(x)) for x in ticks(frame.x_low, frame.x_high)]
    body = [*_axes(frame, places, y_ticks)]
    for point in points:
        x, y = frame.at(math.log10(point.x) if log else point.x, point.y)
        body.append(f'<circle class="dot c{point.colour}" cx="{x:.1f}" cy="{y:.1f}" r="4">')
        body.append(f"<title>{escape(point.label)}</title></circle>")
    caption = f"<p class='note'>{escape(note)}</p>" if note else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
        f"{caption}</figure>"
    )


def _log_ticks(frame: _Frame) -> list[tuple[float, str]]:
    """1, 2 and 5 times each power of ten in sight; the powers alone where that would be crowded."""
    powers = range(math.floor(frame.x_low), math.ceil(frame.x_high) + 1)
    factors = (1, 2, 5) if frame.x_high - frame.x_low < 2 else (1,)
    return [(math.log10(f) + p, tick_text(f * 10.0**p)) for p in powers for f in factors]


def _shortened(name: str, count: int) -> str:
    """A name that fits beside its neighbours."""
    room = max(60 // count, 4)
    return name if len(name) <= room else name[: room - 1] + "…"


def share_bar(title: str, shares: Sequence[tuple[str, float]]) -> str:
    """A figure of one bar cut by share, with a legend; "" where there is nothing to share."""
    shares = [(name, share) for name, share in shares if share > 0]
    if not shares:
        return ""
    bounds = [0.0]
    for _, share in shares:
        bounds.append(bounds[-1] + share * WIDTH)
    parts, keys = [], []
    for i, ((name, share), (begin, end)) in enumerate(zip(shares, pairwise(bounds), strict=True)):
        label, colour = escape(f"{name} {share:.1%}"), i % NUM_COLOURS
        width = max(end - begin - 2, 0.5)
        parts.append(f'<rect class="fill c{colour}" x="{begin:.1f}" y="0" width="{width:.1f}" height="26" rx="3">')
        parts.append(f"<title>{label}</title></rect>")
        keys.append(f'<li><span class="key c{colour}"></span>{escape(name)} <b>{share:.1%}</b></li>')
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><ul class="legend">{"".join(keys)}</ul>'
        f'<svg viewBox="0 0 {WIDTH} 26" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """A table of plain strings; the first column is a row header, the others are set right where they are numbers."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="scroll"><table>{title}{top}<tbody>{body}</tbody></table></div>'


def heat_table(matrix: Sequence[Sequence[float]], labels: Sequence[str], *, caption: str) -> str:
    """A confusion matrix: row = true label, column = prediction, shade = share of the row."""
    head = "".join(f'<th class="turn"><span>{escape(label)}</span></th>' for label in labels)
    rows = []
    for label, counts in zip(labels, matrix, strict=True):
        total = sum(counts) or 1
        cells = []
        for other, count in zip(labels, counts, strict=True):
            share = count / total
            tip = escape(f"{label} taken for {other}: {short(count)} ({share:.0%})")
            shown = short(count) if count else "·"
            cells.append(f'<td style="--v:{share:.3f}" title="{tip}">{shown}</td>')
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="heat"><caption>{escape(caption)}</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
