"""Attention maps drawn over images: one map, a strip of all exits, a sheet of many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from exitlens.display import COLOURS, pick_class_colour, pick_exit_colour, shades, to_picture
from exitlens.functional.maps import enlarge
from exitlens.types import ExitView, Explanation
from exitlens.types.outputs import exit_name
from exitlens.types.preprocessing import Preprocess
from exitlens.types.tasks import BACKGROUND, IGNORE

SCALE = 160  # pixels, the side of a gallery picture


def draw_image(image: Tensor, preprocess: Preprocess | None, side: int = SCALE) -> Image.Image:
    """Turn network input ``(C,H,W)`` back into a picture of about ``side`` pixels, or twice that if the image is large."""
    shown = (preprocess or Preprocess((1, 1), (0.5,), (0.25,))).restore(image.float().cpu())
    picture = to_picture(shown)
    picture.thumbnail((2 * side, 2 * side))
    factor = max(1, round(side / max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def draw_overlay(base: Image.Image, attention: Tensor) -> Image.Image:
    """Draw an attention map ``(h,w)`` in colour over the picture in grey, as bright as in :func:`draw_heat`."""
    share = enlarge(shades(attention.float())[None], (base.height, base.width))[0].numpy()
    colour = colormaps[COLOURS](share)[..., :3]
    grey = np.asarray(base.convert("L"), dtype=float)[..., None] / 255
    alpha = 0.75 * (0.25 + 0.75 * share[..., None])
    return Image.fromarray((255 * (alpha * colour + (1 - alpha) * grey)).round().astype(np.uint8))


def draw_heat(attention: Tensor) -> Image.Image:
    """Draw a map ``(h,w)`` with a pixel for each location, for pages to enlarge; transparent without attention."""
    share = shades(attention).numpy()
    pixels = (255 * colormaps[COLOURS](share)).round().astype(np.uint8)
    pixels[..., 3] = (255 * (0.15 + 0.85 * share)).round().astype(np.uint8)
    return Image.fromarray(pixels)


def draw_labels(labels: Tensor, classes: Sequence[str]) -> Image.Image:
    """Draw classes ``(H,W)`` in their colours, to lay over a picture; pixels without one, and background, are clear."""
    pixels = np.zeros((*labels.shape, 4), np.uint8)
    for label in labels.unique().tolist():
        if label != IGNORE and not is_background(label, classes):
            pixels[(labels == label).numpy()] = (*pick_class_colour(label), 165)
    return Image.fromarray(pixels)


def is_background(label: int, classes: Sequence[str]) -> bool:
    """Return whether a class is what is left where no other is."""
    return label < len(classes) and classes[label] == BACKGROUND


def draw_view(base: Image.Image, why: Explanation, view: ExitView) -> Image.Image:
    """Draw an exit's map over the picture, or the classes that it tells the pixels."""
    if view.pixels is None:
        return draw_overlay(base, view.attention)
    over = draw_labels(view.pixels.labels.cpu(), why.classes).resize(base.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(base.convert("L").convert("RGBA"), over).convert("RGB")


def draw_key(classes: Sequence[str], told: Sequence[int], width: int) -> Image.Image:
    """Draw names of classes beside their colours, in lines of this width."""
    step, line, places, x, y = 14, 18, list[tuple[int, int, int]](), 8, 2
    names = [classes[label] if classes else str(label) for label in told]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for label, name in zip(told, names, strict=True):
        needed = step + 14 + round(measure.textlength(name))
        x, y = (8, y + line) if x > 8 and x + needed > width else (x, y)
        places.append((x, y, label))
        x += needed
    key = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(key)
    for (x, y, label), name in zip(places, names, strict=True):
        colour = "#d0d0d0" if is_background(label, classes) else pick_class_colour(label)
        draw.rectangle((x, y + 2, x + 10, y + 12), fill=colour)
        draw.text((x + step, y + 1), name, fill="black")
    return key


def _draw_key_of(whys: Sequence[Explanation], width: int) -> Image.Image | None:
    """Draw the key to the classes that any exit tells; ``None`` if exits answer whole images."""
    told = sorted({label for why in whys for view in why.exits for label in view.answer})
    return None if whys[0].exits[0].pixels is None else draw_key(whys[0].classes, told, width)


def draw_mask(labels: Tensor, size: tuple[int, int]) -> Image.Image:
    """Return classes ``(H,W)`` as a picture of indices with a palette, enlarged to ``size`` (height, width)."""
    picture = Image.fromarray(labels.byte().cpu().numpy())
    picture.putpalette([channel for label in range(IGNORE) for channel in pick_class_colour(label)] + [255] * 3)
    return picture.resize((size[1], size[0]), Image.Resampling.NEAREST)


def draw_input(explanation: Explanation, side: int = 224) -> Image.Image:
    """Draw the image that was explained as :func:`draw_image` does."""
    preprocess = explanation.preprocess
    return draw_image(explanation.inputs, preprocess if isinstance(preprocess, Preprocess) else None, side)


def draw_strip(explanation: Explanation) -> Image.Image:
    """Draw the image and every exit's overlay side by side, with captions and a frame around the exit that answered."""
    base = draw_input(explanation)
    tiles = [base, *(draw_view(base, explanation, view) for view in explanation.exits)]
    captions = ["input"]
    for view in explanation.exits:
        if view.pixels is not None:
            captions.append(f"{exit_name(view.exit, explanation.num_exits)} ({view.confidence:.2f})")
            continue
        share = f"{100 * view.probabilities[view.label]:.0f}%" if view.labels is None else f"({view.confidence:.2f})"
        captions.append(f"{exit_name(view.exit, explanation.num_exits)}: {explanation.name_answer(view)} {share}")
    for label in explanation.labels:
        tiles.append(draw_overlay(base, label.speaks_for))
        captions.append(f"speaks for {explanation.name(label.label)} {100 * label.probability:.0f}%")
    if explanation.relevance is not None:
        tiles.append(draw_overlay(base, explanation.speaks_for))
        captions.append("what the answer depends on")
    colour = pick_exit_colour(explanation.answered, explanation.num_exits)
    gap, foot = 8, 22
    width = len(tiles) * (base.width + gap) + gap
    key = _draw_key_of([explanation], width)
    sheet = Image.new("RGB", (width, base.height + foot + gap + (key.height if key else 0)), "white")
    if key is not None:
        sheet.paste(key, (0, base.height + foot + gap))
    draw = ImageDraw.Draw(sheet)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = gap + i * (base.width + gap)
        sheet.paste(tile, (x, gap))
        if i == explanation.answered + 1:
            draw.rectangle((x - 4, gap - 4, x + base.width + 3, gap + base.height + 3), outline=colour, width=4)
        draw.text((x + 2, base.height + gap + 5), caption, fill="black")
    return sheet


def draw_contact_sheet(explanations: Mapping[str, Sequence[Explanation]], titles: Sequence[str] = ()) -> Image.Image:
    """Draw a row for each image, with its title under it: the input, then every exit's overlay, network by network."""
    columns = [(name, k) for name, rows in explanations.items() for k in range(len(rows[0].exits))]
    first = next(iter(explanations.values()))
    side, gap, head = 120, 6, 40  # pixels; side: of each picture
    width = gap + (1 + len(columns)) * (side + gap) + gap * (len(explanations) + 1)
    step = side + gap + (20 if titles else 0)
    key = _draw_key_of(first, width)
    sheet = Image.new("RGB", (width, head + len(first) * step + gap + (key.height if key else 0)), "white")
    if key is not None:
        sheet.paste(key, (0, head + len(first) * step))
    draw = ImageDraw.Draw(sheet)
    for row, why in enumerate(first):
        sheet.paste(_draw_square(why, side), (gap, head + row * step))
    for row, title in enumerate(titles):
        draw.text((gap, head + row * step + side + 4), title, fill="black")
    x, previous = gap + side + gap, ""
    for name, k in columns:
        if name != previous:
            x += 2 * gap
            draw.text((x, 4), name, fill="black")
            previous = name
        count = explanations[name][0].num_exits
        draw.text((x, 22), exit_name(k, count), fill="#444444")
        for row, why in enumerate(explanations[name]):
            y = head + row * step
            sheet.paste(draw_view(_draw_square(why, side), why, why.exits[k]), (x, y))
            if k == why.answered:
                draw.rectangle((x - 2, y - 2, x + side + 1, y + side + 1), outline=pick_exit_colour(k, count), width=3)
        x += side + gap
    return sheet


def _draw_square(why: Explanation, side: int) -> Image.Image:
    return draw_input(why, side).resize((side, side), Image.Resampling.NEAREST)
