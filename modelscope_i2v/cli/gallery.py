"""The demo's page: each video with its input, its text, how it was made, and the command for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..files import replace_file
from ..spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO

ANIMATE = "animate"
"""The command that does image-to-video and video-to-video in one call, and its files' name here."""

_TITLES = {
    IMAGE_TO_VIDEO.name: ("Image to video", "A picture is set in motion; the model itself decides how."),
    VIDEO_TO_VIDEO.name: ("Video to video", "A small, blurred and noisy video is made anew, larger."),
    TEXT_TO_VIDEO.name: ("Text to video", "A video of nothing but a text."),
    I2VGEN_XL.name: ("Image and text to video", "A picture is set in motion as a text says (I2VGen-XL)."),
    ANIMATE: (
        "Animate",
        "Image to video, then video to video on its frames, in one call. At this size the "
        "second stage has little to add.",
    ),
}
_SHOWN = ("num_frames", "width", "height", "num_inference_steps", "scheduler", "guidance_scale", "seed")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 0; }
section { border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem; margin: 1.5rem 0; }
section > p { margin: .2rem 0 1rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
figure { margin: 0; width: 18rem; max-width: 100%; }
figure img, figure video { width: 100%; display: block; border-radius: 6px; image-rendering: pixelated; }
figcaption { font-size: .85rem; opacity: .75; margin-bottom: .3rem; }
.prompt { font-size: 1.15rem; padding: .6rem 1rem; background: var(--soft); border-radius: 6px; }
pre { background: var(--soft); border-radius: 6px; padding: .7rem; white-space: pre-wrap; font-size: .85rem; }
small { opacity: .75; }
"""


class Made(NamedTuple):
    """One video of the page; files by their names in its folder."""

    name: str
    text: str
    input: str | None
    first: str | None
    """The first stage's video."""
    video: str
    sheet: str
    command: str
    record: Mapping[str, object]


def page(path: Path, videos: Sequence[Made], chosen: bool) -> None:
    """Writes the page. ``chosen``: scenes and seeds were picked for it. Raises OutputError."""
    picked = (
        "Scenes and seeds were <b>chosen</b> among several because these come out well; others do worse."
        if chosen
        else "The input is yours: anything but such shapes is beyond these models."
    )
    intro = (
        "Made on this machine by small models (41 MB together) that ship with the package. They were trained "
        "on drawn scenes, 16 frames of 96×96 pixels, to try the machinery with: they know a few coloured "
        f"shapes and motions, and nothing else. {picked} Pixels are enlarged as they are."
    )
    body = "".join(map(_section, videos))
    text = (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>modelscope-i2v demo</title><style>{_STYLE}</style>\n"
        f"<h1>First videos</h1><p>{intro}</p>{body}\n"
        "<p>For real videos, with the models of the ModelScope hub: "
        "<code>modelscope-i2v image-to-video --help</code></p></html>\n"
    )
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _section(made: Made) -> str:
    title, about = _TITLES[made.name]
    record = ", ".join(f"{name} {made.record[name]}" for name in _SHOWN if name in made.record)
    prompt = f'<div class="prompt">“{escape(made.text)}”</div>' if made.text else ""
    shown = [_figure("Input", made.input) if made.input else "", _figure("First stage", made.first)]
    if made.input is None:
        shown = [f"<figure><figcaption>Input</figcaption>{prompt}</figure>"]
        prompt = ""
    return (
        f"\n<section><h2>{escape(title)}</h2><p>{escape(about)}</p>{prompt and f'<p>{prompt}</p>'}"
        f'<div class="row">{"".join(shown)}{_figure("Output", made.video)}</div>'
        f'<p><small>{escape(record)} · <a href="{quote(made.sheet)}">all frames</a></small></p>'
        f"<pre>{escape(made.command)}</pre></section>"
    )


def _figure(caption: str, file: str | None) -> str:
    if file is None:
        return ""
    link = quote(file)
    shown = (
        f'<img src="{link}" alt="{escape(caption)}">'
        if file.endswith(".png")
        else f'<video src="{link}" autoplay loop muted playsinline></video>'
    )
    return f"<figure><figcaption>{escape(caption)}</figcaption>{shown}</figure>"
