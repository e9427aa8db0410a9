"""What the embedded models are: the sizes of their networks and of their videos."""

from __future__ import annotations

SEED = 20261121
FRAMES, HEIGHT, WIDTH = 16, 96, 96

DDCONFIG = {
    "ch": 32,
    "ch_mult": [1, 1, 2, 4],
    "num_res_blocks": 1,
    "z_channels": 4,
    "in_channels": 3,
    "out_ch": 3,
}
