"""Names of AugReg weights: the grid of the paper, and names off the grid."""

import itertools
import re

import pytest

from vit_jax.weights.published import find_published, list_published

B_16 = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"

# The grid of AugReg files in the paper and the official index.
MODELS = ["Ti_16", "S_32", "S_16", "B_32", "B_16", "B_8", "L_16"]
MODELS += ["R_Ti_16", "R26_S_32", "R50_L_32"]
DATA = ["i1k-300ep", "i21k-300ep", "i21k-30ep"]
AUGS = ["none", "light0", "light1", "medium1", "medium2", "strong1", "strong2"]
GRID = [
    f"lr_0.001-aug_{aug}-wd_{decay}-do_{drop}-sd_{drop}"
    for aug, decay, drop in itertools.product(AUGS, ("0.03", "0.1"), ("0.0", "0.1"))
]
TUNINGS = [
    f"{dataset}-steps_{steps}-lr_{rate}"
    for datasets, all_steps, rates in (
        (("cifar100", "resisc45"), ("2k", "10k"), ("0.001", "0.003", "0.01", "0.03")),
        (("kitti", "oxford_iiit_pet"), ("0k", "2k"), ("0.001", "0.003", "0.01", "0.03")),
        (("imagenet2012",), ("20k",), ("0.01", "0.03")),
    )
    for dataset, steps, rate in itertools.product(datasets, all_steps, rates)
]


def test_find_published_accepts_all_upstream_names_of_the_grid():
    names = [f"{model}-{data}-{grid}" for model in MODELS for data in DATA for grid in GRID]
    # 759 exist: 9 x 3 x 28 = 756, and three of B/8; which three is unknown, so all 84 are
    # accepted.
    assert len(names) == len(set(names)) == 756 + 84
    for name in names:
        entry = find_published(f"augreg/{name}")
        assert (entry.name, entry.image_size) == (f"augreg/{name}", 224)
        assert entry.num_classes == (1000 if "-i1k-" in name else 21843)
        assert (entry.pool, entry.pre_logits) == ("token", False)
        assert find_published(name) == entry
    assert len({find_published(name).model for name in names}) == 10


def test_find_published_accepts_both_spellings_of_thirty_epochs():
    names = [f"{model}-i21k_30-30ep-{grid}" for model in MODELS for grid in GRID]
    assert all(find_published(name).num_classes == 21843 for name in names)


def test_find_published_accepts_all_fine_tuned_names_of_the_grid():
    assert len(TUNINGS) == 34
    classes = {"cifar100": 100, "resisc45": 45, "kitti": 4, "oxford_iiit_pet": 37}
    for model, data, tuning, side in itertools.product(MODELS, DATA, TUNINGS, (224, 384)):
        name = f"{model}-{data}-{GRID[5]}--{tuning}-res_{side}"
        entry = find_published(name)
        if model == "B_8" and side == 384:
            assert entry is None
            continue
        assert entry.num_classes == classes.get(tuning.partition("-")[0], 1000)
        assert entry.image_size == side
        assert entry.url.endswith(f"/vit_models/augreg/{name}.npz")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("B_16-i21k", "B_14-i21k"),
        ("B_16-i21k", "H_14-i21k"),
        ("B_16-i21k", "b_16-i21k"),
        ("B_16-i21k", "R50_B_16-i21k"),
        ("i21k-300ep", "i21k-90ep"),
        ("i21k-300ep", "i1k-30ep"),
        ("i21k-300ep", "i21k_30-300ep"),
        ("i21k-300ep", "jft-300ep"),
        ("lr_0.001-aug", "lr_0.003-aug"),
        ("lr_0.001-aug", "lr_0x001-aug"),
        ("medium1", "medium3"),
        ("medium1", "strong"),
        ("wd_0.1", "wd_0.3"),
        ("wd_0.1", "wd_0.10"),
        ("do_0.0-sd_0.0", "do_0.0-sd_0.1"),
        ("do_0.0-sd_0.0", "do_0.1-sd_0.0"),
        ("do_0.0-sd_0.0", "do_0-sd_0"),
        ("--", "-"),
        ("imagenet2012", "imagenet2013"),
        ("imagenet2012", "cifar10"),
        ("imagenet2012", "kitti"),
        ("20k", "10k"),
        ("20k", "20000"),
        ("20k-lr_0.03", "20k-lr_0.003"),
        ("20k-lr_0.03", "20k"),
        ("res_384", "res_512"),
        ("res_384", "res_384.npz"),
        ("res_384", "res_384\n"),
        ("-res_384", ""),
        ("-res_384", "-res_384-res_384"),
    ],
)
def test_find_published_returns_none_off_the_grid(right, wrong):
    name = f"{B_16}--imagenet2012-steps_20k-lr_0.03-res_384"
    assert find_published(name)
    assert name.count(right) == 1
    assert find_published(name.replace(right, wrong)) is None


@pytest.mark.parametrize(
    "tuning",
    [
        "kitti-steps_1k-lr_0.01",
        "kitti-steps_10k-lr_0.01",
        "cifar100-steps_0k-lr_0.01",
        "oxford_iiit_pet-steps_2k-lr_0.1",
        "resisc45-steps_2k-lr_0.02",
        "resisc45-steps_2klr_0.01",
    ],
)
def test_find_published_returns_none_for_other_fine_tuning(tuning):
    assert find_published(f"{B_16}--{tuning}-res_384") is None


@pytest.mark.parametrize(
    ("upstream", "tuning"),  # From tables of other projects.
    [
        (
            "S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0",
            "imagenet2012-steps_20k-lr_0.01-res_224",
        ),
        (
            "L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1",
            "imagenet2012-steps_20k-lr_0.01-res_384",
        ),
        (
            "B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0",
            "imagenet2012-steps_20k-lr_0.01-res_224",
        ),
        (
            "R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0",
            "oxford_iiit_pet-steps_0k-lr_0.003-res_384",
        ),
        (
            "B_16-i1k-300ep-lr_0.001-aug_light0-wd_0.03-do_0.1-sd_0.1",
            "cifar100-steps_10k-lr_0.01-res_224",
        ),
    ],
)
def test_find_published_accepts_names_of_other_projects(upstream, tuning):
    assert find_published(upstream).name == f"augreg/{upstream}"
    assert find_published(f"{upstream}--{tuning}").name == f"augreg/{upstream}--{tuning}"


def test_note_of_recommended_weights_has_their_accuracy():
    note = find_published(f"{B_16}--imagenet2012-steps_20k-lr_0.03-res_384").note
    assert note == (
        "AugReg (arXiv:2106.10270) upstream i21k-300ep, medium1; fine-tuned on imagenet2012; "
        "ImageNet top-1 85.49 at 384"
    )
    tuned = list_published("augreg/*--*")
    scores = [float(re.search(r"top-1 ([\d.]+) at", entry.note)[1]) for entry in tuned]
    assert sorted(scores) == [75.4, 78.22, 79.58, 83.59, 83.73, 83.85, 85.49, 85.58, 85.59, 85.99]
    for entry in tuned:
        upstream = find_published(entry.name.partition("--")[0])
        assert (upstream.model, upstream.num_classes) == (entry.model, 21843)
