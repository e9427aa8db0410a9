"""Our files through somebody else's reader."""

import imageio.v3 as imageio
import numpy as np
import pytest

from modelscope_i2v.media.write import write_video

FRAMES = np.stack(
    [np.full((48, 64, 3), (40 * index, 200 - 30 * index, 90), dtype=np.uint8) for index in range(5)]
)


@pytest.mark.parametrize(("suffix", "plugin"), [(".mp4", "pyav"), (".webm", "pyav"), (".gif", "pillow")])
def test_imageio_reads_the_frames_that_were_written(tmp_path, suffix, plugin):
    path = write_video(FRAMES, tmp_path / f"video{suffix}", fps=8)
    found = imageio.imread(path, plugin=plugin)[..., :3]
    assert found.shape == FRAMES.shape
    assert np.abs(found.astype(int) - FRAMES).mean() < 8
