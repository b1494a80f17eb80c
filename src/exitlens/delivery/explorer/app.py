"""The explorer as a local web page (Gradio): it listens on this machine only and contacts no other."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from exitlens.delivery.explorer.core import Explorer, LoadedRun
from exitlens.delivery.explorer.view import SLIDER_END, View, place_slider
from exitlens.errors import MissingExtraError
from exitlens.types.words import exit_name

LARGEST_UPLOAD = "50mb"
KEPT = 600  # seconds, how long an upload stays on disk
SUBDUED = {"body_text_color_subdued": "#59636e", "body_text_color_subdued_dark": "#a7b0b9"}


def build(explorer: Explorer) -> Any:
    """Builds the page without serving it.

    Raises:
        MissingExtraError: without Gradio (extra ``app``).
    """
    gradio = import_gradio()
    view = View(explorer)
    with gradio.Blocks(title="exitlens", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gradio.HTML("<h1>Watch a network decide</h1>")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                inputs = _add_text_inputs(gradio, view) if explorer.is_text else _add_image_inputs(gradio, view)
                message = gradio.HTML(elem_id="xl-message")
            with gradio.Column(scale=3, min_width=320), gradio.Row():
                panels = [_add_panel(gradio, i, run) for i, run in enumerate(explorer.runs)]
        outputs = [*(panel.answer for panel in panels), message]
        _wire(page, view, inputs, panels, outputs)
    return page


@dataclass(frozen=True)
class _Inputs:
    """The components that a visitor acts on, and the one that holds what is shown."""

    shown: Any
    choice: Any
    text: Any = None
    say: Any = None
    upload: Any = None
    board: Any = None
    strokes: Any = None
    clear: Any = None
    opacity: Any = None


@dataclass(frozen=True)
class _Panel:
    """A network's column: its answer, its thresholds, and their effect on the calibration samples."""

    answer: Any
    sliders: list[Any]
    routed: Any


def _add_hidden_box(gradio: Any, name: str) -> Any:
    """A box that the page's script writes to."""
    return gradio.Textbox(elem_id=name, elem_classes="xl-hidden", show_label=False)


def _add_text_inputs(gradio: Any, view: View) -> _Inputs:
    text = gradio.Textbox(label="A text (Enter answers it)", lines=1, max_lines=8, elem_id="xl-text")
    say = gradio.Button("Answer", elem_id="xl-say", size="sm")
    gradio.HTML(view.text_buttons())
    return _Inputs(gradio.State(None), _add_hidden_box(gradio, "xl-choice"), text, say=say)


def _add_image_inputs(gradio: Any, view: View) -> _Inputs:
    shown, choice, strokes = (
        gradio.State(None),
        _add_hidden_box(gradio, "xl-choice"),
        _add_hidden_box(gradio, "xl-strokes"),
    )
    upload = gradio.File(label="Drop or choose an image", file_types=["image"], elem_id="xl-upload", height=150)
    gradio.HTML(view.example_buttons())
    board = gradio.HTML(elem_id="xl-board")
    gradio.Slider(2, 25, 8, step=1, label="Brush, % of the width", elem_id="xl-size", interactive=True)
    clear = gradio.Button("Uncover everything", elem_id="xl-clear", size="sm")
    opacity = gradio.Slider(0, 1, 0.75, step=0.05, label="Opacity of the maps", elem_id="xl-opacity")
    return _Inputs(shown, choice, None, None, upload, board, strokes, clear, opacity)


def _add_panel(gradio: Any, index: int, run: LoadedRun) -> _Panel:
    with gradio.Column(min_width=320):
        answer = gradio.HTML(elem_id=f"xl-answer-{index}")
        sliders = []
        for k, threshold in enumerate(run.policy.thresholds):
            label = f"{exit_name(k, run.net.num_exits)} answers from a confidence of (above 1: never)"
            place = {"elem_id": f"xl-threshold-{index}-{k}"}
            sliders.append(gradio.Slider(0, SLIDER_END, place_slider(threshold), step=0.001, label=label, **place))
        return _Panel(answer, sliders, gradio.HTML(elem_id=f"xl-routed-{index}"))


def _wire(page: Any, view: View, inputs: _Inputs, panels: Sequence[_Panel], outputs: list[Any]) -> None:
    """Connects actions to callbacks. Answers are computed one at a time, so that the last action decides what is shown."""
    every = [slider for panel in panels for slider in panel.sliders]
    shown, board, strokes, text = inputs.shown, inputs.board, inputs.strokes, inputs.text
    one = {"concurrency_id": "answers", "concurrency_limit": 1}
    latest = {"trigger_mode": "always_last", **one}
    if text is not None:
        for act in (text.submit, inputs.say.click):
            act(view.say, [text, *every], [shown, *outputs], **one)
        inputs.choice.change(view.choose_text, [inputs.choice, *every], [text, shown, *outputs], **one)
        again: Callable[..., Any] = view.say_again
        repeat = [shown, *every]
    else:
        inputs.upload.upload(view.upload, [inputs.upload, *every], [shown, board, strokes, *outputs], **one)
        inputs.choice.change(view.choose, [inputs.choice, *every], [shown, board, strokes, *outputs], **one)
        strokes.change(view.paint, [shown, strokes, *every], outputs, **latest)
        inputs.clear.click(view.uncover, [shown, *every], [board, strokes, *outputs], **one)
        script = "(v) => document.documentElement.style.setProperty('--xl-opacity', v)"
        inputs.opacity.change(None, inputs.opacity, None, js=script)
        again, repeat = view.paint, [shown, strokes, *every]
    for i, panel in enumerate(panels):
        for slider in panel.sliders:
            slider.change(view.route(i), panel.sliders, panel.routed, show_progress="hidden", trigger_mode="always_last")
            slider.change(again, repeat, outputs, show_progress="hidden", **latest)
    page.load(view.start, every, [shown, text if board is None else board, *outputs])
    page.load(
        view.start_routed, every, [panel.routed for panel in panels]
    )  # apart from the answers: the trace may still be collected


def serve(
    explorer: Explorer, *, port: int | None = None, wait: bool = True, ready: Callable[[str], None] = lambda address: None
) -> str:
    """Serves the page on this machine only and returns its address.

    Args:
        explorer: what to show.
        port: a free one by default.
        wait: return only when the server is stopped.
        ready: called with the address once the page is up.

    Raises:
        MissingExtraError: without Gradio (extra ``app``).
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
    if wait:
        page.block_thread()
    return str(address)


def import_gradio() -> Any:
    """Imports Gradio with its calls to other machines switched off.

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
