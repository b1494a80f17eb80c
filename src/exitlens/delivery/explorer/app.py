"""The explorer as a local web page (Gradio): it listens on this machine only and contacts no other."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from exitlens.delivery.explorer.core import Explorer, LoadedRun
from exitlens.delivery.explorer.view import SLIDER_END, View, place_slider
from exitlens.errors import MissingExtraError
from exitlens.types.outputs import exit_name

LARGEST_UPLOAD = "50mb"
KEPT = 600  # seconds, how long an upload stays on disk
SUBDUED = {"body_text_color_subdued": "#59636e", "body_text_color_subdued_dark": "#a7b0b9"}
ONE: dict[str, Any] = {"concurrency_id": "answers", "concurrency_limit": 1}  # so that the last action decides what is shown
LATEST = {"trigger_mode": "always_last", **ONE}
# Connects the inputs of one kind; returns the callback that answers what is shown once more, and what it needs.
Wire = Callable[[Any, list[Any], list[Any]], tuple[Callable[..., Any], list[Any]]]


def build(explorer: Explorer) -> Any:
    """Builds the page without serving it; needs what :func:`import_gradio` imports."""
    gradio = import_gradio()
    view = View(explorer)
    with gradio.Blocks(title="exitlens", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gradio.HTML("<h1>Watch a network decide</h1>")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                add = (
                    _add_image_inputs if explorer.is_picture else _add_text_inputs if explorer.is_text else _add_file_inputs
                )
                wire = add(gradio, view)
                label = "Relevance: what every answer depends on"
                relevance = gradio.Checkbox(view.starts_with_relevance, label=label, elem_id="xl-relevance")
                message = gradio.HTML(elem_id="xl-message")
            with gradio.Column(scale=3, min_width=320), gradio.Row():
                panels = [_add_panel(gradio, i, run) for i, run in enumerate(explorer.runs)]
        answers, columns, routed = zip(*panels, strict=True)
        outputs, every = [*answers, message], [slider for sliders in columns for slider in sliders]
        again, repeat = wire(page, [relevance, *every], outputs)
        relevance.change(again, repeat, outputs, show_progress="hidden", **LATEST)
        for i, sliders in enumerate(columns):
            for slider in sliders:
                slider.change(view.route(i), sliders, routed[i], show_progress="hidden", trigger_mode="always_last")
                slider.change(again, repeat, outputs, show_progress="hidden", **LATEST)
        page.load(view.start_routed, every, list(routed))  # apart from the answers: the trace may still be collected
    return page


def _add_hidden_box(gradio: Any, name: str) -> Any:
    """A box that the page's script writes to."""
    return gradio.Textbox(elem_id=name, elem_classes="xl-hidden", show_label=False)


def _add_text_inputs(gradio: Any, view: View) -> Wire:
    text = gradio.Textbox(label="A text (Enter answers it)", lines=1, max_lines=8, elem_id="xl-text")
    say = gradio.Button("Answer", elem_id="xl-say", size="sm")
    gradio.HTML(view.example_buttons())
    shown, choice = gradio.State(None), _add_hidden_box(gradio, "xl-choice")

    def wire(page: Any, every: list[Any], outputs: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
        for act in (text.submit, say.click):
            act(view.say, [text, *every], [shown, *outputs], **ONE)
        choice.change(view.choose, [choice, *every], [text, shown, *outputs], **ONE)
        page.load(view.start, every, [shown, text, *outputs])
        return view.say_again, [shown, *every]

    return wire


def _add_file_inputs(gradio: Any, view: View) -> Wire:
    """Samples that are neither pictures nor texts: a file of one, or an example."""
    shown, choice = gradio.State(None), _add_hidden_box(gradio, "xl-choice")
    upload = gradio.File(label=f"Drop or choose a file: a {view.explorer.modality.name}", elem_id="xl-upload", height=150)
    gradio.HTML(view.example_buttons())

    def wire(page: Any, every: list[Any], outputs: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
        upload.upload(view.upload, [upload, *every], [shown, *outputs], **ONE)
        choice.change(view.choose, [choice, *every], [shown, *outputs], **ONE)
        page.load(view.start, every, [shown, *outputs])
        return view.say_again, [shown, *every]

    return wire


def _add_image_inputs(gradio: Any, view: View) -> Wire:
    shown, choice = gradio.State(None), _add_hidden_box(gradio, "xl-choice")
    strokes = _add_hidden_box(gradio, "xl-strokes")
    upload = gradio.File(label="Drop or choose an image", file_types=["image"], elem_id="xl-upload", height=150)
    gradio.HTML(view.example_buttons())
    board = gradio.HTML(elem_id="xl-board")
    gradio.Slider(2, 25, 8, step=1, label="Brush, % of the width", elem_id="xl-size", interactive=True)
    clear = gradio.Button("Uncover everything", elem_id="xl-clear", size="sm")
    opacity = gradio.Slider(0, 1, 0.75, step=0.05, label="Opacity of the maps", elem_id="xl-opacity")

    def wire(page: Any, every: list[Any], outputs: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
        upload.upload(view.upload, [upload, *every], [shown, board, strokes, *outputs], **ONE)
        choice.change(view.choose, [choice, *every], [shown, board, strokes, *outputs], **ONE)
        strokes.change(view.paint, [shown, strokes, *every], outputs, **LATEST)
        clear.click(view.uncover, [shown, *every], [board, strokes, *outputs], **ONE)
        script = "(v) => document.documentElement.style.setProperty('--xl-opacity', v)"
        opacity.change(None, opacity, None, js=script)
        page.load(view.start, every, [shown, board, *outputs])
        return view.paint, [shown, strokes, *every]

    return wire


def _add_panel(gradio: Any, index: int, run: LoadedRun) -> tuple[Any, list[Any], Any]:
    """A network's column: its answer, its thresholds, and their effect on the calibration samples."""
    with gradio.Column(min_width=320):
        answer = gradio.HTML(elem_id=f"xl-answer-{index}")
        sliders = []
        for k, threshold in enumerate(run.policy.thresholds):
            label = f"{exit_name(k, run.net.num_exits)} answers from a confidence of (above 1: never)"
            place = {"elem_id": f"xl-threshold-{index}-{k}"}
            sliders.append(gradio.Slider(0, SLIDER_END, place_slider(threshold), step=0.001, label=label, **place))
        return answer, sliders, gradio.HTML(elem_id=f"xl-routed-{index}")


def serve(explorer: Explorer, *, port: int | None = None, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serves the page on this machine only, until the server is stopped.

    Args:
        explorer: what to show.
        port: a free one by default.
        ready: called with the address once the page is up.
    """
    gradio = import_gradio()
    page = build(explorer)
    for i in range(len(explorer.runs)):
        threading.Thread(target=explorer.trace, args=(i,), daemon=True).start()
    templates = files("exitlens.delivery") / "templates"
    script = (templates / "explorer.js").read_text(encoding="utf-8")
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(**SUBDUED)
    uploads = tempfile.mkdtemp(prefix="exitlens-")
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = uploads
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
    page.block_thread()


def import_gradio() -> Any:
    """Imports Gradio with its calls to other machines switched off, or raises :class:`MissingExtraError` (extra ``app``)."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError("gradio", "app", "exitlens app") from error
    return gradio
