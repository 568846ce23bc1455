"""Published weights: entries against their names, sizes against parameter counts."""

import collections
import dataclasses
import http.server
import re
import threading

import pytest

from vit_jax.errors import CheckpointError
from vit_jax.weights.published import (
    class_names,
    fetch_published,
    find_published,
    list_published,
    suggest_published,
)

ENTRIES = {entry.name: entry for entry in list_published()}
B_16 = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"


def test_list_published_has_the_known_number_of_entries():
    counts = collections.Counter(name.partition("/")[0] for name in ENTRIES)
    families = {"imagenet21k": 9, "imagenet21k+imagenet2012": 8, "sam": 5, "gsam": 4}
    assert counts == families | {"augreg": 20, "bit": 12}
    assert len(list_published("sam/*")) == 5
    assert [entry.name for entry in list_published("*/ViT-H_14")] == ["imagenet21k/ViT-H_14"]
    assert list_published("SAM/*") == []


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_agrees_with_its_name(name):
    entry = ENTRIES[name]
    assert find_published(name) is entry
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
def test_entry_has_the_name_of_its_model(name, model):
    assert find_published(name).model == model


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


@pytest.mark.parametrize("name", [name for name in ENTRIES if ENTRIES[name].size and "ViT" in name])
def test_listed_size_is_four_bytes_per_parameter(name):
    entry = ENTRIES[name]
    file = name.partition("/")[2]
    count, hidden = COUNTS[file.removesuffix("-224")]
    if entry.pre_logits:
        count += hidden * hidden + hidden
    else:
        count -= (21843 - 1000) * (hidden + 1)
    patch = int(file.removesuffix("-224").rpartition("_")[2])
    count += ((entry.image_size // patch) ** 2 - (224 // patch) ** 2) * hidden
    copies = 3 if name == "sam/ViT-S_16" else 1  # With the two moments of Adam.
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
def test_augreg_size_equals_the_readme(model, mib):
    (entry,) = list_published(f"augreg/{model}-*sd_0.[01]")
    assert entry.size / 2**20 == pytest.approx(mib, abs=0.9)


def test_augreg_size_depends_on_classes_and_pixels():
    # ViT-B/16 at 384 px is one shape, whoever trained it: 331.4 MiB in the other folder's listing.
    name = f"augreg/{B_16}--imagenet2012-steps_20k-lr_0.03-res_384"
    listed = find_published("imagenet21k+imagenet2012/ViT-B_16").size
    assert find_published(name).size == pytest.approx(listed, rel=0.001)
    assert find_published(name.replace("384", "224")).size == 4 * 86_567_656
    assert find_published(f"augreg/{B_16}").size == 4 * 102_595_923
    hybrid = "augreg/R50_L_32-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0"
    assert find_published(hybrid).size == 4 * 328_994_856
    tuned = find_published(f"{hybrid}--kitti-steps_0k-lr_0.01-res_384")
    assert tuned.size == 4 * (328_994_856 - 996 * 1025 + (12 * 12 - 7 * 7) * 1024)
    # R+Ti/16 has 7x7 tokens, not 14x14: patches of 8 after a stem of stride 4.
    name = "R_Ti_16-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0"
    tuned = find_published(f"{name}--imagenet2012-steps_20k-lr_0.01-res_384")
    assert tuned.size == 4 * (6_337_704 + (12 * 12 - 7 * 7) * 192)


# Names without a folder, and unknown names.


def test_find_published_accepts_a_unique_file_name():
    assert find_published("ViT-B_16-224").name == "imagenet21k+imagenet2012/ViT-B_16-224"
    assert find_published("ViT-H_14").name == "imagenet21k/ViT-H_14"
    assert find_published("BiT-M-R50x1").name == "bit/BiT-M-R50x1"
    assert find_published("ViT-S_16-gap-norep").name == "gsam/ViT-S_16-gap-norep"
    assert find_published(B_16).name == f"augreg/{B_16}"


def test_find_published_rejects_an_ambiguous_file_name():
    with pytest.raises(CheckpointError) as caught:
        find_published("ViT-B_16")
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
def test_find_published_returns_none_for_an_unknown_name(name):
    assert find_published(name) is None


def test_suggest_published_finds_a_similar_name():
    assert suggest_published("imagenet21k/ViT-B16") == " Did you mean imagenet21k/ViT-B_16?"
    assert suggest_published("ViT-H14") == " Did you mean ViT-H_14?"
    assert suggest_published("qqqqqqqqqqqq") == ""


# Downloads from a local mirror.


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


def test_fetch_published_requests_encoded_paths_of_the_mirror(mirror, tmp_path):
    entry = ENTRIES["gsam/ViT-S_16-gap-norep"]
    path = fetch_published(entry)
    assert path.read_bytes() == b"weights"
    assert path.is_relative_to(tmp_path / "vit_jax" / "weights")
    plus = dataclasses.replace(ENTRIES["imagenet21k+imagenet2012/R50+ViT-B_16"], size=None)
    assert "/imagenet21k+imagenet2012/R50+ViT-B_16.npz" in plus.url
    assert fetch_published(plus).name == "R50+ViT-B_16.npz"
    assert fetch_published(ENTRIES["bit/BiT-S-R50x1"]).name == "BiT-S-R50x1.npz"
    assert mirror.asked == [
        "/a/vit_models/gsam/ViT-S_16-gap-norep.npz",
        "/a/vit_models/imagenet21k%2Bimagenet2012/R50%2BViT-B_16.npz",
        "/a/bit_models/BiT-S-R50x1.npz",
    ]


def test_fetch_published_rejects_another_size_than_listed(mirror):
    with pytest.raises(CheckpointError, match="7 bytes; expected about 41281"):
        fetch_published(ENTRIES["imagenet21k/ViT-B_16"])


def test_class_names_are_downloaded_from_the_mirror(mirror, capsys):
    mirror.body = "".join(f"kind {k}\n" for k in range(1000)).encode()
    names = class_names(ENTRIES["sam/ViT-B_16"])
    assert mirror.asked == ["/a/bit_models/ilsvrc2012_wordnet_lemmas.txt"]
    assert (names[0], names[999], len(names)) == ("kind 0", "kind 999", 1000)
    assert class_names(ENTRIES["imagenet21k/ViT-B_16"]) is None  # A list of another length.
    assert class_names(find_published(f"augreg/{B_16}--cifar100-steps_10k-lr_0.01-res_384")) is None


def test_class_names_reports_an_unavailable_list(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VIT_JAX_WEIGHTS_URL", "ftp://nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert class_names(ENTRIES["sam/ViT-B_16"]) is None
    assert "class names are unavailable" in capsys.readouterr().err


def test_suggest_published_lists_all_folders_of_an_ambiguous_name():
    hint = suggest_published("ViT-B_32.npz")
    assert hint == (
        " Did you mean imagenet21k/ViT-B_32 or imagenet21k+imagenet2012/ViT-B_32 or sam/ViT-B_32?"
    )
    assert find_published("ViT-S_16-gap-norep") is not None
    assert suggest_published("ViT-S_16-gap-nrep") == " Did you mean ViT-S_16-gap-norep?"
