"""The detector, tested on clips whose truth is known."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from modelscope_i2v import InputError
from modelscope_i2v.data import synthetic
from modelscope_i2v.data.synthetic import CAMERAS, COLOURS, KINDS, MOTIONS, STILL, Scene
from modelscope_i2v.evaluation.detector import SYMMETRY, find
from modelscope_i2v.evaluation.examples import examples
from modelscope_i2v.evaluation.judge import judge, words
from modelscope_i2v.evaluation.tracking import look


def scenes(count: int, **wishes: object) -> list[Scene]:
    return [synthetic.draw(np.random.default_rng([77, n]), **wishes) for n in range(count)]


def right(scenes: list[Scene], spoil=lambda frames, generator: frames) -> list[bool]:
    generator = np.random.default_rng(0)
    return [judge(spoil(synthetic.render(scene).frames, generator), scene).all for scene in scenes]


def test_true_clips():
    assert all(right(scenes(24, shapes=1, camera=False)))


def test_true_clips_of_two_shapes():
    assert all(right(scenes(10, shapes=2)))


def test_true_clips_of_a_moving_camera():
    assert all(right(scenes(12, shapes=1, camera=True)))


@pytest.mark.parametrize("height, width", [(72, 128), (128, 72)])
def test_true_clips_of_other_shapes(height: int, width: int):
    """Scenes are wholly in the picture, whatever its aspect."""
    for scene in scenes(16):
        clip = synthetic.render(scene, 16, height, width)
        reach = clip.radii[..., None] * 1.1
        if scene.camera == STILL:
            assert ((clip.centres > reach) & (clip.centres < np.array([width, height]) - reach)).all()
        assert judge(clip.frames, scene).all, scene.caption


def test_a_shadow_is_not_the_ground_that_moves():
    """Stripes along the way do not change; what a star's outline and shadow leave behind does."""
    known = [one for one in examples(200, 0) if one.number in (0, 64)]
    assert [one.scene.shapes[0].kind for one in known] == ["star", "star"]
    assert all(judge(one.render(16, 96, 96).frames, one.scene).all for one in known)


@pytest.mark.parametrize("frames", [3, 8])
def test_true_clips_of_fewer_frames(frames: int):
    for scene in scenes(40, shapes=1, camera=False):
        if frames > 3 or "moves" in scene.caption:
            assert judge(synthetic.render(scene, frames).frames, scene).all, scene.caption


def test_every_colour_and_kind_and_motion():
    generator = np.random.default_rng(3)
    kinds = [*KINDS[1:], *KINDS[1:], *KINDS[1:]]  # a circle cannot be seen to turn
    for colour, kind, motion in zip(COLOURS, kinds, MOTIONS):
        scene = synthetic.draw(generator, shapes=1, camera=False, combination=(colour, kind, motion))
        assert judge(synthetic.render(scene).frames, scene).all, scene.caption


def test_blurred_and_noisy_clips():
    def spoil(frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.0) for frame in frames])
        return (soft + generator.normal(0, 6, soft.shape)).clip(0, 255).astype(np.uint8)

    assert np.mean(right(scenes(16), spoil)) > 0.9


def test_positions_sizes_and_angles_are_measured():
    scene = synthetic.draw(
        np.random.default_rng(1), shapes=1, camera=False, combination=("blue", "star", "turns")
    )
    clip = synthetic.render(scene)
    (track,) = find(clip.frames)
    assert np.abs(track.centres - clip.centres[0]).max() < 1
    assert np.abs(track.radii / clip.radii[0] - 1).max() < 0.1
    period = SYMMETRY["star"]
    off = (track.angles - clip.angles[0] + period / 2) % period - period / 2
    assert np.abs(off).max() < 0.06
    overlap = (track.masks & clip.masks[0]).sum() / (track.masks | clip.masks[0]).sum()
    assert overlap > 0.9


