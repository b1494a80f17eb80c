"""The explorer's callbacks: from an action on the page to what it shows."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image
from torch import Tensor

from exitlens.delivery.explorer.core import Explorer, Shown, cover
from exitlens.delivery.explorer.page import answer_page, routed_page
from exitlens.display import data_uri
from exitlens.errors import DataError, ExitlensError

SIDE = {1: 190, 2: 180}  # the least width of a map in pixels, by the number of networks
SLIDER_END = 1.01  # no score is that high: the exit never answers


class View:
    """One method for each action: it takes the page's values and returns new ones.

    ``relevance`` says whether to show what every exit's answer depends on.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.examples = explorer.examples()
        self.starts_with_relevance = not explorer.is_relevance_slow()

    def example_buttons(self) -> str:
        """Buttons with the examples: images, texts, or the classes of other samples."""
        button = Markup('<button type="button" data-example="{}">{}</button>')
        image = Markup('<img src="{}" alt="Example: {}">')
        faces = []
        for e in self.examples:
            is_picture = isinstance(e.shown, Image.Image)
            faces.append(image.format(data_uri(e.shown), e.truth) if is_picture else e.truth or e.shown)  # type: ignore[arg-type]
        rows = [button.format(i, face) for i, face in enumerate(faces)]
        return str(Markup('<div class="xl-examples">{}</div>').format(Markup("").join(rows)))

    # --- actions ---

    def start(self, relevance: bool, *thresholds: float) -> list[Any]:
        """The page was opened: answers the first example."""
        if not self.examples and not self.explorer.is_text:
            return [None, *self._alert(f"Choose a file of {self.explorer.modality.plural}.")]
        shown = self.examples[0].shown if self.examples else "Write a text and press Enter."
        return [shown, *_place(shown)[:1], *self._answer(shown, relevance, thresholds)]

    def start_routed(self, *thresholds: float) -> Any:
        """The page was opened: evaluates each network's thresholds."""
        pages = [self.route(i)(*values) for i, values in enumerate(self._split(thresholds))]
        return pages if len(pages) > 1 else pages[0]

    def choose(self, choice: str, relevance: bool, *thresholds: float) -> list[Any]:
        """An example was picked."""
        number = choice.partition(":")[0]
        i = int(number) if number.isdigit() and int(number) < len(self.examples) else 0
        return self._open(self.examples[i].shown, relevance, thresholds)

    def say(self, text: str, relevance: bool, *thresholds: float) -> list[Any]:
        """A text was written."""
        if not text.strip():
            return [None, *self._alert("Write a text first.")]
        return [text, *self._answer(text, relevance, thresholds)]

    def upload(self, path: str | None, relevance: bool, *thresholds: float) -> list[Any]:
        """A file of any kind was uploaded."""
        if path is None:
            return self._refuse("No file came.")
        try:
            picture = self.explorer.read(Path(path))
        except DataError as error:
            return self._refuse(str(error))
        return self._open(picture, relevance, thresholds)

    def say_again(self, text: str | Tensor | None, relevance: bool, *thresholds: float) -> list[Any]:
        """A threshold was moved under a text, or a sample of another kind."""
        wanted = "Write a text first." if self.explorer.is_text else "Choose a file first."
        return self._alert(wanted) if text is None else self._answer(text, relevance, thresholds)

    def paint(self, shown: Image.Image | None, strokes: str, relevance: bool, *thresholds: float) -> list[Any]:
        """The brush or a threshold was moved."""
        if shown is None:
            return self._alert("Choose an image first.")
        try:
            painted = _decode_strokes(strokes)
        except DataError as error:
            return self._alert(str(error))
        return self._answer(cover(shown, painted), relevance, thresholds)

    def uncover(self, shown: Image.Image | None, relevance: bool, *thresholds: float) -> list[Any]:
        """All strokes were removed."""
        if shown is None:
            return ["", "", *self._alert("Choose an image first.")]
        return [_draw_board(shown), "", *self._answer(shown, relevance, thresholds)]

    def route(self, index: int) -> Any:
        """The callback that evaluates a network's thresholds."""

        def render(*values: float) -> str:
            run = self.explorer.runs[index]
            thresholds = _read_sliders(values, run.policy.thresholds)
            report = self.explorer.evaluate(index, thresholds)
            by_hand = thresholds != run.policy.thresholds or run.policy.calibration is None
            return routed_page(run, report, by_hand, self.explorer.kind)

        return render

    # --- results ---

    def _open(self, shown: Shown, relevance: bool, thresholds: Sequence[float]) -> list[Any]:
        return [shown, *_place(shown), *self._answer(shown, relevance, thresholds)]

    def _answer(self, shown: Shown, relevance: bool, thresholds: Sequence[float]) -> list[str]:
        pages = []
        try:
            for i, values in enumerate(self._split(thresholds)):
                chosen = _read_sliders(values, self.explorer.runs[i].policy.thresholds)
                answer = self.explorer.answer(i, shown, chosen, relevance=relevance)
                pages.append(
                    answer_page(answer, shown if isinstance(shown, Image.Image) else None, SIDE[len(self.explorer.runs)])
                )
        except ExitlensError as error:
            return self._alert(str(error))
        return [*pages, ""]

    def _split(self, thresholds: Sequence[float]) -> list[tuple[float, ...]]:
        """The values of each network's sliders."""
        rest = iter(thresholds)
        return [tuple(islice(rest, len(run.policy.thresholds))) for run in self.explorer.runs]

    def _refuse(self, reason: str) -> list[Any]:
        return [None, *(("", "") if self.explorer.is_picture else ()), *self._alert(reason)]

    def _alert(self, reason: str) -> list[Any]:
        alert = Markup('<p class="xl-error" role="alert">{}</p>').format(reason)
        return [*[""] * len(self.explorer.runs), str(alert)]


