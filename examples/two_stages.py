"""From a picture and a text to a finer video, in one call and with no file between the two models.

``python examples/two_stages.py`` writes star.mp4 and, before it is refined, star-first.mp4.
"""

from modelscope_i2v import animate
from modelscope_i2v.embedded import model_directory, picture

path = animate(
    picture(),
    "a red star moves right",
    "star.mp4",
    models=[model_directory("i2vgen-xl"), model_directory("video-to-video")],
    device="cpu",
    keep_first=True,
    seed=1,
    num_inference_steps=5,
    num_frames=8,
    refine_options={"num_inference_steps": 3},
)
print(path)
