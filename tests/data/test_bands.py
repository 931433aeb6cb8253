"""Images that are not 8-bit RGB: which bands and which values become what a backbone takes."""

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from check_helpers import Maker, codes, only
from image_files import with_orientation, write_png, write_tiff
from messages import naming
from PIL import Image
from training_helpers import drawn, train_here

from checkpoint import find_checkpoint, read_checkpoint
from data.check.check import check_pairs
from data.decode import DecodeError, decode_image
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from data.sources.pairs import match_files
from prediction.predictor import Predictor
from segmenter import Segmenter
from training.config import parse_training_arguments

RNG = np.random.default_rng(3)
WIDE = RNG.integers(0, 65536, (5, 7, 4)).astype(np.uint16)
BANDS = RNG.integers(0, 256, (5, 7, 6)).astype(np.uint8)


def values_of(path: Path, rule: ImageRule = PLAIN) -> np.ndarray:
    """(H, W, C)."""
    return decode_image(path, rule=rule).values.transpose(1, 2, 0)


def tiff(path: Path, values: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def refusal(path: Path, rule: ImageRule = PLAIN) -> DecodeError:
    with pytest.raises(DecodeError, match=path.name) as refused:
        decode_image(path, rule=rule)
    return refused.value


@pytest.mark.parametrize(
    ("colour_type", "bands", "colours"), [(0, [0], 1), (2, [0, 1, 2], 3), (4, [0, 3], 1), (6, [0, 1, 2, 3], 3)]
)
def test_all_16_bits_of_a_png_are_read(tmp_path, colour_type, bands, colours):
    rows = [row.astype(">u2").tobytes() for row in WIDE[..., bands]]
    path = write_png(tmp_path / "i.png", rows, 7, 16, colour_type)
    assert (values_of(path) == WIDE[..., bands[:colours]]).all()
    all_bands = ImageRule((1, 1, len(bands)))
    assert (values_of(path, all_bands) == WIDE[..., [0, 0, bands[-1]]]).all()
    with Image.open(path) as image:
        eight_bits = np.asarray(image.convert("RGB")) if colours == 3 else np.rint(WIDE[..., :1] / 257)
    assert (decode_image(path).pixels.transpose(1, 2, 0) == eight_bits).all()


def test_a_16_bit_pgm_has_a_known_range(tmp_path):
    path = tmp_path / "i.pgm"
    path.write_bytes(b"P5 7 5 65535\n" + WIDE[..., 0].astype(">u2").tobytes())
    assert (values_of(path) == WIDE[..., :1]).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_all_16_bits_of_a_tiff_are_read(tmp_path, compression, byteorder, planar):
    stored = WIDE[..., :3] if planar == "contig" else WIDE[..., :3].transpose(2, 0, 1)
    options = {"photometric": "rgb", "planarconfig": planar, "compression": compression, "byteorder": byteorder}
    path = tiff(tmp_path / "i.tif", stored, **options)
    assert (values_of(path) == WIDE[..., :3]).all()


def test_every_orientation_turns_all_readers_alike(tmp_path):
    for orientation in range(1, 9):
        plain = tmp_path / "plain.tif"
        Image.fromarray(BANDS[..., :3]).save(plain, exif=with_orientation(orientation))
        tag = [(274, 3, 1, orientation, True)]
        six = tiff(tmp_path / "six.tif", BANDS, photometric="minisblack", planarconfig="contig", extratags=tag)
        wide = tiff(tmp_path / "wide.tif", WIDE[..., :3], photometric="rgb", extratags=tag)
        assert (values_of(six, ImageRule((1, 2, 3))) == values_of(plain)).all()
        assert values_of(wide).shape == values_of(plain).shape
        assert decode_image(six, upright=False, rule=ImageRule((1, 2, 3))).values.shape == (3, 5, 7)


@pytest.mark.parametrize("extra", ["unspecified", "none"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_band_that_is_no_alpha_needs_a_choice(tmp_path, extra, dtype):
    values = (WIDE if dtype == np.uint16 else BANDS[..., :4]).astype(dtype)
    path = tiff(tmp_path / "i.tif", values, photometric="rgb", extrasamples=["unspecified"], compression="zlib")
    if extra == "none":  # the tag is not even there
        path.write_bytes(path.read_bytes().replace(b"\x52\x01\x03\x00", b"\x53\xff\x03\x00", 1))
    refused = refusal(path)
    assert refused.kind == "unsuitable" and "4 bands" in str(refused) and "--bands" in str(refused)
    assert (values_of(path, ImageRule((4, 2, 1))) == values[..., [3, 1, 0]]).all()
    assert "names band 5" in str(refusal(path, ImageRule((5, 2, 1))))


def test_an_alpha_is_no_band_unless_it_is_named(tmp_path):
    path = tiff(tmp_path / "i.tif", BANDS[..., :4], photometric="rgb", extrasamples=["unassalpha"])
    assert (values_of(path) == BANDS[..., :3]).all()
    assert (values_of(path, ImageRule((4, 1, 2))) == BANDS[..., [3, 0, 1]]).all()


@pytest.mark.parametrize("options", [{"photometric": "rgb"}, {"photometric": "minisblack"}])
def test_many_bands(tmp_path, options):
    path = tiff(tmp_path / "i.tif", BANDS, planarconfig="contig", **options)
    assert "6 bands" in str(refusal(path))
    assert (decode_image(path, rule=ImageRule((6, 4, 1))).pixels.transpose(1, 2, 0) == BANDS[..., [5, 3, 0]]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
@pytest.mark.parametrize("count", [1, 3])
def test_values_without_a_known_range_need_one(tmp_path, dtype, count):
    values = np.array([-100, 0, 60, 100, 300]).astype(dtype).repeat(count).reshape(1, 5, count)
    options = {"photometric": "rgb"} if count == 3 else {}
    path = tiff(tmp_path / "i.tif", values if count == 3 else values[..., 0], **options)
    assert "--value-range" in str(refusal(path))
    assert (decode_image(path, rule=ImageRule(value_range=(0, 100))).pixels == [[[0, 0, 153, 255, 255]]]).all()


def test_percentiles_of_one_image_leave_out_the_extremes_and_what_is_no_number(tmp_path):
    values = np.linspace(0, 1, 101, dtype=np.float32)
    values[-1] = 1e9
    path = tiff(tmp_path / "i.tif", np.append(values, np.nan).astype(np.float32)[None])
    pixels = decode_image(path, rule=ImageRule(value_range="percentile")).pixels[0, 0]
    assert pixels[0] == pixels[2] == 0 and pixels[98] == pixels[100] == 255 and pixels[101] == 0
    assert abs(int(pixels[50]) - 128) <= 1
    flat = tiff(tmp_path / "flat.tif", np.full((4, 4), 7, np.float32))
    assert (decode_image(flat, rule=ImageRule(value_range="percentile")).pixels == 0).all()


def test_without_tifffile_the_message_names_it(tmp_path, monkeypatch):
    path = tiff(tmp_path / "i.tif", BANDS, photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    refused = refusal(path)
    assert refused.kind == "no reader" and "tifffile" in str(refused)


def test_many_bands_count_for_the_limit(tmp_path):
    path = tiff(tmp_path / "i.tif", np.zeros((8, 8, 100), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(DecodeError) as refused:
        decode_image(path, max_pixels=64)
    assert refused.value.kind == "too large"


def test_a_part_that_unfolds_far_beyond_the_image_is_refused(tmp_path):
    part = zlib.compress(bytes(2**24))
    tags = {256: (2,), 257: (2,), 258: (8,) * 5, 259: (8,), 262: (1,), 273: ("here",), 277: (5,), 278: (2,)}
    path = write_tiff(tmp_path / "bomb.tif", tags | {279: (len(part),)}, part)
    with pytest.raises(DecodeError, match=naming("bomb.tif")) as refused:
        decode_image(path, max_pixels=2**16, rule=ImageRule((1, 2, 3)))
    assert refused.value.kind == "too large"
    small = zlib.compress(bytes(range(20)))
    fine = write_tiff(tmp_path / "fine.tif", tags | {279: (len(small),)}, small)
    assert decode_image(fine, rule=ImageRule((1, 2, 3))).pixels[:, 0, 1].tolist() == [5, 6, 7]


def test_a_compression_that_needs_another_package_is_named(tmp_path, monkeypatch):
    path = tiff(tmp_path / "i.tif", BANDS, photometric="minisblack", planarconfig="contig", compression="lzma")
    monkeypatch.setattr("data.bands.find_spec", lambda name: None)
    refused = refusal(path)
    assert refused.kind == "no reader" and "imagecodecs" in str(refused)


def test_a_rule_survives_json_and_older_runs_have_none():
    for rule in (PLAIN, ImageRule((3, 2, 1), (0.0, 4095.0)), ImageRule(value_range="percentile")):
        assert ImageRule.from_dict(rule.as_dict()) == rule
    assert ImageRule.from_dict({"image_size": 64}) == PLAIN


# The check


def twelve_bits(make: Maker, name: str, low_bits: int) -> None:
    """A mask, and a 16-bit image whose upper byte is the same whatever low_bits is."""
    make.mask(name, [0, 1])
    values = np.full((8, 12), 0x0A00 | low_bits, np.uint16)
    values[0, 0] = 4095
    Image.fromarray(values).save(make.path("images", "train", f"{name}.png"))


def test_narrow_16_bit_values_are_warned_of_and_not_taken_for_the_same(tmp_path):
    make = Maker(tmp_path)
    for number in range(3):
        twelve_bits(make, f"{number}", number)
    report = make.check(2)
    assert codes(report) == ["narrow-range"]
    finding = only(report, "narrow-range")
    assert finding.severity == "warning" and "2560 to 4095" in finding.message and "0 4095" in finding.remedy
    pairing = match_files(*make.flags())
    for rule in (ImageRule(value_range=(0, 4095)), ImageRule(value_range="percentile"), PLAIN):
        again = check_pairs(pairing, None, LabelRule(2), ["a", "b"], progress=False, rule=rule)
        assert codes(again) == ([] if rule.value_range else ["narrow-range"])  # one rule's facts are not another's


def test_other_bands_are_other_facts(tmp_path):
    make = Maker(tmp_path)
    make.mask("a", [0, 1], size_wh=(7, 5))
    path = make.path("images", "train", "a.tif")
    tifffile.imwrite(path, BANDS, photometric="minisblack", planarconfig="contig")
    pairing = match_files(*make.flags())
    found = [
        codes(check_pairs(pairing, None, LabelRule(2), ["a", "b"], progress=False, rule=rule))
        for rule in (PLAIN, ImageRule((1, 2, 3)), ImageRule((1, 2, 7)), ImageRule((1, 2, 3)))
    ]
    assert found == [["unsuitable-file"], [], ["unsuitable-file"], []]


# Training and prediction


@pytest.mark.parametrize(
    ("words", "bands", "value_range"),
    [
        (["--bands", "4,3,2", "--value-range", "-5", "4095"], (4, 3, 2), [-5, 4095]),
        (["--value-range", "percentile"], None, "percentile"),
        ([], None, None),
    ],
)
def test_flags_become_plain_values(words, bands, value_range):
    args = parse_training_arguments("linear", ["--image-paths", "i", "--mask-paths", "m", *words])
    assert args.bands == bands and args.arguments()["value_range"] == value_range


@pytest.mark.parametrize(
    "words", [["--bands", "1,2"], ["--bands", "0,1,2"], ["--value-range", "5"], ["--value-range", "9", "3"]]
)
def test_wrong_bands_and_ranges_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_training_arguments("linear", ["--image-paths", "i", "--mask-paths", "m", *words])
    assert stop.value.code == 2 and words[0] in capsys.readouterr().err


def test_a_run_remembers_its_rule_for_prediction_and_resuming(tmp_path, capsys):
    data = drawn(tmp_path / "data")
    for path in (tmp_path / "data" / "images").rglob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        tiff(
            path.with_suffix(".tif"),
            np.dstack([pixels, pixels, pixels[..., :1]]).astype(np.float32) * 10,
            photometric="rgb",
        )
        path.unlink()
    data = [word.replace(".png", ".tif") if "/images/" in word else word for word in data]
    run, rule = tmp_path / "run", ["--bands", "3,2,1", "--value-range", "0", "2550"]
    assert train_here("linear", run, *data, *rule, "--max-steps", "2") == 0
    kept = read_checkpoint(find_checkpoint(run))["arguments"]
    assert kept["bands"] == [3, 2, 1] and kept["value_range"] == [0, 2550]
    path = next((tmp_path / "data" / "images" / "val").glob("*.tif"))
    pixels = tifffile.imread(path)[..., [2, 1, 0]] / 10
    assert (Predictor(Segmenter.load(run)).read(path) == pixels).all()
    capsys.readouterr()
    more = ["--bands", "3,2,1", "--value-range", "0", "255", "--max-steps", "4", "--resume-checkpoint", "auto"]
    assert train_here("linear", run, *data, *more) == 2
    assert "range of values" in capsys.readouterr().err
