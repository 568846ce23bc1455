"""Outputs against stored outputs of timm and Hugging Face on the same weights.

`UPDATE_GOLDEN=1 pytest -m parity tests/weights/test_reader_parity.py -k golden` updates the file.
"""

import json

import jax
import numpy as np
import pytest

from tests.support.golden_outputs import CASES, GOLDEN, params_of, photo_pixels
from vit_jax import create_model
from vit_jax.models import trees

pytestmark = pytest.mark.stress  # Trains or runs models for seconds.


@pytest.mark.parametrize("title", CASES)
def test_outputs_equal_timm_and_huggingface(title, photos):
    expected = np.array(json.loads(GOLDEN.read_text())[title])
    name, options = CASES[title][2]
    model = create_model(name, **options)
    params = trees.unflatten(params_of(model))
    logits = np.asarray(jax.jit(model.apply)({"params": params}, photo_pixels(photos)))
    # Outputs of the two photos differ by far more than the tolerance.
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=2e-4 * np.abs(expected).max())


def test_every_case_has_its_golden_outputs():
    assert set(json.loads(GOLDEN.read_text())) == set(CASES)
