"""The explorer as a local web page (Gradio): it listens on this machine only, and asks nothing of any other."""

from __future__ import annotations

import base64
import io
import math
import os
import threading
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from exitlens.delivery.explorer.core import Explorer, cover
from exitlens.delivery.explorer.page import answer_page, routed_page
from exitlens.errors import DataError, ExitlensError, MissingExtraError
from exitlens.types import Trace
from exitlens.types.display import data_uri, exit_name
from exitlens.workflow.sweeping import sweep

NEVER = 1.01  # where a threshold's slider ends: no score is that high
LARGEST_UPLOAD = "50mb"


def build(explorer: Explorer) -> Any:
    """The page, not served yet.

    Raises:
        MissingExtraError: without Gradio (extra ``app``).
    """
    gradio = import_gradio()
    view = _View(explorer)
    with gradio.Blocks(title="exitlens", analytics_enabled=False) as page:
        gradio.HTML("<h1>Watch a network decide</h1>")
        shown = gradio.State(None)
        choice = gradio.Textbox(elem_id="xl-choice", elem_classes="xl-hidden", show_label=False)
        strokes = gradio.Textbox(elem_id="xl-strokes", elem_classes="xl-hidden", show_label=False)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                if explorer.is_text:
                    upload = None
                    text = gradio.Textbox(label="A text", lines=3, elem_id="xl-text")
                    gradio.HTML(view.text_buttons())
                    board = None
                else:
                    text = None
                    upload = gradio.File(
                        label="Drop or choose an image", file_types=["image"], elem_id="xl-upload", height=150
                    )
                    gradio.HTML(view.example_buttons())
                    board = gradio.HTML(elem_id="xl-board")
                    gradio.Slider(2, 25, 8, step=1, label="Brush, % of the width", elem_id="xl-size", interactive=True)
                    clear = gradio.Button("Uncover everything", elem_id="xl-clear", size="sm")
                    opacity = gradio.Slider(0, 1, 0.75, step=0.05, label="Opacity of the maps", elem_id="xl-opacity")
                message = gradio.HTML(elem_id="xl-message")
            with gradio.Column(scale=3, min_width=320):
                answers, routed, sliders = [], [], []
                with gradio.Row():
                    for i, subject in enumerate(explorer.subjects):
                        with gradio.Column(min_width=320):
                            answers.append(gradio.HTML(elem_id=f"xl-answer-{i}"))
                            rows = []
                            for k, threshold in enumerate(subject.policy.thresholds):
                                label = (
                                    f"{exit_name(k, subject.net.num_exits)} answers from a confidence of (above 1: never)"
                                )
                                value = round(min(threshold, NEVER), 3)
                                rows.append(
                                    gradio.Slider(0, NEVER, value, step=0.001, label=label, elem_id=f"xl-threshold-{i}-{k}")
                                )
                            sliders.append(rows)
                            routed.append(gradio.HTML(elem_id=f"xl-routed-{i}"))
        every = [slider for rows in sliders for slider in rows]
        outputs = [*answers, message]
        one = {"concurrency_id": "answers", "concurrency_limit": 1}  # in turn, so that the last thing done is what is shown
        latest = {"trigger_mode": "always_last", **one}
        if text is not None:
            text.submit(view.say, [text, *every], [shown, *outputs], **one)
            choice.change(view.choose_text, [choice, *every], [text, shown, *outputs], **one)
        if upload is not None:
            upload.upload(view.upload, [upload, *every], [shown, board, strokes, *outputs], **one)
            choice.change(view.choose, [choice, *every], [shown, board, strokes, *outputs], **one)
            strokes.change(view.paint, [shown, strokes, *every], outputs, **latest)
            clear.click(view.uncover, [shown, *every], [board, strokes, *outputs], **one)
            opacity.change(None, opacity, None, js="(v) => document.documentElement.style.setProperty('--xl-opacity', v)")
        for i, rows in enumerate(sliders):
            for slider in rows:
                slider.change(view.route(i), rows, routed[i], show_progress="hidden", trigger_mode="always_last")
                slider.change(view.paint, [shown, strokes, *every], outputs, show_progress="hidden", **latest)
        page.load(view.start, every, [shown, text if board is None else board, *outputs])
        page.load(view.start_routed, every, routed)  # by itself: the trace may still be on its way
    return page


def serve(
    explorer: Explorer, *, port: int | None = None, wait: bool = True, ready: Callable[[str], None] = lambda address: None
) -> str:
    """Serves the page on this machine only and returns its address; with ``wait``, when it is stopped.

    Args:
        explorer: what is shown. port: a free one by default. ready: called with the address once the page is there.

    Raises:
        MissingExtraError: without Gradio (extra ``app``).
    """
    gradio = import_gradio()
    page = build(explorer)
    for i in range(len(explorer.subjects)):
        threading.Thread(target=explorer.trace, args=(i,), daemon=True).start()
    templates = files("exitlens.delivery") / "templates"
    script = (templates / "explorer.js").read_text(encoding="utf-8")
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        theme=theme,
        css=(templates / "explorer.css").read_text(encoding="utf-8"),
        head=f"<script>{script}</script>",
    )
    ready(str(address))
    if wait:
        page.block_thread()
    return str(address)


