"""A local web page to try models: `python scripts/playground.py FOLDER [FOLDER ...] [--port 7860]`.

Generate and watch images grow scale by scale, see what the tokenizer makes of an image, edit one.
FOLDER is a pipeline or run folder or a Hub id. Only this machine reaches the page, and neither the
server nor the page asks anything of another. Needs: pip install "lambda24[web]".
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from lambda24.common.command_line import run_program
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.playground.actions import Actions, describe
from lambda24.sampling.playground.guard import LocalGuard
from lambda24.sampling.playground.page import CSS, build_page, gr

HOST = "127.0.0.1"


def main(argv: Sequence[str] | None = None) -> None:
    """Loads the models and serves the page until interrupted.

    Raises:
        ValueError: Gradio is not installed, a folder without models, a port in use.
    """
    options = _parser().parse_args(argv)
    if gr is None:
        raise ValueError('the playground needs: pip install "lambda24[web]" (package gradio)')
    port = _free_port(options.port)
    pipelines = {}
    for name in dict.fromkeys(options.models):
        pipelines[name] = Pipeline.from_pretrained(name).to(options.device)
        print(f"{name}: {describe(pipelines[name])}", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # removes the folder
    with tempfile.TemporaryDirectory(prefix="playground-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and pictures, gone at the end
        _reach_without_proxy(HOST)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
        page = build_page(Actions(pipelines, Path(folder)))
        guard = {"names": (HOST, "localhost"), "folder": Path(folder)}
        page.queue(max_size=16).launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            show_error=True,
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            max_file_size="100mb",
            app_kwargs={"middleware": [(LocalGuard, (), guard)]},
            theme=gr.themes.Default(**fonts),
            css=CSS,
            prevent_thread_lock=True,
        )
        print(f"playground: http://{HOST}:{port}", flush=True)
        page.block_thread()


def _reach_without_proxy(host: str) -> None:
    """Gradio asks its own server once; lower case wins where both are set."""
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [excluded, host]))


def _free_port(port: int) -> int:
    """The port itself, or any free one for 0.

    Raises:
        ValueError: it is in use or not allowed.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--port {port} cannot be used ({error}); 0 is any free one"
            ) from error
        found: int = probe.getsockname()[1]
        return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="FOLDER", help="pipeline or run folder")
    parser.add_argument("--port", type=int, default=7860, help="0: any free one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"here {device} if not given")
    return parser


if __name__ == "__main__":
    run_program(main)
