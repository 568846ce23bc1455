"""Published weights: every name against its parts, sizes against counted parameters."""

import collections
import dataclasses
import http.server
import itertools
import re
import threading

import pytest

from vit_jax.errors import CheckpointError
from vit_jax.weights.published import class_names, fetch_published, find, nearest_name, published

EVERY = {entry.name: entry for entry in published()}
B_16 = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"

# The AugReg files as the paper's grid and the official index tell them.
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


def test_the_listing_has_as_many_names_as_the_buckets_are_known_to():
    counts = collections.Counter(name.partition("/")[0] for name in EVERY)
    families = {"imagenet21k": 9, "imagenet21k+imagenet2012": 8, "sam": 5, "gsam": 4}
    assert counts == families | {"augreg": 20, "bit": 12}
    assert len(published("sam/*")) == 5
    assert [entry.name for entry in published("*/ViT-H_14")] == ["imagenet21k/ViT-H_14"]
    assert published("SAM/*") == []


@pytest.mark.parametrize("name", EVERY)
def test_what_an_entry_says_agrees_with_its_name(name):
    entry = EVERY[name]
    assert find(name) is entry
    family, _, file = name.partition("/")
    assert entry.num_classes == (21843 if is_21k(family, file) else 1000)
    assert entry.pre_logits == (family == "imagenet21k")
    assert entry.pool == ("gap" if family in ("gsam", "bit") else "token")
    assert ("gap" in file) == (family == "gsam")
    at_384 = family == "imagenet21k+imagenet2012" and "-224" not in file
    assert entry.image_size == (384 if at_384 or "res_384" in file else 224)
    assert entry.bucket == ("bit_models" if family == "bit" else "vit_models")
    path = file if family == "bit" else name
    assert entry.url == f"https://storage.googleapis.com/{entry.bucket}/{path}.npz"
    assert entry.licence == "Apache-2.0"
    assert "arXiv:" in entry.note
    if "ViT" in file:
        kind, size = re.fullmatch(r"(?:(R\d+)\+)?ViT-(\w+?_\d+).*", file).groups("vit")
        assert entry.model == f"{kind}_{size.replace('_', '')}".lower()


def is_21k(family: str, file: str) -> bool:
    is_upstream = family == "augreg" and "--" not in file
    return family == "imagenet21k" or is_upstream or file.startswith("BiT-M")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("imagenet21k/R50+ViT-B_16", "r50_b16"),
        ("imagenet21k/ViT-H_14", "vit_h14"),
        ("imagenet21k+imagenet2012/ViT-L_16-224", "vit_l16"),
        ("gsam/ViT-S_32-gap-norep", "vit_s32"),
        ("bit/BiT-S-R152x4", "bit_r152x4"),
        ("augreg/Ti_16-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.1-sd_0.1", "vit_ti16"),
        ("augreg/R_Ti_16-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.1-sd_0.1", "r_ti16"),
        ("augreg/R26_S_32-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.1-sd_0.1", "r26_s32"),
        ("augreg/R50_L_32-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.1-sd_0.1", "r50_l32"),
        ("augreg/B_8-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.1-sd_0.1", "vit_b8"),
    ],
)
def test_models_have_our_names(name, model):
    assert find(name).model == model


# Sizes. Parameters with 21,843 classes at 224 px, and D, as counted from the shapes.

COUNTS = {
    "ViT-B_8": (102_605_139, 768),
    "ViT-B_16": (102_595_923, 768),
    "ViT-B_32": (104_252_499, 768),
    "ViT-L_16": (325_690_707, 1024),
    "ViT-L_32": (327_899_475, 1024),
    "ViT-H_14": (658_745_683, 1280),
    "R26+ViT-B_32": (117_412_243, 768),
    "R50+ViT-B_16": (114_687_379, 768),
    "R50+ViT-L_32": (350_358_931, 1024),
    "ViT-S_16": (30_075_219, 384),
}


