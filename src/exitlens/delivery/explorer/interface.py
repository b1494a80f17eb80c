"""The explorer as a local web page (Gradio), which listens on this machine only and contacts no other."""

from __future__ import annotations

import atexit
import base64
import io
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from exitlens.delivery.explanations import load_template
from exitlens.delivery.explorer.core import DISPLAY, Answer, Explorer, LoadedRun, Shown, cover
from exitlens.delivery.pictures import draw_heat, draw_labels
from exitlens.display import data_uri, pick_class_colour, pick_exit_colour, shade_names
from exitlens.errors import DataError, ExitlensError, import_extra
from exitlens.functional.maps import as_distribution
from exitlens.types import ExitView, Explanation
from exitlens.types.outputs import exit_name
from exitlens.types.preprocessing import TextPreprocess
from exitlens.workflow.evaluation import Report

SIDE = {1: 190, 2: 180}  # the least width of a map in pixels, by the number of networks
SLIDER_END = 1.01  # no score is that high: the exit never answers
LARGEST_UPLOAD = "50mb"
KEPT = 600  # seconds, how long an upload stays on disk
SUBDUED = {"body_text_color_subdued": "#59636e", "body_text_color_subdued_dark": "#a7b0b9"}
ONE: dict[str, Any] = {"concurrency_id": "answers", "concurrency_limit": 1}  # so that the last action decides what is shown
LATEST = {"trigger_mode": "always_last", **ONE}
# Connects the inputs of one kind; returns the callback that answers what is shown once more, and what it needs.
Wire = Callable[[Any, list[Any], list[Any]], tuple[Callable[..., Any], list[Any]]]
BARS, MOST = 3, 50  # classes shown for each exit at once, and on demand
WIDTH, HEIGHT = 380, 240  # of the plot
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 12, 26, HEIGHT - 40  # where the axes are


def answer_page(answer: Answer, picture: Image.Image | None, side: int = 240) -> str:
    """Render a network's answer to ``picture``, if it is one; ``side`` is the least width of a map in pixels."""
    base, ratio = "", answer.full_ms / answer.ours_ms
    if picture is not None:
        width, height = (max(1, round(length * DISPLAY / max(picture.size))) for length in picture.size)
        base = data_uri(picture.convert("L").resize((width, height), Image.Resampling.BICUBIC), small=False)
    times = (
        f"{ratio:.2f} times faster" if ratio >= 1.05 else "as fast" if ratio >= 0.95 else f"{1 / ratio:.2f} times as long"
    )
    exits = []
    for view, share in zip(answer.why.exits, answer.run.shares, strict=False):
        with_map, name = picture is not None, answer.why.name_answer(view)
        shown = _describe_exit(answer.why, view, with_map) | {"faithfulness": "", "depends": None}
        if view.pixels is not None and picture is not None:
            layer = draw_labels(view.pixels.labels.cpu(), answer.why.classes)
            shown |= {"heat": data_uri(layer, small=False), "alt": f"What {shown['name']} tells the pixels: {name}"}
        if answer.relevance:
            relevance = answer.relevance[view.exit]
            drawn, speaks_for = answer.why.draw_relevance(relevance), as_distribution(relevance[None])[0]
            shown["depends"] = _draw_map(answer.why, speaks_for, drawn, with_map)
            shown["depends"]["alt"] = f"What the answer {name} of {shown['name']} depends on"
        if share is not None:
            reached = f"{share.value:.2f}\u00a0±\u00a0{share.error:.2f} of what trying every cell does"
            shown["faithfulness"] = f"its attention reaches {reached} (deletion, {share.samples} test images)"
        exits.append(shown)
    return load_template("explorer_answer.html.j2").render(answer=answer, times=times, base=base, side=side, exits=exits)


