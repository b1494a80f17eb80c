"""Tables and maps as HTML that loads nothing else, legible on light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from PIL import Image
from torch import Tensor

COLOURS = "inferno"  # perceptually uniform, legible in grey and to colour-blind readers
# Colours of exits: Okabe and Ito's (darker or lighter where they are faint on white or black) and three more, in turn.
EARLY = ("#0072B2", "#CC8200", "#009E73", "#C2679B", "#2F9ADB", "#D55E00", "#8A73D6", "#A0522D", "#7A8B00", "#00868B")
FINAL = "#767676"
# Colours of classes of pixels: a dark one for the first, which is often the background, then Tableau's without grey.
CLASS_COLOURS = (
    "#202050", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive",
    "tab:cyan", "gold",
)  # fmt: skip
GOLDEN = 0.618034  # share of the circle between the hues of further classes
SHADE = (0, 114, 178)  # a blue that works in grey and for colour-blind readers
DARK = 0.93  # shades from which white stands out better than black: either has a contrast of 4.5 or more
QUOTES = {'"': "&quot;"}


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Render a table with a caption; colours are the page's own, so that it is legible in dark mode."""
    cells = "".join(f'<th scope="col" style="text-align:left">{escape(name)}</th>' for name in head)
    lines = ["".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    shown = f'<caption style="text-align:left;caption-side:top">{escape(caption)}</caption>'
    return f"<table>{shown}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def data_uri(image: Image.Image, small: bool = True, photo: bool = False) -> str:
    """Encode a picture as a ``data:`` URI: PNG, or for a ``photo`` the smaller of PNG and JPEG; ``small`` takes longer."""
    buffer, form = io.BytesIO(), "png"
    image.save(buffer, "PNG", **({"optimize": True} if small else {"compress_level": 1}))
    if photo:
        other = io.BytesIO()
        image.save(other, "JPEG", quality=88)
        buffer, form = min((buffer, "png"), (other, "jpeg"), key=lambda pair: len(pair[0].getvalue()))
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def to_picture(shown: Tensor) -> Image.Image:  # (1 or 3,H,W) in [0, 1]
    """Turn pixels into a picture."""
    return from_pixels((shown * 255).round().byte().cpu())


def from_pixels(pixels: Tensor) -> Image.Image:  # (1 or 3,H,W) uint8
    """Turn pixels into a colour picture."""
    return Image.fromarray(np.ascontiguousarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()))


def map_svg(base: Image.Image, attention: Tensor, evidence: Tensor, label: str, width: str = "") -> str:
    """Draw a map ``(h,w)`` as vector squares over a greyed picture; pointing at a square shows its evidence ``(h,w)``."""
    rows, columns = attention.shape
    heat = shades(attention).tolist()
    across, down = base.width / columns, base.height / rows
    cells = []
    for r in range(rows):
        for c in range(columns):
            colour = to_hex(colormaps[COLOURS](heat[r][c]))
            share, adds = 100 * attention[r, c], evidence[r, c]
            title = f"row {r}, column {c}: {share:.1f} % of the attention, evidence {adds:+.3f}"
            place = f'x="{c * across:.2f}" y="{r * down:.2f}" width="{across:.2f}" height="{down:.2f}"'
            fill = f'fill="{colour}" fill-opacity="{0.2 + 0.6 * heat[r][c]:.2f}"'
            cells.append(f"<rect {place} {fill}><title>{title}</title></rect>")
    size = f' width="{width}"' if width else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {base.width} {base.height}"{size} role="img" '
        f'aria-label="{escape(label, QUOTES)}"><image href="{data_uri(base.convert("L"))}" width="{base.width}" '
        f'height="{base.height}"/>{"".join(cells)}</svg>'
    )


def shades(attention: Tensor) -> Tensor:  # (h,w) -> (h,w) in [0, 1]
    """Scale a map by its largest value, but at least by three times that of a uniform map, which so remains pale."""
    return (attention / max(attention.max().item(), 3 / attention.numel())).clamp(0, 1).cpu()


def scale_attention(attention: Tensor, count: int) -> list[float]:
    """Divide the attention of the first ``count`` locations by the largest."""
    return (attention.flatten()[:count] / attention.max().clamp_min(1e-12)).tolist()


def pick_shade(shade: float) -> tuple[str, str]:
    """Return the colours of a name's background and text for a shade in [0, 1]."""
    r, g, b = (round(255 + (c - 255) * shade) for c in SHADE)
    return f"rgb({r},{g},{b})", "#fff" if shade > DARK else "#000"


def shade_names(names: Sequence[str], attention: Tensor) -> list[tuple[str, str, str]]:
    """Return each name with its share of the attention and the CSS style that shows it."""
    shaded = []
    for name, share, shade in zip(names, attention.flatten(), scale_attention(attention, len(names)), strict=False):
        background, text = pick_shade(shade)
        shaded.append((name, f"{float(share):.3f}", f"background: {background}; color: {text}"))
    return shaded


def caption(drawn: str, text: str) -> str:
    """Put a caption above a drawing."""
    return f'<figure style="margin:0"><figcaption style="font-size:0.85em">{escape(text)}</figcaption>{drawn}</figure>'


def names_html(names: Sequence[str], attention: Tensor) -> str:
    """Render names (tokens, groups of features), darker the more attention they have."""
    spans = [
        f'<span style="{style};padding:2px 4px;border-radius:3px" title="{share} of the attention">{escape(name)}</span>'
        for name, share, style in shade_names(names, attention)
    ]
    return f'<p style="line-height:2;margin:0">{" ".join(spans)}</p>'


def pick_exit_colour(k: int, count: int) -> str:
    """Return the colour that stands for exit ``k`` of ``count`` everywhere, as ``#rrggbb``."""
    return FINAL if k == count - 1 else EARLY[k % len(EARLY)]


def pick_class_colour(label: int) -> tuple[int, int, int]:
    """Return the colour that stands for a class of pixels everywhere: one of eleven, then hues far from one another."""
    further = hsv_to_rgb((label * GOLDEN % 1.0, 0.45 + 0.4 * (label % 2), 0.6 + 0.13 * (label % 4)))
    red, green, blue = to_rgb(CLASS_COLOURS[label]) if label < len(CLASS_COLOURS) else further
    return round(255 * red), round(255 * green), round(255 * blue)


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours ``#rrggbb``, from 1 to 21 (WCAG 2.2, relative luminance)."""
    luminances = []
    for colour in (first, second):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        luminances.append(0.2126 * r + 0.7152 * g + 0.0722 * b)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def choose_text_colour(background: str) -> str:
    """Return black or white, whichever is easier to read on ``background``."""
    return max(("#000000", "#ffffff"), key=lambda colour: contrast(colour, background))
