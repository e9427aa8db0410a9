"""Previews: sheets of videos sampled during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..data.encode import Encoders
from ..engine.generator import VideoGenerator
from ..media.sheet import contact_sheet
from ..networks.stunet import STUNet

SEED = 1
"""Seed of samples whose options have none; the same in every sheet, so that sheets can be compared."""


class Previews:
    """Generates the same samples at different steps.

    Raises InputError for inputs or options that the pipeline does not take.
    """

    def __init__(
        self, encoders: Encoders, unet: STUNet, inputs: Sequence[Any], options: Mapping[str, Any]
    ) -> None:
        self.generator = VideoGenerator(
            encoders.family,
            unet,
            encoders.autoencoder,
            encoders.text_encoder,
            encoders.image_encoder,
            device=encoders.device,
            dtype=next(encoders.autoencoder.parameters()).dtype,
            defaults=encoders.directory.defaults,
        )
        self.inputs = list(inputs)
        self.options = {"seed": SEED, "progress": False, **options, "output_type": "np"}
        for given in self.inputs:
            self.generator.prepare(given, **self.options)

    def sheet(self) -> Image.Image:
        """A sheet with a row of frames for each input, generated with the current weights."""
        unet = self.generator.unet
        training = unet.training
        unet.eval()
        try:
            videos = self.generator(self.inputs, **self.options)
        finally:
            unet.train(training)
        rows = [contact_sheet(video, columns=8, rows=1) for video in videos]
        sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
        top = 0
        for row in rows:
            sheet.paste(row, (0, top))
            top += row.height
        return sheet
