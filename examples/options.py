"""The same noise through several solvers, without ModelScope's pipeline.

``python examples/options.py`` writes one contact sheet for each solver.
"""

from modelscope_i2v import VideoGenerator
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.media.sheet import contact_sheet

generator = VideoGenerator.from_directory(model_directory("text-to-video-synthesis"), device="cpu")
for scheduler in ("ddim", "dpmpp_2m", "unipc"):
    frames = generator(
        "a red star moves right",
        scheduler=scheduler,
        seed=1,
        num_inference_steps=5,
        num_frames=8,
        output_type="np",
    )  # uint8 [frames, height, width, 3]
    contact_sheet(frames).save(f"{scheduler}.png")
    print(f"{scheduler}.png")