@pytest.mark.parametrize("name", [name for name in EVERY if EVERY[name].size and "ViT" in name])
def test_listed_sizes_are_four_bytes_a_parameter(name):
    entry = EVERY[name]
    file = name.partition("/")[2]
    count, hidden = COUNTS[file.removesuffix("-224")]
    if entry.pre_logits:
        count += hidden * hidden + hidden
    else:
        count -= (21843 - 1000) * (hidden + 1)
    patch = int(file.removesuffix("-224").rpartition("_")[2])
    count += ((entry.image_size // patch) ** 2 - (224 // patch) ** 2) * hidden
    copies = 3 if name == "sam/ViT-S_16" else 1  # With two moments of Adam.
    assert entry.size == pytest.approx(4 * copies * count, rel=0.01)


@pytest.mark.parametrize(
    ("model", "mib"),  # The README's table, to 1 MiB.
    [
        ("L_16", 1243),
        ("B_16", 391),
        ("S_16", 115),
        ("R50_L_32", 1337),
        ("R26_S_32", 170),
        ("Ti_16", 37),
        ("B_32", 398),
        ("S_32", 118),
        ("R_Ti_16", 40),
    ],
)
def test_augreg_sizes_are_the_tables(model, mib):
    (entry,) = published(f"augreg/{model}-*sd_0.[01]")
    assert entry.size / 2**20 == pytest.approx(mib, abs=0.9)


def test_augreg_sizes_follow_classes_and_pixels():
    # ViT-B/16 at 384 px is one shape, whoever trained it: 331.4 MiB in the other folder's listing.
    name = f"augreg/{B_16}--imagenet2012-steps_20k-lr_0.03-res_384"
    listed = find("imagenet21k+imagenet2012/ViT-B_16").size
    assert find(name).size == pytest.approx(listed, rel=0.001)
    assert find(name.replace("384", "224")).size == 4 * 86_567_656
    assert find(f"augreg/{B_16}").size == 4 * 102_595_923
    hybrid = "augreg/R50_L_32-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0"
    assert find(hybrid).size == 4 * 328_994_856
    tuned = find(f"{hybrid}--kitti-steps_0k-lr_0.01-res_384")
    assert tuned.size == 4 * (328_994_856 - 996 * 1025 + (12 * 12 - 7 * 7) * 1024)
    # R+Ti/16 sees 7x7 tokens, not 14x14: its patches of 8 px come behind a stem of 4.
    name = "R_Ti_16-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0"
    tuned = find(f"{name}--imagenet2012-steps_20k-lr_0.01-res_384")
    assert tuned.size == 4 * (6_337_704 + (12 * 12 - 7 * 7) * 192)


# The grammar of AugReg's names.


def test_all_upstream_names_of_the_grid_are_known():
    names = [f"{model}-{data}-{grid}" for model in MODELS for data in DATA for grid in GRID]
    # 9 x 3 x 28 = 756 of the 759 that exist. Of B/8 three exist, which three is not told: its
    # 84 are all taken.
    assert len(names) == len(set(names)) == 756 + 84
    for name in names:
        entry = find(f"augreg/{name}")
        assert (entry.name, entry.image_size) == (f"augreg/{name}", 224)
        assert entry.num_classes == (1000 if "-i1k-" in name else 21843)
        assert (entry.pool, entry.pre_logits) == ("token", False)
        assert find(name) == entry
    assert len({find(name).model for name in names}) == 10


def test_thirty_epochs_are_known_by_both_spellings():
    names = [f"{model}-i21k_30-30ep-{grid}" for model in MODELS for grid in GRID]
    assert all(find(name).num_classes == 21843 for name in names)


def test_all_fine_tuned_names_of_the_grid_are_known():
    assert len(TUNINGS) == 34
    classes = {"cifar100": 100, "resisc45": 45, "kitti": 4, "oxford_iiit_pet": 37}
    for model, data, tuning, side in itertools.product(MODELS, DATA, TUNINGS, (224, 384)):
        name = f"{model}-{data}-{GRID[5]}--{tuning}-res_{side}"
        entry = find(name)
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
def test_a_name_off_the_grid_is_unknown(right, wrong):
    name = f"{B_16}--imagenet2012-steps_20k-lr_0.03-res_384"
    assert find(name)
    assert name.count(right) == 1
    assert find(name.replace(right, wrong)) is None


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
def test_a_tuning_that_was_not_tried_is_unknown(tuning):
    assert find(f"{B_16}--{tuning}-res_384") is None


@pytest.mark.parametrize(
    ("upstream", "tuning"),  # As other projects' tables of weights have them.
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
def test_names_seen_in_use_are_known(upstream, tuning):
    assert find(upstream).name == f"augreg/{upstream}"
    assert find(f"{upstream}--{tuning}").name == f"augreg/{upstream}--{tuning}"


def test_recommended_weights_tell_their_accuracy():
    note = find(f"{B_16}--imagenet2012-steps_20k-lr_0.03-res_384").note
    assert note == (
        "AugReg (arXiv:2106.10270) upstream i21k-300ep, medium1; fine-tuned on imagenet2012; "
        "ImageNet top-1 85.49 at 384"
    )
    tuned = published("augreg/*--*")
    scores = [float(re.search(r"top-1 ([\d.]+) at", entry.note)[1]) for entry in tuned]
    assert sorted(scores) == [75.4, 78.22, 79.58, 83.59, 83.73, 83.85, 85.49, 85.58, 85.59, 85.99]
    for entry in tuned:
        upstream = find(entry.name.partition("--")[0])
        assert (upstream.model, upstream.num_classes) == (entry.model, 21843)


# Names without a folder, and names that are none.


def test_a_bare_name_finds_the_one_file_that_has_it():
    assert find("ViT-B_16-224").name == "imagenet21k+imagenet2012/ViT-B_16-224"
    assert find("ViT-H_14").name == "imagenet21k/ViT-H_14"
    assert find("BiT-M-R50x1").name == "bit/BiT-M-R50x1"
    assert find("ViT-S_16-gap-norep").name == "gsam/ViT-S_16-gap-norep"
    assert find(B_16).name == f"augreg/{B_16}"


def test_a_bare_name_that_several_have_is_refused_with_all_of_them():
    with pytest.raises(CheckpointError) as caught:
        find("ViT-B_16")
    assert str(caught.value) == (
        "'ViT-B_16' names several published weights; give one of imagenet21k/ViT-B_16, "
        "imagenet21k+imagenet2012/ViT-B_16, sam/ViT-B_16."
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "vit_b16",
        "sam/",
        "augreg/",
        "/ViT-H_14",
        "imagenet21k/ViT-B_17",
        "ImageNet21k/ViT-B_16",
        "imagenet21k/ViT-B_16.npz",
        f"augreg/augreg/{B_16}",
        f"sam/{B_16}",
        "bit/BiT-L-R50x1",
    ],
)
def test_an_unknown_name_is_none(name):
    assert find(name) is None


def test_a_misspelt_name_gets_a_hint():
    assert nearest_name("imagenet21k/ViT-B16") == " Did you mean imagenet21k/ViT-B_16?"
    assert nearest_name("ViT-H14") == " Did you mean ViT-H_14?"
    assert nearest_name("qqqqqqqqqqqq") == ""


# Files, from a mirror on this machine.


class Mirror(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Mirror) as mirror:
        mirror.asked, mirror.body = [], b"weights"
        threading.Thread(target=mirror.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("VIT_JAX_WEIGHTS_URL", f"http://127.0.0.1:{mirror.server_port}/a/")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("no_proxy", "*")
        yield mirror
        mirror.shutdown()


def test_a_mirror_is_asked_for_the_encoded_path(mirror, tmp_path):
    entry = EVERY["gsam/ViT-S_16-gap-norep"]
    path = fetch_published(entry)
    assert path.read_bytes() == b"weights"
    assert path.is_relative_to(tmp_path / "vit_jax" / "weights")
    plus = dataclasses.replace(EVERY["imagenet21k+imagenet2012/R50+ViT-B_16"], size=None)
    assert "/imagenet21k+imagenet2012/R50+ViT-B_16.npz" in plus.url
    assert fetch_published(plus).name == "R50+ViT-B_16.npz"
    assert fetch_published(EVERY["bit/BiT-S-R50x1"]).name == "BiT-S-R50x1.npz"
    assert mirror.asked == [
        "/a/vit_models/gsam/ViT-S_16-gap-norep.npz",
        "/a/vit_models/imagenet21k%2Bimagenet2012/R50%2BViT-B_16.npz",
        "/a/bit_models/BiT-S-R50x1.npz",
    ]


def test_a_file_that_is_not_of_the_listed_size_is_refused(mirror):
    with pytest.raises(CheckpointError, match="7 bytes, where about 41281"):
        fetch_published(EVERY["imagenet21k/ViT-B_16"])


def test_class_names_come_from_the_lists_beside_the_weights(mirror, capsys):
    mirror.body = "".join(f"kind {k}\n" for k in range(1000)).encode()
    names = class_names(EVERY["sam/ViT-B_16"])
    assert mirror.asked == ["/a/bit_models/ilsvrc2012_wordnet_lemmas.txt"]
    assert (names[0], names[999], len(names)) == ("kind 0", "kind 999", 1000)
    assert class_names(EVERY["imagenet21k/ViT-B_16"]) is None  # A list of another length.
    assert class_names(find(f"augreg/{B_16}--cifar100-steps_10k-lr_0.01-res_384")) is None


def test_without_their_list_classes_have_no_names_and_that_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VIT_JAX_WEIGHTS_URL", "ftp://nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert class_names(EVERY["sam/ViT-B_16"]) is None
    assert "classes stay without names" in capsys.readouterr().err


def test_a_hint_for_a_file_that_several_have_names_them_all():
    hint = nearest_name("ViT-B_32.npz")
    assert hint == (
        " Did you mean imagenet21k/ViT-B_32 or imagenet21k+imagenet2012/ViT-B_32 or sam/ViT-B_32?"
    )
    assert find("ViT-S_16-gap-norep") is not None
    assert nearest_name("ViT-S_16-gap-nrep") == " Did you mean ViT-S_16-gap-norep?"
