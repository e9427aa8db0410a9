"""The table of options: what is let in, and what a person is told of the rest."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscope_i2v.errors import InputError
from modelscope_i2v.spec.families import FAMILIES, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.spec.options import MAX_SIDE, options_of, resolve

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@EVERY_FAMILY
def test_family_defaults_are_the_originals(family):
    options = resolve(family, {})
    assert options.num_inference_steps == family.num_inference_steps
    assert (options.height, options.width, options.num_frames) == (
        family.height,
        family.width,
        family.num_frames,
    )
    assert options.guidance_scale == family.guidance_scale


def test_call_beats_checkpoint_beats_family():
    checkpoint = {"num_frames": 8, "height": 64}
    options = resolve(TEXT_TO_VIDEO, {"num_frames": 4, "width": None}, checkpoint)
    assert (options.num_frames, options.height, options.width) == (4, 64, 256)


@given(st.integers(-10, 2 * MAX_SIDE))
def test_sizes_are_multiples_of_eight(size):
    good = 8 <= size <= MAX_SIDE and size % 8 == 0
    if good:
        assert resolve(TEXT_TO_VIDEO, {"height": size}).height == size
    else:
        with pytest.raises(InputError, match=f"height={size} .*height|height={size} "):
            resolve(TEXT_TO_VIDEO, {"height": size})


@given(st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.lists(st.integers()), st.booleans()))
def test_any_value_is_taken_or_refused_with_a_sentence(value):
    for family in FAMILIES.values():
        for name in options_of(family):
            try:
                resolve(family, {name: value})
            except InputError as error:
                assert name in str(error) and str(error).endswith(".")


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": 0},
        {"num_frames": -1},
        {"num_frames": 10**9},
        {"num_frames": True},
        {"num_inference_steps": 0},
        {"num_inference_steps": 1001},
        {"guidance_scale": math.nan},
        {"guidance_scale": math.inf},
        {"guidance_scale": "9"},
        {"guidance_rescale": 1.5},
        {"height": 100},
        {"width": 0},
        {"height": 10**6},
        {"fps": 0},
        {"seed": -1},
        {"seed": 1.5},
        {"scheduler": "euler"},
        {"output_type": "gif"},
        {"latents": [1, 2]},
        {"callback": 3},
        {"generator": 3},
        {"batch_size": 0},
        {"num_videos": 0},
        {"decode_chunk_size": 0},
    ],
    ids=str,
)
@EVERY_FAMILY
def test_wrong_values_are_named(family, wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name}=.* must be "):
        resolve(family, wrong)


@EVERY_FAMILY
def test_unknown_option_names_the_nearest(family):
    with pytest.raises(InputError, match="'heigth'; did you mean 'height'"):
        resolve(family, {"heigth": 256})
    with pytest.raises(InputError, match="num_inference_steps"):
        resolve(family, {"steps": 5})


def test_options_of_another_task_are_refused():
    with pytest.raises(InputError, match="image-to-video has no option 'negative_prompt'"):
        resolve(IMAGE_TO_VIDEO, {"negative_prompt": "rain"})
    with pytest.raises(InputError, match="text-to-video-synthesis has no option 'fit'"):
        resolve(TEXT_TO_VIDEO, {"fit": "crop"})
    assert resolve(VIDEO_TO_VIDEO, {"fit": "crop"}).fit == "crop"


def test_seed_and_generator_exclude_each_other():
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="seed and generator"):
        resolve(TEXT_TO_VIDEO, {"seed": 1, "generator": torch.Generator()})


def test_metadata_is_plain_and_without_what_is_not_worth_keeping():
    metadata = resolve(VIDEO_TO_VIDEO, {"seed": 7, "callback": print}).metadata()
    assert metadata["seed"] == 7 and metadata["scheduler"] == "dpmpp_2m_sde"
    assert not {"callback", "progress", "latents", "generator", "max_pixels"} & set(metadata)
