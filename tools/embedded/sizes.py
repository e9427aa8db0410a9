"""What the embedded models are: the sizes of their networks and of their videos."""

from __future__ import annotations

SEED = 20261121
FRAMES, HEIGHT, WIDTH, FPS = 16, 96, 96, 8

DDCONFIG = {
    "ch": 32,
    "ch_mult": [1, 1, 2, 4],
    "num_res_blocks": 1,
    "z_channels": 4,
    "in_channels": 3,
    "out_ch": 3,
}
CLIP = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 48, "patch_size": 8, "width": 128, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
UNET = {
    "unet_dim": 64,
    "unet_dim_mult": [1, 1, 1],
    "unet_context_dim": 64,
    "unet_num_heads": 2,
    "unet_head_dim": 32,
    "unet_res_blocks": 1,
    "unet_attn_scales": [1, 0.5, 0.25],
    "unet_dropout": 0.0,
}
_SAMPLING = {"num_inference_steps": 20, "guidance_scale": 3.0}
FAMILIES = {
    # Near pure noise, ε has to be right to a fifteenth for a picture to come out; a small network learns v.
    "text-to-video-synthesis": {"mean_type": "v", "scheduler": "unipc", **_SAMPLING},
    "image-to-video": {"target_fps": FPS, "scheduler": "unipc", **_SAMPLING},
    "i2vgen-xl": {"target_fps": FPS, "negative_prompt": "", "scheduler": "unipc", **_SAMPLING},
    # Its rows are halved with two more on each side, which 12 rows survive once.
    "video-to-video": {
        "unet_dim_mult": [1, 1],
        "unet_attn_scales": [0.5],
        "num_inference_steps": 15,
        "guidance_scale": 1.0,
        "guidance_rescale": 0.0,
        "strength": 0.2,
    },
}
"""What each family's model has of its own; where it differs from what the hub's weights are used with, it is
an option of the pipeline that suits a small model better."""