def _place(shown: Shown) -> list[str]:
    """What the page shows beside the answers: the text; a picture to paint on, and no strokes; nothing of other kinds."""
    if isinstance(shown, Image.Image):
        return [_draw_board(shown), ""]
    return [shown] if isinstance(shown, str) else []


def place_slider(threshold: float) -> float:
    """The position of a threshold's slider."""
    return round(min(threshold, SLIDER_END), 3)


def _read_sliders(values: Sequence[float], calibrated: Sequence[float]) -> tuple[float, ...]:
    """Reads thresholds from sliders; one that was not moved stands for the calibrated number, exactly."""
    pairs = zip(values, calibrated, strict=True)
    found = [exact if abs(v - place_slider(exact)) < 1e-9 else v for v, exact in pairs]
    return tuple(math.inf if t > 1.0 else float(t) for t in found)


def _draw_board(picture: Image.Image) -> str:
    """The picture with a canvas over it, to paint on."""
    size = f'width="320" height="{max(1, round(320 * picture.height / picture.width))}"'
    text = "Paint over a part to cover it; with the keyboard, arrows move and space paints"
    board = Markup(
        '<div class="xl-board"><img src="{}" alt="The image that is answered"><canvas id="xl-brush" {} tabindex="0" '
        'tabindex="0" role="application" aria-label="{}"></canvas></div><p>{}.</p>'
    )
    return str(board.format(data_uri(picture.convert("RGB")), Markup(size), text, text))


def _decode_strokes(strokes: str) -> Image.Image | None:
    """Decodes what was painted from the page's data URI; raises :class:`DataError` for anything else."""
    if not strokes:
        return None
    head, _, body = strokes.partition(",")
    try:
        if head != "data:image/png;base64" or len(body) > 4_000_000:
            raise ValueError("not a small PNG")
        image = Image.open(io.BytesIO(base64.b64decode(body, validate=True)), formats=("PNG",))
        if image.width * image.height > 4_000_000:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.load()
    except Exception as error:  # Pillow raises many kinds for hostile files
        raise DataError(f"strokes: expected what the brush painted ({error})") from error
    return image
