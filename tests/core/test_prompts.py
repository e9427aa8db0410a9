"""Weights of words, and texts of more than 77 tokens."""

import contextlib
import time
import warnings

import numpy as np
import open_clip
import pytest
import torch
from checkpoints_factory import configs, random_state
from hypothesis import given
from hypothesis import strategies as st

from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.encoders.clip import TextEncoder
from modelscope_i2v.encoders.prompts import MAX_WEIGHT, check_text, parse, rows_needed, tokenize
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import InputError
from modelscope_i2v.media.write import write_video
from modelscope_i2v.spec.families import FAMILIES, IMAGE_TO_VIDEO
from modelscope_i2v.spec.options import resolve

PLAIN = [
    "",
    "a boat",
    "a boat (in the sea)",
    "[a] {b} ((c))",
    "wide (16:9), at 10:30 (or 9:15)",
    "a smile :-) \\(ツ)/",
    "half (open",
    "shut) half",
    "(:1.3)",
    "ratio (2.35:1)",
    "a panda " * 60,
]
LONG = ", ".join(f"{number} boats on a {colour} sea" for number in range(12) for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def encoder():
    network = TextEncoder(configs("text-to-video-synthesis").clip)
    network.load_state_dict(random_state(network))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (red:1.3) boat", [("a ", 1.0), ("red", 1.3), (" boat", 1.0)]),
        ("(a boat:2)", [("a boat", 2.0)]),
        ("(a boat : .5 )", [("a boat ", 0.5)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        ("((a:1.5))", [("(", 1.0), ("a", 1.5), (")", 1.0)]),
        ("(x) (a:0)", [("(x) ", 1.0), ("a", 0.0)]),
        ("(a:1.0) b", [("a b", 1.0)]),
        ("(apollo 11:1.3)", [("apollo 11", 1.3)]),
        (r"\(a:1.3\) (b:2)", [("(a:1.3) ", 1.0), ("b", 2.0)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("(a:1.3", [("(a:1.3", 1.0)]),
        ("((a:1.3)", [("(", 1.0), ("a", 1.3)]),
    ],
)
def test_parse(text, expected):
    assert parse(text) == [(words, pytest.approx(weight)) for words, weight in expected]


@pytest.mark.parametrize("text", PLAIN)
def test_what_holds_no_weight_stays_as_it_is(text):
    assert parse(text) in ([(text, 1.0)], [])


@given(st.text(alphabet="ab ()\\:.19-", max_size=30))
def test_any_text_is_parsed_or_refused_with_a_sentence(text):
    try:
        stretches = parse(text)
    except InputError as error:
        assert str(MAX_WEIGHT)[:2] in str(error)
    else:
        assert all(0 <= weight <= MAX_WEIGHT for _, weight in stretches)
        assert sum(len(words) for words, _ in stretches) <= len(text)


@pytest.mark.parametrize("text", ["(a:11)", "(a:-1)", "((a:4):3)"])
def test_weights_out_of_range(text):
    with pytest.raises(InputError, match="weights are from 0 to 10"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000 + "a:1.3)",
        "(" * 50_000 + "a:1.3" + ")" * 50_000,
        "(a:" * 50_000 + ":1)" * 50_000,
        f"(a:{'1' * 30_000})",
        f"(a:{'1' * 30_000}x)",
        "(b:1.1)" * 15_000,
        "()" * 50_000,
        "abcdefghij" * 3_000 + "(b:2)",
    ],
    ids=lambda text: text[:8],
)
def test_texts_that_are_made_to_take_long(text):
    start = time.process_time()
    with contextlib.suppress(InputError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_text(text)
        assert tokenize(text, 2)[0].shape == (2, 77)
    assert time.process_time() - start < 8  # minutes before


def test_a_warning_quotes_no_more_than_a_line():
    with pytest.warns(UserWarning, match="no effect") as caught:
        check_text("a boat " * 5_000)
    assert len(str(caught[0].message)) < 500


def test_weights_nest_and_end_somewhere():
    assert parse("(" * 64 + "a" + ":1.1)" * 2 + ":1)" * 62) == [("a", pytest.approx(1.21))]
    with pytest.raises(InputError, match="more than 64 weights"):
        parse("(" * 65 + "a" + ":1)" * 65)


@pytest.mark.parametrize("text", [*PLAIN, LONG, "a " * 75, "a " * 76, "pneumonoultramicroscopic" * 9])
def test_one_row_is_open_clips(text):
    tokens, weights = tokenize(text)
    assert torch.equal(tokens, open_clip.tokenize([text]))
    assert (weights == 1).all()


def test_states_without_weights_are_the_same_bits(encoder):
    texts = ["a boat", "", "wide (16:9)", "a panda " * 60]
    expected = encoder(open_clip.tokenize(texts))
    assert torch.equal(encoder.encode(texts), expected)


def test_rows_hold_all_words_and_break_none():
    count = rows_needed(LONG)
    tokens, _ = tokenize(LONG, count)
    assert count > 2 and tokens.shape == (count, 77)
    words = [row[1 : int((row == 49407).nonzero()[0])] for row in tokens]
    assert torch.equal(torch.cat(words), torch.tensor(open_clip.tokenizer._tokenizer.encode(LONG)))
    assert (tokens[:, 0] == 49406).all() and all(len(row) <= 75 for row in words)
    one = len(open_clip.tokenizer._tokenizer.encode("unfathomably"))
    assert 75 % one, "else 75 tokens would break none either"
    first = tokenize("unfathomably " * 60, 9)[0][0]
    assert int((first == 49407).nonzero()[0]) == 75 // one * one + 1


def test_rows_that_are_not_needed_are_those_of_an_empty_text(encoder):
    states = encoder.encode(["a boat", LONG], rows=rows_needed(LONG))
    assert states.shape == (2, 77 * rows_needed(LONG), 64)
    assert torch.allclose(states[0, :77], encoder.encode(["a boat"])[0], atol=1e-6)
    assert torch.allclose(states[0, 77:154], encoder.encode([""])[0], atol=1e-6)


def test_a_weight_moves_its_words_away_from_the_empty_text(encoder):
    plain, empty = encoder.encode(["a red boat"])[0], encoder.encode([""])[0]
    for weight in (0.0, 0.5, 1.3):
        (states,) = encoder.encode([f"a (red:{weight}) boat"])
        others = [0, 1, *range(3, 77)]
        assert torch.equal(states[others], plain[others])  # marks, the words beside it, and the padding
        assert torch.allclose(states[2], empty[2] + weight * (plain[2] - empty[2]), atol=1e-5)
    assert torch.equal(encoder.encode(["a (red:1) boat"])[0], plain)


def test_long_texts_are_cut_with_a_warning_unless_all_is_read():
    with pytest.warns(UserWarning, match="no effect: .*long_prompt=True"):
        check_text("a boat " * 50)
    with pytest.warns(UserWarning, match="negative_prompt is longer"):
        check_text("a boat " * 50, what="negative_prompt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_text("a boat " * 50, long=True)
        for family in FAMILIES.values():
            check_text(family.negative_prompt)


# ---- in a video --------------------------------------------------------------------------------------

TEXT_FAMILIES = [name for name, family in FAMILIES.items() if family.reads_text]
QUICK = {
    "num_inference_steps": 2,
    "num_frames": 2,
    "height": 64,
    "width": 64,
    "progress": False,
    "output_type": "np",
    "seed": 1,
}


@pytest.fixture(scope="module", params=TEXT_FAMILIES)
def made(request, tmp_path_factory):
    """A function of texts and options that makes videos with one family."""
    model = VideoGenerator.from_directory(model_directory(request.param), device="cpu")
    beside = {}
    if request.param == "video-to-video":
        frames = np.random.default_rng(0).integers(0, 255, (2, 48, 80, 3), dtype=np.uint8)
        beside = {"video_path": write_video(frames, tmp_path_factory.mktemp("clip") / "clip.mp4", fps=8)}
    elif request.param == "i2vgen-xl":
        beside = {"image": picture()}
    return lambda *texts, **options: model([{"text": t, **beside} for t in texts], **QUICK, **options)


def test_weights_change_the_video_and_one_does_not(made):
    plain, one, more = made("a red boat", "a (red:1) boat", "a (red:1.5) boat")
    assert np.array_equal(plain, one) and not np.array_equal(plain, more)
    (less,) = made("a red boat", negative_prompt="(ugly:2)", guidance_scale=5)
    assert not np.array_equal(made("a red boat", negative_prompt="ugly", guidance_scale=5)[0], less)


def test_long_prompt_reads_the_end(made):
    other = LONG.replace("11 boats on a blue sea", "a dog")
    with pytest.warns(UserWarning, match="no effect"):
        cut, alike = made(LONG, other)
    assert np.array_equal(cut, alike)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, differing = made(LONG, other, long_prompt=True)
    assert not np.array_equal(whole, differing)


def test_short_texts_need_no_more_rows(made):
    short, asked = made("a boat"), made("a boat", long_prompt=True)
    assert np.array_equal(short[0], asked[0])


def test_either_branch_may_be_the_longer_and_batches_stay_alike(made):
    texts = ("a boat", LONG)
    single = [made(text, long_prompt=True)[0] for text in texts]
    together = made(*texts, long_prompt=True, batch_size=2)
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(single, together))
    (negative,) = made("a boat", long_prompt=True, negative_prompt=LONG)
    assert not np.array_equal(negative, single[0])


def test_wrong_weights_are_told_before_the_networks_run(made):
    for options in ({}, {"negative_prompt": "(a:99)"}):
        with pytest.raises(InputError, match="weights are from 0 to 10"):
            made("a boat" if options else "(a:99)", callback=lambda *_: pytest.fail("ran"), **options)


def test_families_without_text_have_no_such_option():
    with pytest.raises(InputError, match="no option 'long_prompt'"):
        resolve(IMAGE_TO_VIDEO, {"long_prompt": True})
