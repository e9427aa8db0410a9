"""What the embedded CLIP towers know of a drawn picture."""

from __future__ import annotations

import numpy as np
import torch

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.data import synthetic
from modelscope_i2v.data.encode import Encoders
from modelscope_i2v.embedded import model_directory

WIDTH = 96


def test_the_embedding_of_a_picture_tells_its_shapes_outline():
    """Image-to-video knows its picture by nothing else. A linear layer must be able to read it."""
    generator = np.random.default_rng(5)
    encoders = Encoders(ModelDirectory.open(model_directory("image-to-video")))
    embeddings, kinds = [], []
    for _ in range(700):
        scene = synthetic.draw(generator, shapes=1, camera=False)
        (frame,) = synthetic.render(scene, 1, WIDTH, WIDTH).frames
        embeddings.append(encoders.picture(frame, WIDTH))
        kinds.append(synthetic.KINDS.index(scene.shapes[0].kind))
    read = torch.cat([torch.stack(embeddings), torch.ones(len(kinds), 1)], dim=1).double()
    wanted = torch.eye(len(synthetic.KINDS), dtype=torch.float64)[kinds]
    known, new = slice(0, 500), slice(500, None)
    layer = torch.linalg.solve(
        read[known].T @ read[known] + 0.1 * torch.eye(read.shape[1]), read[known].T @ wanted[known]
    )
    right = (read[new] @ layer).argmax(1) == wanted[new].argmax(1)
    assert right.float().mean() > 0.95
