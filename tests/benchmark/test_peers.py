"""Peers of the benchmark: how adapters are found and run, and the models that they build."""

import dataclasses
import json
import sys
import time

import pytest

from tests.support.benchmark_cases import NAMED_SIZE, tiny_cases
from tests.support.runs import ROOT
from vit_jax.benchmark import benchmark, peers
from vit_jax.errors import ConfigError

ADAPTERS = ("equimo", "keras_hub", "timm", "torchvision", "transformers", "vit_pytorch")


def timm(compiled: bool | None = None) -> peers.Peer:
    (peer,) = peers.find_peers(["timm"], "python", compiled)
    return peer


def test_find_peers_without_names_returns_all_adapters_none_of_them_required():
    found = peers.find_peers((), "python", None)
    assert tuple(peer.name for peer in found) == ADAPTERS
    assert not any(peer.is_required for peer in found)
    assert timm().is_required
    assert [
        peer.name for peer in peers.find_peers(ADAPTERS, "python", None) if peer.must_match
    ] == [name for name in ADAPTERS if name != "vit_pytorch"]


def test_find_adapters_looks_in_the_clone_and_in_the_current_folder(monkeypatch, tmp_path):
    installed = tmp_path / "site-packages" / "vit_jax" / "benchmark" / "peers.py"
    monkeypatch.setattr(peers, "__file__", str(installed))
    monkeypatch.chdir(ROOT)
    assert tuple(peers.find_adapters()) == ADAPTERS
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no folder benchmarks/peers/ beside the package"):
        peers.find_adapters()


def test_adapters_have_at_most_60_lines():
    lengths = {name: path.read_text().count("\n") for name, path in peers.find_adapters().items()}
    assert max(lengths.values()) <= 60, lengths


def test_timm_runners_follow_the_platform_of_vit_jax():
    (case,) = tiny_cases()
    fused, explicit = timm().runners(case, "cpu", 8)
    assert (fused.env, explicit.env) == ({"TIMM_FUSED_ATTN": "1"}, {"TIMM_FUSED_ATTN": "0"})
    on_gpu = timm().runners(case, "gpu", 1)
    assert [runner.arguments["compiled"] for runner in on_gpu] == [False, False, True]
    assert len(timm(compiled=False).runners(case, "gpu", 1)) == 2
    with pytest.raises(ConfigError, match="runs on one GPU, but vit_jax ran on 8"):
        timm().runners(case, "gpu", 8)
    with pytest.raises(ConfigError, match="supports CPUs and CUDA GPUs, not tpu"):
        timm().runners(case, "tpu", 8)
    (hybrid,) = tiny_cases(model="r_ti16", fields=NAMED_SIZE)
    with pytest.raises(ConfigError, match="supports plain ViTs only, not r_ti16"):
        timm().shape(hybrid)


def test_runners_of_other_peers_are_one_without_variables():
    (case,) = tiny_cases()
    (peer,) = peers.find_peers(["equimo"], "python", compiled=True)
    (runner,) = peer.runners(case, "cpu", 1)
    assert (runner.name, runner.env) == ("equimo", {})
    assert runner.arguments["shape"] == {
        "encoder": None,
        "image_size": (32, 32),
        "patch_size": 16,
        "num_classes": 1000,
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "mlp_size": 64,
    }


def test_only_peers_that_have_the_family_time_an_encoder():
    cases = benchmark.make_cases(
        suite="encoders",
        model="eva02_s14",
        batch=None,
        dtype="float32",
        mode="training",
        warmup=1,
        steps=1,
        fields={},
    )
    assert timm().shape(cases[0])["encoder"] == "eva02_s14"
    assert cases[0].model.config.rope == "eva02"
    with pytest.raises(
        ConfigError, match="--peer=equimo does not have --model=eva02_s14; choose timm"
    ):
        peers.find_peers(["equimo"], "python", None)[0].shape(cases[0])


def test_check_of_an_interpreter_without_the_packages_names_what_is_missing(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"No module named 'torch'\" >&2; exit 1\n")
    python.chmod(0o755)
    (peer,) = peers.find_peers(["timm"], str(python), None)
    with pytest.raises(ConfigError) as caught:
        peer.check(tiny_cases())
    assert str(caught.value) == (
        f"--peer=timm does not run in {python}: No module named 'torch'; install the packages that "
        "benchmarks/peers/timm_peer.py imports, or give an interpreter that has them with "
        "--peer_python=PATH."
    )
    with pytest.raises(ConfigError, match=r"No module named 'torch'$"):  # In the suite.
        dataclasses.replace(peer, is_required=False).check(tiny_cases())


