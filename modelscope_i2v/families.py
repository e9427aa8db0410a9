"""The table of checkpoint families: one entry tells all that one task's weights were trained with.

Nothing here imports torch, so that the command line and the option checks stay light.
"""

from __future__ import annotations

from dataclasses import dataclass

from .networks.config import STUNetConfig

LATENT_SCALE = 0.18215
"""Factor between the autoencoder's latents and the ones that are diffused (Stable Diffusion)."""


@dataclass(frozen=True)
class Family:
    """What one family of checkpoints was trained with, and what its original pipeline does.

    Sizes are in pixels, ``fps`` in frames per second.
    """

    task: str
    """ModelScope's task, which is also the family's name."""
    model_type: str
    pipeline_type: str
    hub_ids: tuple[str, ...]
    """Ids on the ModelScope hub, the default one first."""
    unet: STUNetConfig
    condition: str
    """``image`` (CLIP image embedding) or ``text`` (CLIP text states)."""
    schedule: str
    """A function of :mod:`modelscope_i2v.sampling.schedules`."""
    prediction: str
    """``v`` (velocity) or ``eps`` (noise)."""
    scheduler: str
    """Default solver, a name of :data:`modelscope_i2v.sampling.SOLVERS`."""
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    num_frames: int
    guidance_rescale: float = 0.0
    fps: float = 8.0
    """Frame rate of the written file, and what the fps embedding is told where there is one."""
    noise_offset: float = 0.0
    """Weight of the noise that a whole frame's channel shares."""
    start_timestep: int = 999
    """Where denoising starts; below 999 the input video is diffused to there."""
    takes_video: bool = False
    crf: int = 17
    """H.264 quality of the written file."""
    decode_chunk_size: int = 8
    negative_prompt: str = ""
    prompt_suffix: str = ""
    """What is appended to every prompt."""


IMAGE_TO_VIDEO = Family(
    task="image-to-video",
    model_type="image-to-video-model",
    pipeline_type="image-to-video-task-pipeline",
    hub_ids=("damo/Image-to-Video", "iic/Image-to-Video"),
    unet=STUNetConfig(image_tokens=4, fps_embedding=True),
    condition="image",
    schedule="sqrt_linear",
    prediction="v",
    scheduler="ddim",
    num_inference_steps=50,
    guidance_scale=3.0,
    height=256,
    width=448,
    num_frames=32,
    noise_offset=0.1,
)

VIDEO_TO_VIDEO = Family(
    task="video-to-video",
    model_type="video-to-video-model",
    pipeline_type="video-to-video-pipeline",
    hub_ids=("damo/Video-to-Video", "iic/Video-to-Video"),
    unet=STUNetConfig(extra_rows=True),
    condition="text",
    schedule="logsnr_cosine_interp",
    prediction="v",
    scheduler="dpmpp_2m_sde",
    num_inference_steps=30,
    guidance_scale=7.5,
    guidance_rescale=0.2,
    height=720,
    width=1280,
    num_frames=32,
    start_timestep=599,
    takes_video=True,
    decode_chunk_size=2,
    # The two texts below are constants of the original pipeline; the weights expect them as they are.
    negative_prompt=(
        "worst quality, normal quality, low quality, low res, blurry, text, watermark, logo, banner, "
        "extra digits, cropped, jpeg artifacts, signature, username, error, sketch ,duplicate, ugly, "
        "monochrome, horror, geometry, mutation, disgusting"
    ),
    prompt_suffix=(
        ", cinematic, High Contrast, highly detailed, unreal engine, taken using a Canon EOS R camera, "
        "hyper detailed photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme "
        "meticulous detailing, skin pore detailing, hyper sharpness, perfect without deformations, "
        "Unreal Engine 5, 4k render"
    ),
)

TEXT_TO_VIDEO = Family(
    task="text-to-video-synthesis",
    model_type="latent-text-to-video-synthesis",
    pipeline_type="latent-text-to-video-synthesis",
    hub_ids=("damo/text-to-video-synthesis", "iic/text-to-video-synthesis"),
    unet=STUNetConfig(),
    condition="text",
    schedule="sqrt_linear",
    prediction="eps",
    scheduler="ddim",
    num_inference_steps=50,
    guidance_scale=9.0,
    height=256,
    width=256,
    num_frames=16,
    crf=10,
)

FAMILIES: dict[str, Family] = {
    family.task: family for family in (IMAGE_TO_VIDEO, VIDEO_TO_VIDEO, TEXT_TO_VIDEO)
}
"""Every family by its ModelScope task."""
