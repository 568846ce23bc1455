"""Augmentation strings: syntax, names, arguments and order, each mistake in one line."""

import numpy as np
import pytest

from vit_jax.config.schema import Data
from vit_jax.data import augment
from vit_jax.data.augment import Augmentation, normalize, parse
from vit_jax.data.preprocess import TrainRecipe
from vit_jax.data.randaugment import IncreasingRandAugment, PublishedRandAugment
from vit_jax.data.view import box_view
from vit_jax.errors import ConfigError

HERE = __name__


def test_parse_returns_the_steps_in_order():
    text = "inception_crop(0.08)|flip|randaug(2,10)|color_jitter(0.3)|erase(0.25)|flip"
    assert parse(text) == Augmentation(
        augment.InceptionCrop(0.08, 1.0),
        (augment.Flip(), PublishedRandAugment(2, 10.0), augment.ColorJitter(0.3)),
        (augment.Erase(0.25), augment.Flip()),
    )
    steps = parse("pad_crop | three_augment() | randaug_increasing(layers=3, magnitude=9, std=0.5)")
    assert steps == Augmentation(
        augment.PadCrop(), (augment.ThreeAugment(), IncreasingRandAugment(3, 9.0, std=0.5)), ()
    )


SPELLINGS = {
    "inception_crop|flip": ["inception_crop()|flip()", " inception_crop(0.05, 1) | flip "],
    "inception_crop(0.08)": ["inception_crop(min_area=0.08)", "inception_crop(0.080, 1.0)"],
    "inception_crop(max_area=0.5)": ["inception_crop(0.05,0.5)"],
    "resize|randaug(2,10)": ["resize|randaug(2, 10.0)", "resize|randaug(magnitude=10,layers=2)"],
    "resize|randaug_increasing(2,9,std=0.5)": ["resize|randaug_increasing(2,9,prob=1,std=0.5)"],
    "resize|erase(1)": ["resize|erase(1.0)"],
    f"resize|{HERE}:ownstep(3.0,kind='a')": [f"resize|{HERE}:ownstep( 3.0, kind = 'a' )"],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_normalize_gives_equal_augmentations_one_spelling(spelling):
    for text in (spelling, *SPELLINGS[spelling]):
        assert normalize(text) == spelling
        if HERE not in text:
            assert parse(text) == parse(spelling)


def test_default_augmentation_is_normalized():
    assert normalize(Data().augment) == Data().augment


WRONG = {
    "": "config.data.augment has the step ''; expected a name, or a name and arguments",
    "inception_crop|": "has the step ''",
    "inception_crop||flip": "has the step ''",
    "inception_crop|flip)": "has the step 'flip)'",
    "inception_crop|flip(": "has the step 'flip('",
    "inception_crop|flip()()": "has the step 'flip()()'",
    "inception_crop|flip(1)+(2)": "has the step 'flip(1)+(2)'",
    "inception_crop|erase(1/4)": "has the step 'erase(1/4)'; expected a name, or a name and arg",
    "inception_crop|erase(open('x'))": "arguments that are literals",
    "inception_crop|erase(*(1,))": "arguments that are literals",
    "inception_crop|erase(**{'a':1})": "arguments that are literals",
    "inception_crop|flipp": "config.data.augment: a step is 'flipp'; expected one of inception_cr",
    "inception_crop|randaug_incresing(2,9)": "Did you mean randaug_increasing?",
    "inception_crop|erase": "missing a required argument: 'probability'; expected probability.",
    "inception_crop|flip(0.3)": "config.data.augment: flip(0.3): too many positional arguments",
    "inception_crop|erase(0.1,p=2)": "got an unexpected keyword argument 'p'; expected probab",
    "inception_crop|randaug_increasing(2,9,0.5)": "too many positional arguments",
    "inception_crop|erase('x')": "config.data.augment: erase.probability is 'x'; it must be a",
    "inception_crop|erase(2)": "erase.probability is 2.0; it must be at most 1.",
    "inception_crop|erase(-0.1)": "erase.probability is -0.1; it must be at least 0.",
    "inception_crop|erase(1e999)": "erase.probability is inf; it must be finite.",
    "inception_crop|randaug(2.5,10)": "randaug.layers is 2.5; it must be a whole number.",
    "inception_crop|randaug(0,10)": "randaug.layers is 0; it must be at least 1.",
    "inception_crop(0)": "inception_crop.min_area is 0.0; it must be above 0.",
    "inception_crop(0.5,0.2)": "min_area, 0.5, exceeds max_area, 0.2",
    "flip": "config.data.augment is 'flip'; expected one crop, as the first step: inception_crop,",
    "flip|inception_crop": "expected one crop, as the first step",
    "inception_crop|resize": "expected one crop, as the first step",
    "resize|erase(0.25)|flip|randaug(2,10)": "config.data.augment: randaug(2,10) takes uint8 "
    "pixels; it must come before erase(0.25), which takes float32 pixels in [-1, 1].",
}


@pytest.mark.parametrize("text", WRONG)
def test_parse_and_normalize_report_a_mistake_in_one_line(text):
    for function in (parse, normalize):
        with pytest.raises(ConfigError) as caught:
            function(text)
        assert str(caught.value).startswith("config.data.augment")
        assert WRONG[text] in str(caught.value)
        assert "\n" not in str(caught.value)


def ownstep(size: float, kind: str = "b"):
    if size < 0:
        raise RuntimeError("size is\nnegative")
    return lambda image, random: image + np.uint8(size)


class OwnCrop:
    """The upper left quarter."""

    def view(self, old, new, random):
        return box_view((0, 0, old[0] // 2, old[1] // 2), new)


class Inverted:
    """A step on pixels in [-1, 1]."""

    pixels = "float32"

    def __call__(self, image, random):
        return -image


def itself(image, random):
    return image


class WrongPixels(Inverted):
    pixels = "int8"


def test_own_crops_and_steps_need_no_row_of_the_table():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, -1)
    text = f"{HERE}:OwnCrop|{HERE}:ownstep(10)|{HERE}:Inverted()"
    recipe = TrainRecipe(Data(augment=text), (4, 4))
    expected = 1 - (image[:4, :4] + 10) / np.float32(127.5)
    np.testing.assert_allclose(recipe(image, np.random.default_rng(0)), expected, atol=1e-6)


OWN_WRONG = {
    "resize|no_such_package:blur": "a step is 'no_such_package:blur', which cannot be im",
    f"resize|{HERE}:blur": f"a step is '{HERE}:blur', which cannot be imported",
    f"resize|{HERE}:ownstep(-1)": f"{HERE}:ownstep(-1): size is negative.",
    f"resize|{HERE}:ownstep": f"{HERE}:ownstep: ownstep() missing 1 required positional argument",
    f"resize|{HERE}:itself": "'random'; name a function that returns the step.",
    "resize|math:sqrt(4)": "math:sqrt(4) is a float; expected a step, which is called with an",
    f"resize|{HERE}:WrongPixels": "has pixels='int8'; expected 'uint8', 'float32' or 'any'.",
    f"resize|{HERE}:OwnCrop": "expected one crop, as the first step",
    f"{HERE}:ownstep(1)|flip": "expected one crop, as the first step",
    f"resize|{HERE}:Inverted|{HERE}:ownstep(1)": "ownstep(1) takes uint8 pixels; it must come bef",
}


@pytest.mark.parametrize("text", OWN_WRONG)
def test_parse_reports_a_wrong_own_step_in_one_line(text, monkeypatch):
    monkeypatch.setenv("VIT_JAX_TRUSTED", "tests,math,no_such_package")
    with pytest.raises(ConfigError) as caught:
        TrainRecipe(Data(augment=text), (4, 4))
    assert str(caught.value).startswith("config.data.augment")
    assert OWN_WRONG[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_normalize_imports_and_calls_nothing(tmp_path):
    """A config that comes with weights from elsewhere must not run code when it is checked."""
    target = tmp_path / "file"
    target.touch()
    for text in (f"resize|os:remove('{target}')", f"resize|shutil:move('{target}','x')|flip"):
        assert normalize(text) == text
        assert augment.user_steps(text) == [text.split("|")[1]]
    assert target.exists()
    assert augment.user_steps("resize|flip|erase(0.1)") == []
