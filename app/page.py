"""The page itself, in Gradio: what is on it, what its buttons do, and how it is served."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from app.config import AppConfig
from app.predictions import ModelResult, error_html, image_html
from app.runs import ShownRun, run_html
from errors import UserError, one_line
from labelling.pool import PoolImage
from labelling.uncertainty import image_entropy
from prediction.predictor import Predictor

TITLE = "Segmentation heads"
MOST_IMAGES = 40
"""At once, since the answer holds them all."""

REFRESH_S = 5
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SET_OPACITY = "value => { document.documentElement.style.setProperty('--overlay', value); }"
FONT = ("system-ui", "sans-serif")
"""The reader's own: the page asks no other server for one."""


class Page:
    """models: by their names in the page, in order. images: to choose from. runs: whose curves are shown."""

    def __init__(self, models: dict[str, Predictor], images: Sequence[PoolImage], runs: Sequence[ShownRun]) -> None:
        self.models = models
        self.images = {image.name: image.path for image in images}
        self.runs = {run.name: run for run in runs}

    def predict(
        self, files: list[str] | None, folder: list[str] | None, named: list[str] | None, models: list[str]
    ) -> str:
        """files, folder: where Gradio has put what was dropped. named: of the images to choose from."""
        dropped = [Path(file) for file in [*(files or ()), *(folder or ())]]
        chosen = [(path.name, path) for path in dropped] + [(name, self.images[name]) for name in named or ()]
        if not chosen:
            raise gr.Error("Drop an image, several, or a folder.", print_exception=False)
        if not models:
            raise gr.Error("Choose a model.", print_exception=False)
        parts = [self._of_image(name, path, models) for name, path in chosen[:MOST_IMAGES]]
        rest = len(chosen) - MOST_IMAGES
        return "".join(parts) + (
            f"<p>The first {MOST_IMAGES} images; {rest} more are not shown.</p>" if rest > 0 else ""
        )

    def _of_image(self, name: str, path: Path, models: Sequence[str]) -> str:
        try:
            pixels, found = None, []
            for title in models:
                predictor = self.models[title]
                pixels = predictor.read(path)
                found.append(ModelResult(title, predictor.predict(pixels), image_entropy([predictor], pixels)))
            return image_html(name, pixels, found)
        except UserError as error:
            return error_html(name, one_line(str(error)).replace(str(path), name))

    def refreshed(self, name: str, seen: list[float] | None) -> tuple[object, list[float] | None]:
        """The curves of a run as they are now, and its state; neither where the state is the one that was seen."""
        run = self.runs.get(name)
        state = run.state() if run else None
        return (gr.skip(), gr.skip()) if state == seen else (run_html(run), state)

    def built(self) -> gr.Blocks:
        """The page's parts, and what happens on a click. Nothing of it is an interface for programs."""
        with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
            gr.HTML(f"<h1>{TITLE}</h1>")
            if self.models:
                with gr.Tab("Predict"):
                    self._add_predictions()
            if self.runs:
                with gr.Tab("Runs"):
                    self._add_runs(blocks)
        return blocks

    def _add_predictions(self) -> None:
        with gr.Row():
            files = gr.File(file_count="multiple", file_types=["image"], label="Images", height=140)
            folder = gr.File(file_count="directory", file_types=["image"], label="A folder", height=140)
        named = gr.Dropdown(
            list(self.images), multiselect=True, label="Images of --image-paths", visible=bool(self.images)
        )
        titles = list(self.models)
        models = gr.CheckboxGroup(titles, value=titles, label="Models", visible=len(titles) > 1)
        with gr.Row():
            opacity = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity", elem_id="opacity")
            button = gr.Button("Predict", variant="primary", elem_id="predict")
        shown = gr.HTML(elem_id="results")
        opacity.input(None, opacity, None, js=SET_OPACITY, api_visibility="private")
        button.click(self.predict, [files, folder, named, models], shown, api_visibility="private")

    def _add_runs(self, blocks: gr.Blocks) -> None:
        names = list(self.runs)
        run = gr.Dropdown(names, value=names[0], label="Run", elem_id="run")
        shown, seen = gr.HTML(elem_id="curves"), gr.State()
        for event in (blocks.load, run.change, gr.Timer(REFRESH_S).tick):
            event(self.refreshed, [run, seen], [shown, seen], show_progress="hidden", api_visibility="private")

    def launch(self, config: AppConfig) -> tuple[gr.Blocks, str]:
        """Start to listen, in a thread; returns the page and its address. Raises UserError where the port is taken."""
        blocks = self.built()
        theme = gr.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace"))
        try:
            _, address, _ = blocks.launch(
                server_name=config.host,
                server_port=config.port or None,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                allowed_paths=[],
                theme=theme,
                css=STYLE,
            )
        except OSError as error:
            raise UserError(
                f"--port {config.port}: cannot be listened on at {config.host}: name another, or 0 for a free one"
            ) from error
        return blocks, address