class FakeLibrary:
    """Stands for torch_protocol or jax_protocol, with a step that counts its calls."""

    ALWAYS_COMPILES, OUT_OF_MEMORY = True, ("memory is full",)

    def __init__(self, error: str = ""):
        self.calls, self.error = 0, error

    def has_platform(self, platform: str) -> bool:
        return platform == "cpu"

    def make_step(self, case: dict, build_model):
        def step() -> None:
            self.calls += 1
            if self.error:
                raise RuntimeError(self.error)

        return step, build_model(case["shape"])


def run_protocol(monkeypatch, capsys, library: FakeLibrary, **changes) -> dict:
    monkeypatch.syspath_prepend(ROOT / peers.FOLDER)
    import protocol

    case = protocol.SMALL_CASE | {"started": time.time(), "warmup": 3, "steps": 2} | changes
    monkeypatch.setattr(sys, "argv", ["adapter", json.dumps(case)])
    protocol.main(library, lambda shape: shape["hidden_size"], "pytest")
    return json.loads(capsys.readouterr().out)


def test_protocol_prints_the_record_of_the_timed_steps(monkeypatch, capsys):
    library = FakeLibrary()
    record = run_protocol(monkeypatch, capsys, library)
    assert library.calls == 3 + 2
    assert len(record["step_seconds"]) == 2
    assert record["parameters"] == 64
    assert record["versions"]["pytest"] == pytest.__version__
    assert record["peak_of"] == "process"
    assert set(record) == {
        "step_seconds", "start_seconds", "compile_seconds", "cache", "peak_bytes", "peak_of",
        "parameters", "device", "versions",
    }  # fmt: skip


def test_protocol_reports_a_missing_platform_and_a_lack_of_memory(monkeypatch, capsys):
    record = run_protocol(monkeypatch, capsys, FakeLibrary(), platform="gpu")
    assert record == {"error": f"pytest of {sys.executable} find no gpu."}
    record = run_protocol(monkeypatch, capsys, FakeLibrary("the memory is full"))
    assert record == {"error": "out of memory"}
    with pytest.raises(RuntimeError, match="another error"):
        run_protocol(monkeypatch, capsys, FakeLibrary("another error"))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("vit_ti16", "vit_tiny_patch16_224"),
        ("vit_s16", "vit_small_patch16_224"),
        ("vit_b16", "vit_base_patch16_224"),
        ("vit_l16", "vit_large_patch16_224"),
        ("vit_so400m14", "vit_so400m_patch14_siglip_224"),
    ],
)
def test_timm_peer_builds_the_named_timm_model(name, timm_name, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(ROOT / peers.FOLDER)
    import timm_peer

    module = timm_peer.import_timm()
    (case,) = tiny_cases(model=name, fields=NAMED_SIZE | {"data.image_size": "224"})
    with torch.device("meta"):  # Shapes without values.
        peer = timm_peer.build_model(timm().shape(case))
        named = module.create_model(timm_name, num_classes=1000)
    if "siglip" in timm_name:  # Its pooling differs; only its blocks are compared.
        peer, named = peer.blocks, named.blocks
    assert str(peer) == str(named)
    assert {k: v.shape for k, v in peer.state_dict().items()} == {
        k: v.shape for k, v in named.state_dict().items()
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", ["transformers", "torchvision"])
def test_peers_in_torch_have_the_parameters_of_vit_jax(name, tmp_path):
    (case,) = tiny_cases(mode="inference")
    (peer,) = peers.find_peers([name], sys.executable, None)
    (runner,) = peer.runners(case, "cpu", 1)
    result = runner.measure(str(tmp_path))
    D, M, K = 32, 64, 1000
    block = 4 * (D * D + D) + (D * M + M + M * D + D) + 2 * 2 * D
    # Patch embedding, class token, positions, block, final norm, head.
    assert result["parameters"] == (768 + 1) * D + D + 5 * D + block + 2 * D + (D + 1) * K
    assert len(result["step_seconds"]) == case.steps