def _describe_exit(why: Explanation, view: ExitView, with_map: bool) -> dict[str, Any]:
    name, is_final = exit_name(view.exit, why.num_exits), view.exit == why.num_exits - 1
    top = view.probabilities.topk(min(BARS if view.pixels is None else len(view.answer), len(view.probabilities)))
    colour = pick_exit_colour(view.exit, why.num_exits)
    bars = [
        (why.name(i), p, colour if view.pixels is None else "rgb({},{},{})".format(*pick_class_colour(i)))
        for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    others = view.probabilities.argsort(descending=True)[len(bars) : MOST].tolist() if view.pixels is None else []
    later = view.exit > why.answered
    refusal = "was not trusted" if view.refused else "was not sure enough"
    refusal = "does not answer under these thresholds" if view.threshold == math.inf else refusal
    role = "answered" if view.exit == why.answered else "would say" if later else refusal
    agreement = "the map that the others are compared with" if is_final else ""
    if not is_final and view.divergence is not None:
        before = "" if view.previous_cc is None else f"; with the exit before, correlation {view.previous_cc:.2f}"
        value, null = view.format_cc()
        agreement = f"map against the final one: divergence {view.divergence:.3f}, correlation {value} "
        agreement += f"(another sample's map: {null}){before}"
    return {
        "name": name,
        "colour": colour,
        "dense": view.pixels is not None,
        "answered": view.exit == why.answered,
        "later": later,
        "role": role,
        "probabilities": bars,
        "others": [(why.name(i), view.probabilities[i].item()) for i in others],
        "rule": "; ".join(why.explain_rule(view)),
        "agreement": agreement,
        "alt": f"Where {name} looked for its answer {why.name_answer(view)}",
        **_draw_map(why, view.attention, why.draw_exit(view), with_map),
    }


def _draw_map(why: Explanation, values: Tensor, drawn: str, with_map: bool) -> dict[str, Any]:
    """Draw a map in the form that suits the input: to lay over the picture, a drawing of its own, or shaded tokens."""
    is_text = isinstance(why.preprocess, TextPreprocess)
    return {
        "heat": data_uri(draw_heat(values), small=False) if with_map else "",
        "drawn": "" if with_map or is_text else Markup(drawn),
        "tokens": [] if with_map or (drawn and not is_text) else shade_names(why.tokens, values),
    }


def routed_page(run: LoadedRun, report: Report | str, changed: bool, kind: str) -> str:
    """Render the effect of thresholds on a trace of ``kind`` samples, and where it lies on the frontier."""
    if isinstance(report, str):
        return str(Markup("<section class='xl-routed'><p>{}</p></section>").format(report))
    by_hand = "Thresholds chosen by hand: nothing is promised of accuracy and cost."
    promise = by_hand if changed else "Thresholds as calibrated."
    drop = "" if report.accuracy_drop is None else f"{100 * report.accuracy_drop:+.2f} points lost to the final exit"
    count = len(report.exit_shares)
    shares = [
        {"name": exit_name(k, count), "share": share, "colour": pick_exit_colour(k, count)}
        for k, share in enumerate(report.exit_shares)
    ]
    return load_template("explorer_routed.html.j2").render(
        name=run.name, report=report, kind=kind, promise=promise, drop=drop, exits=shares, plot=Markup(draw_frontier(report))
    )


def draw_frontier(report: Report) -> str:
    """Draw accuracy against cost: the best thresholds at every cost, each exit alone, and the report's thresholds."""
    labelled = report.accuracy is not None
    exits = [(row.cost, row.agreement if row.accuracy is None else row.accuracy) for row in report.exits]
    now = (report.cost, 1 - report.disagreement if report.accuracy is None else report.accuracy)
    points = [*report.curve, *exits, now]
    costs = _choose_ticks(0.0, max(x for x, _ in points))
    low, high = (100 * f(y for _, y in points) for f in (min, max))
    levels = [level for level in _choose_ticks(low, high) if level <= 100]
    x1, y0, y1 = costs[-1], levels[0], max(levels[-1], high)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        share = (100 * point[1] - y0) / (y1 - y0)
        return LEFT + point[0] / x1 * (RIGHT - LEFT), BOTTOM - share * (BOTTOM - TOP)

    count = len(exits)
    titles = [f"{exit_name(k, count)} alone: {100 * y:.1f} % at cost {x:.3f}" for k, (x, y) in enumerate(exits)]
    what = "accuracy" if labelled else "agreement with final"
    return load_template("explorer_frontier.svg.j2").render(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
        across=[(at((x, 0.0))[0], f"{x:g}") for x in costs],
        up=[(at((0.0, y / 100))[1], f"{y:g}") for y in levels],
        line=[at(p) for p in report.curve],
        exits=[{"at": at(p), "colour": pick_exit_colour(k, count), "title": titles[k]} for k, p in enumerate(exits)],
        here=at(now),
        what=what,
        alt=f"{what} against cost: these thresholds give {100 * now[1]:.1f} % at cost {now[0]:.3f}",
    )


def _choose_ticks(low: float, high: float) -> list[float]:
    ticks = MaxNLocator(5, min_n_ticks=2).tick_values(low, max(high, low + 1e-3))
    return [round(float(tick), 10) for tick in ticks]


class View:
    """The actions of the page: each method takes the page's values and returns new ones."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.examples = explorer.examples()
        self.starts_with_relevance = not explorer.is_relevance_slow()

    def example_buttons(self) -> str:
        """Return buttons with images, texts, or the classes of other samples."""
        button = Markup('<button type="button" data-example="{}">{}</button>')
        image = Markup('<img src="{}" alt="Example: {}">')
        rows = []
        for i, (shown, truth) in enumerate(self.examples):
            face = image.format(data_uri(shown), truth) if isinstance(shown, Image.Image) else truth or shown
            rows.append(button.format(i, face))
        return str(Markup('<div class="xl-examples">{}</div>').format(Markup("").join(rows)))

    def start(self, relevance: bool, *thresholds: float) -> list[Any]:
        """Answer the first example, when the page opens."""
        if not self.examples and not self.explorer.is_text:
            return [None, *self._alert(f"Choose a file of {self.explorer.modality.plural}.")]
        shown = self.examples[0][0] if self.examples else "Write a text and press Enter."
        return [shown, *_place(shown)[:1], *self._answer(shown, relevance, thresholds)]

    def start_routed(self, *thresholds: float) -> Any:
        """Evaluate each network's thresholds when the page opens."""
        pages = [self.route(i)(*values) for i, values in enumerate(self._split(thresholds))]
        return pages if len(pages) > 1 else pages[0]

    def choose(self, choice: str, relevance: bool, *thresholds: float) -> list[Any]:
        """Answer an example that was picked."""
        number = choice.partition(":")[0]
        i = int(number) if number.isdigit() and int(number) < len(self.examples) else 0
        shown = self.examples[i][0]
        return [shown, *_place(shown), *self._answer(shown, relevance, thresholds)]

    def say(self, text: str, relevance: bool, *thresholds: float) -> list[Any]:
        """Answer a text that was written."""
        if not text.strip():
            return [None, *self._alert("Write a text first.")]
        return [text, *self._answer(text, relevance, thresholds)]

    def upload(self, path: str | None, relevance: bool, *thresholds: float) -> list[Any]:
        """Answer a file of any kind that was uploaded."""
        if path is None:
            return self._refuse("No file was received.")
        try:
            shown = self.explorer.read(Path(path))
        except DataError as error:
            return self._refuse(str(error))
        return [shown, *_place(shown), *self._answer(shown, relevance, thresholds)]

    def say_again(self, text: str | Tensor | None, relevance: bool, *thresholds: float) -> list[Any]:
        """Answer a text or file once more when a threshold was moved."""
        wanted = "Write a text first." if self.explorer.is_text else "Choose a file first."
        return self._alert(wanted) if text is None else self._answer(text, relevance, thresholds)

    def paint(self, shown: Image.Image | None, strokes: str, relevance: bool, *thresholds: float) -> list[Any]:
        """Answer the picture with what is painted over, when the brush or a threshold was moved."""
        if shown is None:
            return self._alert("Choose an image first.")
        try:
            painted = _decode_strokes(strokes)
        except DataError as error:
            return self._alert(str(error))
        return self._answer(cover(shown, painted), relevance, thresholds)

    def uncover(self, shown: Image.Image | None, relevance: bool, *thresholds: float) -> list[Any]:
        """Answer the picture when all strokes were removed."""
        if shown is None:
            return ["", "", *self._alert("Choose an image first.")]
        return [_draw_board(shown), "", *self._answer(shown, relevance, thresholds)]

    def route(self, index: int) -> Any:
        """Return the callback that evaluates a network's thresholds."""

        def render(*values: float) -> str:
            run = self.explorer.runs[index]
            thresholds = _read_sliders(values, run.policy.thresholds)
            report = self.explorer.evaluate(index, thresholds)
            by_hand = thresholds != run.policy.thresholds or run.policy.calibration is None
            return routed_page(run, report, by_hand, self.explorer.kind)

        return render

    def _answer(self, shown: Shown, relevance: bool, thresholds: Sequence[float]) -> list[str]:
        pages, picture = [], shown if isinstance(shown, Image.Image) else None
        try:
            for i, values in enumerate(self._split(thresholds)):
                chosen = _read_sliders(values, self.explorer.runs[i].policy.thresholds)
                answer = self.explorer.answer(i, shown, chosen, relevance=relevance)
                pages.append(answer_page(answer, picture, SIDE[len(self.explorer.runs)]))
        except ExitlensError as error:
            return self._alert(str(error))
        return [*pages, ""]

    def _split(self, thresholds: Sequence[float]) -> list[tuple[float, ...]]:
        rest = iter(thresholds)
        return [tuple(islice(rest, len(run.policy.thresholds))) for run in self.explorer.runs]

    def _refuse(self, reason: str) -> list[Any]:
        return [None, *(("", "") if self.explorer.is_picture else ()), *self._alert(reason)]

    def _alert(self, reason: str) -> list[Any]:
        alert = Markup('<p class="xl-error" role="alert">{}</p>').format(reason)
        return [*[""] * len(self.explorer.runs), str(alert)]


def _place(shown: Shown) -> list[str]:
    """Return what the page shows beside the answers: the text, or a picture to paint on, without strokes; else nothing."""
    if isinstance(shown, Image.Image):
        return [_draw_board(shown), ""]
    return [shown] if isinstance(shown, str) else []


def _place_slider(threshold: float) -> float:
    return round(min(threshold, SLIDER_END), 3)


def _read_sliders(values: Sequence[float], calibrated: Sequence[float]) -> tuple[float, ...]:
    """Read thresholds from sliders; one that was not moved stands for the calibrated number, exactly."""
    pairs = zip(values, calibrated, strict=True)
    thresholds = [exact if abs(value - _place_slider(exact)) < 1e-9 else value for value, exact in pairs]
    return tuple(math.inf if threshold > 1.0 else float(threshold) for threshold in thresholds)


def _draw_board(picture: Image.Image) -> str:
    size = f'width="320" height="{max(1, round(320 * picture.height / picture.width))}"'
    text = "Paint over a part to cover it; with the keyboard, arrows move and space paints"
    board = Markup(
        '<div class="xl-board"><img src="{}" alt="The image that is answered"><canvas id="xl-brush" {} '
        'tabindex="0" role="application" aria-label="{}"></canvas></div><p>{}.</p>'
    )
    return str(board.format(data_uri(picture.convert("RGB")), Markup(size), text, text))


def _decode_strokes(strokes: str) -> Image.Image | None:
    """Decode what was painted from the page's data URI; raise :class:`DataError` for anything else."""
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


def build(explorer: Explorer) -> Any:
    """Build the page without serving it; needs what :func:`import_gradio` imports."""
    gradio = import_gradio()
    view = View(explorer)
    with gradio.Blocks(title="exitlens", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gradio.HTML("<h1>Watch a network decide</h1>")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                wire = _add_inputs(gradio, view)
                label = "Relevance: what every answer depends on"
                relevance = gradio.Checkbox(
                    view.starts_with_relevance, label=label, elem_id="xl-relevance", visible=explorer.has_relevance
                )
                message = gradio.HTML(elem_id="xl-message")
            answers, columns, routed = [], list[list[Any]](), []
            with gradio.Column(scale=3, min_width=320), gradio.Row():
                for i, run in enumerate(explorer.runs):
                    with gradio.Column(min_width=320):
                        answers.append(gradio.HTML(elem_id=f"xl-answer-{i}"))
                        columns.append([])
                        for k, threshold in enumerate(run.policy.thresholds):
                            score = "confidence" if run.policy.gate is None else "trust of the gate"
                            label = f"{exit_name(k, run.net.num_exits)} answers from a {score} of (above 1: never)"
                            place = {"label": label, "elem_id": f"xl-threshold-{i}-{k}"}
                            columns[-1].append(gradio.Slider(0, SLIDER_END, _place_slider(threshold), step=0.001, **place))
                        routed.append(gradio.HTML(elem_id=f"xl-routed-{i}"))
        outputs, every = [*answers, message], [slider for sliders in columns for slider in sliders]
        again, repeat = wire(page, [relevance, *every], outputs)
        relevance.change(again, repeat, outputs, show_progress="hidden", **LATEST)
        for i, sliders in enumerate(columns):
            for slider in sliders:
                slider.change(view.route(i), sliders, routed[i], show_progress="hidden", trigger_mode="always_last")
                slider.change(again, repeat, outputs, show_progress="hidden", **LATEST)
        page.load(view.start_routed, every, routed)  # apart from the answers: the trace may still be collected
    return page


def _add_hidden_box(gradio: Any, name: str) -> Any:
    return gradio.Textbox(elem_id=name, elem_classes="xl-hidden", show_label=False)


def _add_inputs(gradio: Any, view: View) -> Wire:
    """Add what a sample is given by: a box for a text, a board for a picture, a file for anything else; and examples."""
    is_text, is_picture = view.explorer.is_text, view.explorer.is_picture
    shown, choice = gradio.State(None), _add_hidden_box(gradio, "xl-choice")
    boxes = []  # what shows the sample
    if is_text:
        text = gradio.Textbox(label="A text (Enter answers it)", lines=1, max_lines=8, elem_id="xl-text")
        say = gradio.Button("Answer", elem_id="xl-say", size="sm")
        boxes = [text]
    else:
        label = "Drop or choose an image" if is_picture else f"Drop or choose a file: a {view.explorer.modality.name}"
        kinds = ["image"] if is_picture else None
        upload = gradio.File(label=label, file_types=kinds, elem_id="xl-upload", height=150)
    gradio.HTML(view.example_buttons())
    if is_picture:
        board, strokes = gradio.HTML(elem_id="xl-board"), _add_hidden_box(gradio, "xl-strokes")
        gradio.Slider(2, 25, 8, step=1, label="Brush, % of the width", elem_id="xl-size", interactive=True)
        clear = gradio.Button("Uncover everything", elem_id="xl-clear", size="sm")
        opacity = gradio.Slider(0, 1, 0.75, step=0.05, label="Opacity of the maps", elem_id="xl-opacity")
        boxes = [board, strokes]

    def wire(page: Any, every: list[Any], outputs: list[Any]) -> tuple[Callable[..., Any], list[Any]]:
        if is_text:
            for act in (text.submit, say.click):
                act(view.say, [text, *every], [shown, *outputs], **ONE)
        else:
            upload.upload(view.upload, [upload, *every], [shown, *boxes, *outputs], **ONE)
        choice.change(view.choose, [choice, *every], [shown, *boxes, *outputs], **ONE)
        page.load(view.start, every, [shown, *boxes[:1], *outputs])
        if not is_picture:
            return view.say_again, [shown, *every]
        strokes.change(view.paint, [shown, strokes, *every], outputs, **LATEST)
        clear.click(view.uncover, [shown, *every], [board, strokes, *outputs], **ONE)
        script = "(v) => document.documentElement.style.setProperty('--xl-opacity', v)"
        opacity.change(None, opacity, None, js=script)
        return view.paint, [shown, strokes, *every]

    return wire


def serve(explorer: Explorer, *, port: int | None = None, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve the page on this machine only, until the server is stopped; ``ready`` is called with the address."""
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
    """Import Gradio with its calls to other machines switched off, or raise :class:`MissingExtraError` (extra ``app``)."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return import_extra("gradio", "app", "exitlens app")
