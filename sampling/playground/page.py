"""The playground's page: three tabs of fields and outputs around `Actions`.

Needs Gradio (extra `web`); without it this module still imports, and `gr` is None.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from lambda24.sampling.playground.actions import CANVAS, SETTINGS, Actions, Fields

try:
    import gradio as gr
except ImportError:
    gr = None

HINT = (
    "A number (`2.5`), one number per scale (`1, 1.5, 2`) or a ramp from the first scale to the "
    "last (`linear 1 3`, `cosine 1 3`, `power 1 3 2`; guidance: also `var CFG`). Empty: not used."
)
CSS = """
.pixels img {image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain}
.pixels .fixed-height {min-height: 0; max-height: none}
.gradio-container {max-width: 1280px !important; margin: auto !important}
"""


def build_page(actions: Actions) -> Any:
    """The page: a choice of models above three tabs."""
    names = list(actions.pipelines)
    fields = Fields.of(actions.pipelines[names[0]])
    with gr.Blocks(title="Λ24", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# Λ24 playground")
        with gr.Row(equal_height=True):
            model = gr.Dropdown(names, value=names[0], label="Model", scale=2)
            facts = gr.Textbox(fields.facts, label="What it is", interactive=False, scale=3)
        with gr.Tab("Generate"):
            generate_form = _generate_tab(actions, model, fields)
        with gr.Tab("Reconstruct"):
            _reconstruct_tab(actions, model)
        with gr.Tab("Edit"):
            edit_form, keep = _edit_tab(actions, model, fields)

        def choose(name: str) -> list[Any]:
            chosen = Fields.of(actions.pipelines[name])
            scales = gr.update(maximum=chosen.num_scales, value=chosen.num_scales // 2)
            return [chosen.facts, *_form(chosen), *_form(chosen), scales]

        model.change(choose, [model], [facts, *generate_form, *edit_form, keep])
    return page


def _form(fields: Fields) -> list[Any]:
    """Classes and settings of `_request_fields` for another model."""
    classes = gr.update(choices=fields.classes, value=fields.classes[0][1])
    return [classes, *fields.settings]


def _generate_tab(actions: Actions, model: Any, fields: Fields) -> list[Any]:
    with gr.Row():
        with gr.Column(scale=2):
            label, seeds, settings = _request_fields(fields)
            with gr.Row():
                start = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=3):
            status = gr.Markdown(elem_id="generate-status", container=True, min_height=40)
            picture = gr.Image(
                label="Growing, scale by scale",
                format="png",
                height=CANVAS,
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_classes="pixels",
            )
    steps = _gallery("The first image after each scale", elem_id="generate-steps", columns=8)
    images = _gallery("Finished images", elem_id="generate-images", columns=8)
    outputs = [picture, status, steps, images]
    inputs = [model, label, seeds, *settings]
    event = _compute(start.click, actions.generate, inputs, outputs, progress=status)
    stop.click(None, cancels=[event])
    return [label, *settings]


def _reconstruct_tab(actions: Actions, model: Any) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            upload = gr.File(label="Image file", elem_id="reconstruct-upload", height=160)
            summary = gr.Markdown(elem_id="reconstruct-summary", container=True, min_height=40)
            table = gr.Dataframe(
                headers=["scales to", "tokens", "bits", "PSNR, dB"], interactive=False
            )
        with gr.Column(scale=3):
            pair = _gallery("Image and reconstruction", columns=2)
    prefixes = _gallery("Decoded from the first scales", elem_id="reconstruct-prefixes", columns=5)
    with gr.Accordion("Token indices", open=False):
        tokens = gr.Textbox(show_label=False, lines=12, max_lines=30)
    outputs = [pair, summary, table, prefixes, tokens]
    changes = [upload.upload, upload.clear, model.change]
    _compute(changes, actions.reconstruct, [model, upload], outputs, progress=summary)


def _edit_tab(actions: Actions, model: Any, fields: Fields) -> tuple[list[Any], Any]:
    with gr.Row():
        with gr.Column(scale=2):
            upload = gr.File(label="Image file", elem_id="edit-upload", height=160)
            label, seeds, settings = _request_fields(fields)
            keep = gr.Slider(
                0,
                fields.num_scales,
                fields.num_scales // 2,
                step=1,
                label="First scales to keep whole (class swap)",
            )
            start = gr.Button("Edit", variant="primary", elem_id="edit-start")
        with gr.Column(scale=3):
            painting = gr.ImageEditor(
                label="Paint what is to be drawn anew (nothing: everything)",
                type="pil",
                format="png",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(colors=["#ffffff"], color_mode="fixed", default_size=40),
                canvas_size=(CANVAS, CANVAS),
                height=CANVAS + 100,
                buttons=[],
                elem_classes="pixels",
            )
            mask = gr.File(label="... or a mask of the image's size, white: drawn anew", height=140)
            status = gr.Markdown(elem_id="edit-status", container=True, min_height=40)
    images = _gallery("Edited images", elem_id="edit-images", columns=8)
    changes = [upload.upload, upload.clear, model.change]
    _compute(changes, actions.canvas, [model, upload], painting, progress=painting)
    inputs = [model, upload, painting, mask, keep, label, seeds, *settings]
    _compute(start.click, actions.edit, inputs, [status, images], progress=status)
    return [label, *settings], keep


def _request_fields(fields: Fields) -> tuple[Any, Any, list[Any]]:
    with gr.Row():
        label = gr.Dropdown(
            fields.classes,
            value=fields.classes[0][1],
            label="Class",
            allow_custom_value=True,
            info="name or number",
        )
        seeds = gr.Textbox("0:4", label="Seeds", info="such as 7 or 0:8 or 1,5,10:12")
    settings = []
    for row in (SETTINGS[:2], SETTINGS[2:]):
        with gr.Row():
            for name in row:
                text = fields.settings[SETTINGS.index(name)]
                settings.append(gr.Textbox(text, label=name.replace("_", " "), min_width=80))
    gr.Markdown(HINT)
    return label, seeds, settings


def _gallery(label: str, **layout: Any) -> Any:
    return gr.Gallery(
        label=label,
        format="png",
        object_fit="contain",
        interactive=False,
        height="auto",
        buttons=["download", "download_all", "fullscreen"],
        elem_classes="pixels",
        **layout,
    )


def _compute(
    triggers: Any, action: Callable[..., Any], inputs: list[Any], outputs: Any, *, progress: Any
) -> Any:
    """Runs an action in the one queue of all that use the models."""
    return gr.on(
        triggers,
        reported(action),
        inputs,
        outputs,
        concurrency_id="models",
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=progress,
    )


def reported(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action, whose ValueErrors become messages on the page."""

    @wraps(action)
    def call(*values: Any) -> Any:
        with _messages():
            return action(*values)

    @wraps(action)
    def stream(*values: Any) -> Iterator[Any]:
        with _messages():
            yield from action(*values)

    return stream if inspect.isgeneratorfunction(action) else call


@contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        text = html.escape(str(error), quote=False).replace("\n", "<br>")
        raise gr.Error(text, duration=30, print_exception=False) from error
