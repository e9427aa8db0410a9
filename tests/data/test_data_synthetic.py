"""Drawn scenes: their truth, their captions, what training never shows."""

import collections

import numpy as np
import pytest

from modelscope_i2v.data import synthetic


def scenes(count, seed=0, **wishes):
    generator = np.random.default_rng(seed)
    return [synthetic.draw(generator, **wishes) for _ in range(count)]


def test_the_same_seed_draws_the_same_scene():
    assert scenes(20) == scenes(20)
    assert scenes(20) != scenes(20, seed=1)


def test_held_out_combinations_never_occur_in_training_nor_backwards():
    for scene in scenes(400):
        for shown in filter(None, (scene, scene.reversed())):
            assert not any(synthetic.is_held_out(shape.combination) for shape in shown.shapes)
    for scene in scenes(100, held_out=True, camera=False):
        assert all(synthetic.is_held_out(shape.combination) for shape in scene.shapes)


def test_held_out_combinations_touch_every_colour_kind_and_motion():
    held = [c for c in synthetic.combinations() if synthetic.is_held_out(c)]
    assert 0.1 < len(held) / len(synthetic.combinations()) < 0.15
    for place, names in enumerate((synthetic.COLOURS, synthetic.KINDS, synthetic.MOTIONS)):
        counts = collections.Counter(c[place] for c in held)
        assert set(counts) == set(names)


def test_all_of_a_shape_stays_in_the_picture():
    for scene in scenes(200, camera=False):
        clip = synthetic.render(scene, 8)
        reach = clip.radii[..., None]
        assert (clip.centres - reach >= 0).all() and (clip.centres + reach <= 96).all(), scene.caption


@pytest.mark.parametrize("wish", [{"shapes": 1}, {"shapes": 2}, {"camera": True}])
def test_the_truth_is_what_the_pixels_show(wish):
    for scene in scenes(25, **wish):
        clip = synthetic.render(scene, 5)
        for shape, mask, centre in zip(scene.shapes, clip.masks, clip.centres):
            if len(scene.shapes) == 2 and mask.sum() == 0:
                continue
            for frame, (picture, seen) in enumerate(zip(clip.frames, mask)):
                rows, columns = np.nonzero(seen)
                found = np.array([columns.mean(), rows.mean()]) + 0.5
                assert np.abs(found - centre[frame]).max() < 4, scene.caption
                colour = np.array(synthetic.COLOURS[shape.colour])
                light = picture[seen].mean(0) / colour.clip(1)
                assert light[colour > 100].std() < 0.08 and 0.5 < light[colour > 100].mean() < 1.01


def test_a_clip_backwards_is_the_reversed_scene():
    for scene in scenes(40):
        if (back := scene.reversed()) is not None:
            assert np.array_equal(synthetic.render(back, 6).frames[::-1], synthetic.render(scene, 6).frames)
    turning = scenes(1, combination=("red", "star", "turns"))[0]
    assert turning.reversed() is None


def test_captions_say_what_happens():
    shape = synthetic.Shape("orange", "star", "moves up", 0.5, 0.5, 0.1)
    background = scenes(1)[0].background
    assert synthetic.Scene((shape,), background).caption == "an orange star moves up"
    still = synthetic.Shape("red", "circle", "stays", 0.5, 0.5, 0.1)
    assert synthetic.Scene((still,), background, "pans left").caption == "a red circle, the camera pans left"
    both = synthetic.Scene((shape, still), background)
    assert both.caption == "an orange star moves up and a red circle"


def test_the_camera_goes_where_it_says_and_the_world_the_other_way():
    for camera, (dx, dy) in synthetic.CAMERAS.items():
        scene = next(s for s in scenes(200, camera=True) if s.camera == camera)
        clip = synthetic.render(scene, 5)
        shift = clip.centres[0, -1] - clip.centres[0, 0]
        seen = np.sign(np.where(np.abs(shift) < 12, 0, shift))
        assert camera.startswith("zoom") or (seen == (-dx, -dy)).all()
        growth = clip.radii[0, -1] / clip.radii[0, 0]
        wanted = {"zooms in": synthetic.ZOOM, "zooms out": 1 / synthetic.ZOOM}.get(camera, 1.0)
        assert growth == pytest.approx(wanted, rel=1e-4)


def test_size_and_length_are_free():
    clip = synthetic.render(scenes(1)[0], 3, 40, 64)
    assert clip.frames.shape == (3, 40, 64, 3) and clip.frames.dtype == np.uint8
    assert synthetic.render(scenes(1)[0], 1).frames.shape == (1, 96, 96, 3)


def test_backgrounds_are_muted():
    for scene in scenes(100):
        ground = np.array([scene.background.dark, scene.background.light])
        assert ground.max() < 0.6 and ((ground.max(1) - ground.min(1)) / ground.max(1)).max() < 0.36


@pytest.mark.parametrize("wish", [{"shapes": 3}, {"shapes": 0}, {"shapes": 2, "camera": True}])
def test_a_wish_that_no_scene_fulfils_is_told(wish):
    with pytest.raises(ValueError, match="shapes|one shape"):
        scenes(1, **wish)
