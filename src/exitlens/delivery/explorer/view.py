"""The explorer's callbacks: what was done on the page -> what is shown."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from exitlens.delivery.explorer.core import Explorer, cover
from exitlens.delivery.explorer.page import answer_page, routed_page
from exitlens.display import data_uri
from exitlens.errors import DataError, ExitlensError

SIDE = {1: 240, 2: 180}  # pixels that a map is wide, at least, by the number of networks
NEVER = 1.01  # where a threshold's slider ends: no score is that high


class View:
    """The callbacks: what was done on the page -> what is shown."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.examples = explorer.examples()
        self.texts = explorer.example_texts() if explorer.is_text else []

    def example_buttons(self) -> str:
        """Buttons with the example images."""
        button = Markup('<button type="button" data-example="{}"><img src="{}" alt="Example: {}"></button>')
        rows = [button.format(i, data_uri(one.picture), one.truth) for i, one in enumerate(self.examples)]
        return str(Markup('<div class="xl-examples">{}</div>').format(Markup("").join(rows)))

    def text_buttons(self) -> str:
        """Buttons with the example texts."""
        button = Markup('<button type="button" data-example="{}">{}</button>')
        rows = [button.format(i, text) for i, text in enumerate(self.texts)]
        return str(Markup('<div class="xl-examples">{}</div>').format(Markup("").join(rows)))

    # --- what was done ---

    def start(self, *thresholds: float) -> list[Any]:
        """The page was opened: the first example, answered."""
        if self.explorer.is_text:
            text = self.texts[0] if self.texts else "Write a text and press Enter."
            return [text, text, *self._answers(text, thresholds)]
        picture = self.examples[0].picture
        return [picture, _board(picture), *self._answers(picture, thresholds)]

    def start_routed(self, *thresholds: float) -> Any:
        """The page was opened: what the thresholds do, for each network."""
        pages = [self.route(i)(*values) for i, values in enumerate(self._split(thresholds))]
        return pages if len(pages) > 1 else pages[0]

    def choose(self, choice: str, *thresholds: float) -> list[Any]:
        """An example image was picked."""
        picture = self.examples[_index(choice, len(self.examples))].picture
        return [picture, _board(picture), "", *self._answers(picture, thresholds)]

    def choose_text(self, choice: str, *thresholds: float) -> list[Any]:
        """An example text was picked."""
        text = self.texts[_index(choice, len(self.texts))]
        return [text, text, *self._answers(text, thresholds)]

    def say(self, text: str, *thresholds: float) -> list[Any]:
        """A text was written."""
        if not text.strip():
            return [None, *self._nothing("Write a text first.")]
        return [text, *self._answers(text, thresholds)]

    def upload(self, path: str | None, *thresholds: float) -> list[Any]:
        """A file came, of whatever kind."""
        if path is None:
            return self._refused("No file came.")
        try:
            picture = self.explorer.read(Path(path))
        except DataError as error:
            return self._refused(str(error))
        return [picture, _board(picture), "", *self._answers(picture, thresholds)]

    def say_again(self, text: str | None, *thresholds: float) -> list[Any]:
        """A threshold was moved under a text."""
        return self._nothing("Write a text first.") if text is None else self._answers(text, thresholds)

    def paint(self, shown: Image.Image | None, strokes: str, *thresholds: float) -> list[Any]:
        """The brush or a threshold was moved."""
        if shown is None:
            return self._nothing("Choose an image first.")
        try:
            painted = _decode(strokes)
        except DataError as error:
            return self._nothing(str(error))
        return self._answers(cover(shown, painted), thresholds)

    def uncover(self, shown: Image.Image | None, *thresholds: float) -> list[Any]:
        """All strokes were taken away."""
        if shown is None:
            return ["", "", *self._nothing("Choose an image first.")]
        return [_board(shown), "", *self._answers(shown, thresholds)]

    def route(self, index: int) -> Any:
        """The callback for a network's thresholds: its page of what they do."""

        def routed(*values: float) -> str:
            thresholds = _thresholds(values, self.explorer.subjects[index].policy.thresholds)
            subject = self.explorer.subjects[index]
            report = self.explorer.routed(index, thresholds)
            moved = thresholds != subject.policy.thresholds
            by_hand = moved or subject.policy.calibration is None
            return routed_page(subject, report, by_hand, self.explorer.kind)

        return routed

    # --- what is shown ---

    def _answers(self, shown: Image.Image | str, thresholds: Sequence[float]) -> list[str]:
        pages = []
        try:
            for i, values in enumerate(self._split(thresholds)):
                chosen = _thresholds(values, self.explorer.subjects[i].policy.thresholds)
                answer = self.explorer.answer(i, shown, chosen)
                pages.append(
                    answer_page(answer, None if isinstance(shown, str) else shown, SIDE[len(self.explorer.subjects)])
                )
        except ExitlensError as error:
            return self._nothing(str(error))
        return [*pages, ""]

    def _split(self, thresholds: Sequence[float]) -> list[tuple[float, ...]]:
        parts, rest = [], tuple(thresholds)
        for subject in self.explorer.subjects:
            count = len(subject.policy.thresholds)
            parts.append(rest[:count])
            rest = rest[count:]
        return parts

    def _refused(self, reason: str) -> list[Any]:
        return [None, "", "", *self._nothing(reason)]

    def _nothing(self, reason: str) -> list[Any]:
        alert = Markup('<p class="xl-error" role="alert">{}</p>').format(reason)
        return [*[""] * len(self.explorer.subjects), str(alert)]


def at_slider(threshold: float) -> float:
    """Where a threshold's slider stands."""
    return round(min(threshold, NEVER), 3)


def _thresholds(values: Sequence[float], calibrated: Sequence[float]) -> tuple[float, ...]:
    """Sliders as thresholds; one that stands where it was put first means the calibrated number, exactly."""
    pairs = zip(values, calibrated, strict=True)
    found = [exact if abs(v - at_slider(exact)) < 1e-9 else v for v, exact in pairs]
    return tuple(math.inf if t > 1.0 else float(t) for t in found)


def _index(choice: str, count: int) -> int:
    number = choice.partition(":")[0]
    return int(number) if number.isdigit() and int(number) < count else 0


def _board(picture: Image.Image) -> str:
    """The picture with a canvas over it, to paint on."""
    size = f'width="320" height="{max(1, round(320 * picture.height / picture.width))}"'
    text = "Paint over a part to cover it; with the keyboard, arrows move and space paints"
    shown = Markup(
        '<div class="xl-board"><img src="{}" alt="The image that is answered"><canvas id="xl-brush" {} tabindex="0" '
    )
    rest = Markup('tabindex="0" role="application" aria-label="{}"></canvas></div><p>{}.</p>')
    return str(shown.format(data_uri(picture.convert("RGB")), Markup(size)) + rest.format(text, text))


def _decode(strokes: str) -> Image.Image | None:
    """What was painted, from the page's data URI.

    Raises:
        DataError: for anything else.
    """
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