@pytest.mark.parametrize("part, other", [("colour", "green"), ("kind", "circle"), ("motion", "moves right")])
def test_what_is_not_asked_for_is_wrong(part: str, other: str):
    """One attribute of the wish differs from the clip: that one alone is wrong."""
    scene = synthetic.draw(
        np.random.default_rng(2), shapes=1, camera=False, combination=("red", "square", "moves left")
    )
    asked = Scene((dataclasses.replace(scene.shapes[0], **{part: other}),), scene.background)
    verdict = judge(synthetic.render(scene).frames, asked)
    assert not verdict.all
    assert {name for name in ("colour", "kind", "motion") if not getattr(verdict, name)} == {part}


def test_a_moving_camera_is_not_a_moving_shape_and_the_other_way_round():
    (scene,) = scenes(1, shapes=1, camera=True)
    still = dataclasses.replace(scene, camera=STILL)
    assert not judge(synthetic.render(scene).frames, still).motion
    assert not judge(synthetic.render(still).frames, scene).motion
    assert scene.camera in CAMERAS and look(synthetic.render(still).frames).motions == (STILL,)


def test_a_clip_that_stops_halfway_does_less():
    """Played backwards and forwards, a shape ends where it began: that is no motion to one side."""
    scene = synthetic.draw(
        np.random.default_rng(4), shapes=1, camera=False, combination=("white", "circle", "moves down")
    )
    frames = synthetic.render(scene, 8).frames
    assert look(np.concatenate([frames, frames[::-1]])).motions[0] != "moves down"


def test_a_shape_too_many_or_too_few_is_wrong():
    (two,) = scenes(1, shapes=2)
    one = dataclasses.replace(two, shapes=two.shapes[:1])
    assert not judge(synthetic.render(two).frames, one).colour
    assert not judge(synthetic.render(one).frames, two).colour


def test_half_a_clip_of_each_colour_is_no_colour():
    scene = synthetic.draw(
        np.random.default_rng(5), shapes=1, camera=False, combination=("red", "circle", "moves up")
    )
    other = Scene((dataclasses.replace(scene.shapes[0], colour="orange"),), scene.background)
    frames = np.concatenate([synthetic.render(scene).frames[:8], synthetic.render(other).frames[8:]])
    assert not judge(frames, scene).colour


@pytest.mark.parametrize("kind", ["noise", "grey", "black", "white", "one colour"])
def test_no_shape_is_made_up(kind: str):
    generator = np.random.default_rng(0)
    frames = {
        "noise": generator.integers(0, 256, (16, 96, 96, 3), np.uint8),
        "grey": np.full((16, 96, 96, 3), 90, np.uint8),
        "black": np.zeros((16, 96, 96, 3), np.uint8),
        "white": np.full((16, 96, 96, 3), 255, np.uint8),
        "one colour": np.broadcast_to(np.array([226, 36, 40], np.uint8), (16, 96, 96, 3)).copy(),
    }[kind]
    (scene,) = scenes(1, shapes=1, camera=False)
    assert not judge(frames, scene).all
    assert words(look(frames))


@pytest.mark.parametrize("seed", [206, 447])
def test_thin_lines_are_no_error(seed: int):
    """A patch of lines has no inside."""
    generator = np.random.default_rng(seed)
    frame = np.full((32, 32, 3), int(generator.integers(40, 255)), np.uint8)
    for _ in range(generator.integers(1, 10)):
        shade = generator.integers(0, 256, 3).tolist()
        begin, end = (generator.integers(0, 32, 2).tolist() for _ in range(2))
        cv2.line(frame, begin, end, shade, 1)
    assert isinstance(find(frame[None]), list)


def test_other_sizes_and_a_single_frame():
    scene = synthetic.draw(
        np.random.default_rng(6), shapes=1, camera=False, combination=("yellow", "square", "moves left")
    )
    assert judge(synthetic.render(scene, 8, 128, 160).frames, scene).all
    verdict = judge(synthetic.render(scene, 1).frames, scene)
    assert verdict.colour and verdict.kind and not verdict.motion


@pytest.mark.parametrize("frames", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)])
def test_frames_that_are_none(frames: np.ndarray):
    with pytest.raises(InputError, match="uint8"):
        find(frames)
