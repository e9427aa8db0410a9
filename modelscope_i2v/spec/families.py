"""The table of checkpoint families: one entry for each set of weights.

Nothing here imports torch, so that the command line and the option checks stay light.
"""

from __future__ import annotations

from dataclasses import dataclass

from .network import STUNetConfig

LATENT_SCALE = 0.18215
"""Factor between the autoencoder's latents and the ones that are diffused (Stable Diffusion)."""


@dataclass(frozen=True)
class Family:
    """Facts about one family of checkpoints: its training, and constants of its original pipeline.

    Sizes are in pixels, ``fps`` in frames per second.
    """

    name: str
    label: str
    """The name within names of classes, such as ``ImageToVideoPipeline``."""
    makes: str
    """Inputs and outputs of its models."""
    task: str
    """ModelScope's task."""
    model_type: str
    pipeline_type: str
    hub_ids: tuple[str, ...]
    """Ids on the ModelScope hub, the default one first."""
    unet_file: str
    """The hub's name of the U-Net's file, by which a directory without a configuration is recognised."""
    unet: STUNetConfig
    reads_text: bool
    """A text leads the video, through CLIP's text tower."""
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
    autoencoder_file: str = "v2-1_512-ema-pruned.ckpt"
    clip_file: str = "open_clip_pytorch_model.bin"
    guidance_rescale: float = 0.0
    fps: float = 8.0
    """Frame rate of the written file."""
    target_fps: int = 8
    """Frame rate given to the fps embedding, where there is one."""
    clip_crop: int | None = 448
    """Side of the square that is cut out of a picture for CLIP's image tower, before it shrinks that;
    None: the video's width."""
    noise_offset: float = 0.0
    """Weight of the noise that a whole frame's channel shares."""
    takes_video: bool = False
    strength: float = 1.0
    """Share of the noise added to an input video, 0 to 1; denoising begins at :meth:`start_timestep`."""
    inversion_guidance: tuple[float, float] = (9.0, 0.3)
    """Guidance scale and rescale where the video goes back by DDIM inversion."""
    crf: int = 17
    """H.264 quality of the written file."""
    decode_chunk_size: int = 8
    negative_prompt: str = ""
    prompt_suffix: str = ""
    """Text appended to every prompt."""

    @staticmethod
    def start_timestep(strength: float) -> int:
        """The timestep, of 1000, that a strength from 0 to 1 starts at: 0.6 means 599."""
        return max(round(1000 * strength) - 1, 0)

    @property
    def reads_image(self) -> bool:
        """A picture leads the video, through CLIP's image tower."""
        return self.unet.image_tokens > 0


IMAGE_TO_VIDEO = Family(
    name="image-to-video",
    label="ImageToVideo",
    makes="a video from a picture",
    task="image-to-video",
    model_type="image-to-video-model",
    pipeline_type="image-to-video-task-pipeline",
    hub_ids=("damo/Image-to-Video", "iic/Image-to-Video"),
    unet_file="base_03_alldata_fps_v_80g_0789000.pth",
    unet=STUNetConfig(image_tokens=4, fps_embedding=True),
    reads_text=False,
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
    name="video-to-video",
    label="VideoToVideo",
    makes="a larger, finer video from a video and a text",
    task="video-to-video",
    model_type="video-to-video-model",
    pipeline_type="video-to-video-pipeline",
    hub_ids=("damo/Video-to-Video", "iic/Video-to-Video"),
    unet_file="sr_step_110000_ema.pth",
    unet=STUNetConfig(extra_rows=True),
    reads_text=True,
    schedule="logsnr_cosine_interp",
    prediction="v",
    scheduler="dpmpp_2m_sde",
    num_inference_steps=30,
    guidance_scale=7.5,
    guidance_rescale=0.2,
    height=720,
    width=1280,
    num_frames=32,
    strength=0.6,
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
    name="text-to-video-synthesis",
    label="TextToVideo",
    makes="a video from a text",
    task="text-to-video-synthesis",
    model_type="latent-text-to-video-synthesis",
    pipeline_type="latent-text-to-video-synthesis",
    hub_ids=("damo/text-to-video-synthesis", "iic/text-to-video-synthesis"),
    unet_file="text2video_pytorch_model.pth",
    autoencoder_file="VQGAN_autoencoder.pth",
    unet=STUNetConfig(),
    reads_text=True,
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

I2VGEN_XL = Family(
    name="i2vgen-xl",
    label="I2VGenXL",
    makes="a video from a picture and a text",
    task="image-to-video",
    model_type="i2vgen-xl",
    pipeline_type="i2v_gen_xl",
    hub_ids=("damo/I2VGen-XL", "iic/I2VGen-XL"),
    unet_file="i2vgen_xl_00854500.pth",
    unet=STUNetConfig(image_tokens=4, fps_embedding=True, local_image=True),
    reads_text=True,
    schedule="cosine",
    prediction="v",
    scheduler="ddim",
    num_inference_steps=50,
    guidance_scale=9.0,
    height=704,
    width=1280,
    num_frames=16,
    target_fps=16,
    clip_crop=None,
    decode_chunk_size=2,
    negative_prompt=(
        "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
        "disconnected limbs, Ugly faces, incomplete arms"
    ),
)

FAMILIES: dict[str, Family] = {
    family.name: family for family in (IMAGE_TO_VIDEO, VIDEO_TO_VIDEO, TEXT_TO_VIDEO, I2VGEN_XL)
}
"""Every family by its name."""

_OTHER_NAMES = {"text-to-video": TEXT_TO_VIDEO.name}


def family_name(name: str) -> str:
    """The name in :data:`FAMILIES` of a family or task, which may have another usual one."""
    return _OTHER_NAMES.get(name, name)


TASKS: dict[str, Family] = {family.task: family for family in (IMAGE_TO_VIDEO, VIDEO_TO_VIDEO, TEXT_TO_VIDEO)}
"""The family that each of ModelScope's tasks means by itself."""