def import_gradio() -> Any:
    """Gradio, told to ask nothing of other machines.

    Raises:
        MissingExtraError: where it is not installed (extra ``app``).
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError("gradio", "app", "exitlens app") from error
    return gradio


class _View:
    """The callbacks: what was done on the page -> what is shown."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.examples = explorer.examples()
        self.texts = explorer.example_texts() if explorer.is_text else []
        self._curves: dict[int, list[tuple[float, float]]] = {}

    def example_buttons(self) -> str:
        button = Markup('<button type="button" data-example="{}"><img src="{}" alt="Example: {}"></button>')
        rows = [button.format(i, data_uri(one.picture), one.truth) for i, one in enumerate(self.examples)]
        return str(Markup('<div class="xl-examples">{}</div>').format(Markup("").join(rows)))

    def text_buttons(self) -> str:
        button = Markup('<button type="button" data-example="{}">{}</button>')
        rows = [button.format(i, text) for i, text in enumerate(self.texts)]
        return str(Markup('<div class="xl-examples">{}</div>').format(Markup("").join(rows)))

    # --- what was done ---

    def start(self, *thresholds: float) -> list[Any]:
        if self.explorer.is_text:
            text = self.texts[0] if self.texts else "Write a text and press Enter."
            return [text, text, *self._answers(text, thresholds)]
        picture = self.examples[0].picture
        return [picture, _board(picture), *self._answers(picture, thresholds)]

    def start_routed(self, *thresholds: float) -> Any:
        pages = [self.route(i)(*values) for i, values in enumerate(self._split(thresholds))]
        return pages if len(pages) > 1 else pages[0]

    def choose(self, choice: str, *thresholds: float) -> list[Any]:
        picture = self.examples[_index(choice, len(self.examples))].picture
        return [picture, _board(picture), "", *self._answers(picture, thresholds)]

    def choose_text(self, choice: str, *thresholds: float) -> list[Any]:
        text = self.texts[_index(choice, len(self.texts))]
        return [text, text, *self._answers(text, thresholds)]

    def say(self, text: str, *thresholds: float) -> list[Any]:
        return [text, *self._answers(text, thresholds)]

    def upload(self, path: str | None, *thresholds: float) -> list[Any]:
        if path is None:
            return self._refused("No file came.")
        try:
            picture = self.explorer.read(Path(path))
        except DataError as error:
            return self._refused(str(error))
        return [picture, _board(picture), "", *self._answers(picture, thresholds)]

    def paint(self, shown: Image.Image | str | None, strokes: str, *thresholds: float) -> list[Any]:
        if shown is None:
            return self._nothing("Choose an image first.")
        if isinstance(shown, str):
            return self._answers(shown, thresholds)
        try:
            painted = _decode(strokes)
        except DataError as error:
            return self._nothing(str(error))
        return self._answers(cover(shown, painted), thresholds)

    def uncover(self, shown: Image.Image | None, *thresholds: float) -> list[Any]:
        if shown is None:
            return ["", "", *self._nothing("Choose an image first.")]
        return [_board(shown), "", *self._answers(shown, thresholds)]

    def route(self, index: int) -> Any:
        def routed(*values: float) -> str:
            thresholds = _thresholds(values, self.explorer.subjects[index].policy.thresholds)
            subject = self.explorer.subjects[index]
            report = self.explorer.routed(index, thresholds)
            moved = thresholds != subject.policy.thresholds
            return routed_page(subject, report, self._curve(index), moved or not subject.policy.chosen_by)

        return routed

    # --- what is shown ---

    def _answers(self, shown: Image.Image | str, thresholds: Sequence[float]) -> list[str]:
        pages = []
        try:
            for i, values in enumerate(self._split(thresholds)):
                chosen = _thresholds(values, self.explorer.subjects[i].policy.thresholds)
                answer = self.explorer.answer(i, shown, chosen)
                pages.append(answer_page(answer, None if isinstance(shown, str) else shown))
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

    def _curve(self, index: int) -> list[tuple[float, float]]:
        if index not in self._curves:
            trace = self.explorer.trace(index)
            points = sweep(trace) if isinstance(trace, Trace) and len(trace) >= 10 else []
            self._curves[index] = [(p.cost.value, (p.accuracy or p.agreement).value) for p in points]
        return self._curves[index]


def _thresholds(values: Sequence[float], calibrated: Sequence[float]) -> tuple[float, ...]:
    """Sliders as thresholds; one that stands where it was put first means the calibrated number, exactly."""
    pairs = zip(values, calibrated, strict=True)
    found = [exact if abs(v - round(min(exact, NEVER), 3)) < 1e-9 else v for v, exact in pairs]
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
