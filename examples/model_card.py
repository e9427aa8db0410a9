"""A picture becomes a video, as on the model card; the one import in front brings this package in.

``python examples/model_card.py`` writes cat.mp4. The model is the small one that ships with the package;
``model="damo/Image-to-Video"`` is the hub's.
"""

from modelscope.pipelines import pipeline

import modelscope_i2v  # noqa: F401  (registers the tasks)
from modelscope_i2v.embedded import model_directory, picture

pipe = pipeline("image-to-video", model=str(model_directory("image-to-video")))
result = pipe(str(picture()), output_video="cat.mp4", seed=1, num_inference_steps=5)
print(result["output_video"])
