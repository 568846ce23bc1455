"""The verb `benchmark`: what it measures, who takes turns, and what it refuses."""

import json
import sys

import jax
import pytest

from tests.support.runs import run_main
from vit_jax import main
from vit_jax.benchmark import benchmark, worker
from vit_jax.benchmark.runners import TUNED, Contestant, Timm, ours
from vit_jax.errors import ConfigError, VitJaxError
from vit_jax.tables import benchmarks

SHAPE = {"num_layers": "1", "hidden_size": "32", "mlp_size": "64", "num_heads": "2"}
FIELDS = {"data.image_size": "32"} | {f"model.{name}": size for name, size in SHAPE.items()}
WHOLE = dict.fromkeys(FIELDS, "None") | {"data.image_size": "32"}  # The size that is in a name.
TINY = ("--model=vit_ti16", "--image_size=32", "--batch=4", "--steps=2", "--warmup=1")
TINY += ("--dtype=float32", *(f"--config.model.{name}={size}" for name, size in SHAPE.items()))


def tiny_cells(**changes) -> list[benchmark.Cell]:
    fields = FIELDS | changes.pop("fields", {})
    chosen = {"suite": None, "model": "vit_ti16", "batch": 4, "dtype": "float32"}
    chosen |= {"mode": "training", "warmup": 1, "steps": 2, "fields": fields}
    return benchmark.make_cells(**chosen | changes)


def mistake(*arguments) -> VitJaxError:
    with pytest.raises(VitJaxError) as caught:
        main.run(["benchmark", *map(str, arguments)])
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A training cell, two rounds with the persistent cache: what was printed and written."""
    out = tmp_path_factory.mktemp("benchmark") / "results.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        done = run_main(
            "benchmark", *TINY, "--mode=training", "--rounds=2", "--env=COLOUR=blue",
            "--scan", f"--out={out}", "--json",
        )  # fmt: skip
    assert done.code == 0, done.err
    return done, [json.loads(line) for line in out.read_text().splitlines()]


def test_every_measurement_is_a_line_of_the_file(measured):
    _, records = measured
    assert len(records) == 2
    for record in records:
        assert (record["model"], record["batch"], record["mode"]) == ("vit_ti16", 4, "training")
        assert "model.num_layers=1" in record["options"]
        assert "model.scan=True" in record["options"]
        assert record["env"] == {"COLOUR": "blue"}
        assert len(record["step_seconds"]) == 2
        assert all(second > 0 for second in record["step_seconds"])
        assert 0 < record["compile_seconds"] < record["start_seconds"] < 200
        assert record["peak_bytes"] > 4 * record["parameters"]
        assert record["peak_of"] == "process"
        assert record["peak_flops"] > 1e8
        assert record["num_devices"] == 1
        assert record["versions"]["jax"] == jax.__version__


def test_the_first_round_is_cold_and_the_next_finds_its_programs(measured):
    _, records = measured
    assert [record["cache"] for record in records] == ["cold", "warm"]
    assert records[1]["compile_seconds"] < records[0]["compile_seconds"]


def test_progress_goes_to_standard_error_and_the_table_to_standard_output(measured):
    done, records = measured
    table = json.loads(done.out)
    assert table["comparison"] == []
    (row,) = table["measured"]
    pooled = sorted(records[0]["step_seconds"] + records[1]["step_seconds"])
    assert row["best"] == pytest.approx(4 / pooled[0])
    assert row["img/s"] == pytest.approx(4 / ((pooled[1] + pooled[2]) / 2))
    assert "[1/1] vit_ti16 float32 training, batch 4" in done.err
    assert done.err.count("img/s") == 2


def test_the_flops_of_a_step_are_those_of_its_products():
    N, T, L, D, M, K = 4, 5, 1, 32, 64, 1000  # 32 px in patches of 16, and a class token.
    block = 4 * T * D * D + 2 * T * T * D + 2 * T * D * M
    macs = N * 16 * 16 * 3 * D + L * block + D * K
    training, inference = tiny_cells(mode="both")
    assert training.record()["step_flops"] == 6 * macs * 4
    assert inference.record()["step_flops"] == 2 * macs * 4


def test_a_mesh_is_measured_whole():
    (cell,) = tiny_cells(mode="inference", batch=8, fields={"mesh.data": "4", "mesh.fsdp": "2"})
    found = worker.measure(**ours(cell, {}, False)[0].task, started=0.0)
    assert cell.record()["mesh"] == "data:4,fsdp:2"
    assert found["num_devices"] == 8
    D, M, K = 32, 64, 1000
    block = 4 * (D * D + D) + (D * M + M + M * D + D) + 2 * 2 * D
    # Patches, class token, positions, the block, the last norm, the head.
    assert found["parameters"] == (768 + 1) * D + D + 5 * D + block + 2 * D + (D + 1) * K


def test_a_suite_is_the_published_table():
    cells = benchmark.make_cells(
        suite="cpu", model=None, batch=None, dtype="both", mode="both", warmup=None, steps=None,
        fields={},
    )  # fmt: skip
    kinds = [(c.config.model.name, c.config.batch_size, c.config.model.dtype) for c in cells]
    assert len(cells) == 12
    assert list(dict.fromkeys(kinds)) == [
        (name, batch, dtype)
        for name, batch in (("vit_ti16", 16), ("vit_s16", 16), ("vit_b16", 8))
        for dtype in ("float32", "bfloat16")
    ]
    assert {(cell.warmup, cell.steps) for cell in cells} == {(5, 15)}


def test_tuned_runs_are_ours_once_more_with_more_environment():
    (cell,) = tiny_cells()
    plain, tuned = ours(cell, {"A": "1"}, tuned=True)
    assert (plain.name, plain.env) == ("vit_jax", {"A": "1"})
    assert (tuned.name, tuned.env) == ("vit_jax tuned", {"A": "1"} | TUNED)
    assert plain.task == tuned.task


def test_the_largest_batch_is_found_by_doubling_and_halving():
    tried = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= 100

    assert worker.largest(fits, unit=1) == 100
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 96, 112, 104, 100]
    assert worker.largest(lambda batch: batch <= 100, unit=8) == 96
    assert worker.largest(lambda batch: False, unit=8) == 0
    with pytest.raises(ConfigError, match="--largest_batch is for accelerators"):
        (cell,) = tiny_cells()
        worker.measure(**ours(cell, {}, False, largest_batch=True)[0].task, started=0.0)


def puppet(name: str, **found) -> Contestant:
    """A contestant that says at once what it is to have measured."""
    line = {"step_seconds": [0.5], "parameters": 7, "platform": "cpu", "num_devices": 1} | found
    return Contestant(name, (sys.executable, "-c", f"print({json.dumps(line)!r})"), {}, {})


class PuppetPeer:
    """A peer whose contestants are puppets."""

    def __init__(self, *them: Contestant):
        self.them = them

    def check(self, cells) -> None:
        assert cells

    def contestants(self, cell, platform: str, num_devices: int):
        assert (platform, num_devices) == ("cpu", 1)
        return self.them


def race(monkeypatch, path, us: Contestant, *them: Contestant) -> tuple[list[dict], list[str]]:
    lines: list[str] = []
    monkeypatch.setattr(benchmark, "ours", lambda *_, **__: [us])
    records = benchmark.benchmark(
        tiny_cells(), rounds=2, env={}, tuned=False, largest_batch=False,
        peer=PuppetPeer(*them), out=str(path), say=lines.append,
    )  # fmt: skip
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    return records, lines


def test_contestants_take_turns(monkeypatch, tmp_path):
    path = tmp_path / "out.jsonl"
    us, them = puppet("vit_jax"), [puppet("timm fused"), puppet("timm explicit")]
    records, lines = race(monkeypatch, path, us, *them)
    names = [record["contestant"] for record in records]
    assert names == ["vit_jax", "timm fused", "timm explicit"] * 2
    assert "round 2/2  vit_jax              8.00 img/s" in lines[4]


def test_a_peer_without_memory_is_left_out_and_we_are_not(monkeypatch, tmp_path):
    full = puppet("timm fused", error="out of memory")
    records, lines = race(monkeypatch, tmp_path / "a", puppet("vit_jax"), full)
    assert [record["contestant"] for record in records] == ["vit_jax"] * 2
    assert lines[2].endswith("timm fused      out of memory")
    with pytest.raises(ConfigError, match="batch 4: out of memory; a smaller --batch"):
        race(monkeypatch, tmp_path / "b", puppet("vit_jax", error="out of memory"))


def test_a_peer_of_another_size_is_no_peer(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="timm fused has 8 parameters, vit_ti16 7"):
        race(monkeypatch, tmp_path / "a", puppet("vit_jax"), puppet("timm fused", parameters=8))


def test_timm_runs_on_the_platform_that_ours_ran_on():
    (cell,) = tiny_cells()
    fused, explicit = Timm("python", None).contestants(cell, "cpu", 8)
    assert (fused.env, explicit.env) == ({"TIMM_FUSED_ATTN": "1"}, {"TIMM_FUSED_ATTN": "0"})
    on_gpu = Timm("python", None).contestants(cell, "gpu", 1)
    assert [each.task["compiled"] for each in on_gpu] == [False, False, True]
    assert len(Timm("python", False).contestants(cell, "gpu", 1)) == 2
    with pytest.raises(ConfigError, match="runs on one GPU, and ours on 8"):
        Timm("python", None).contestants(cell, "gpu", 8)
    with pytest.raises(ConfigError, match="not on this tpu"):
        Timm("python", None).contestants(cell, "tpu", 8)
    (hybrid,) = tiny_cells(model="r_ti16", fields=WHOLE)
    with pytest.raises(ConfigError, match="r_ti16 is no plain ViT"):
        Timm("python", None).shape(hybrid)


def test_a_command_that_fails_is_told_by_its_last_words():
    broken = (sys.executable, "-c", "import nothing_of_that_name")
    with pytest.raises(ConfigError, match="timm fused ended with 1: ModuleNotFoundError"):
        Contestant("timm fused", broken, {}, {}).measure("caches")
    with pytest.raises(RuntimeError, match="Traceback"):  # A bug of ours is told whole.
        Contestant("vit_jax", broken, {}, {}).measure("caches")
    with pytest.raises(ConfigError, match="no such thing"):
        puppet("vit_jax", error="no such thing").measure("caches")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=vit_x16"], "unknown; it is vit_<"),
        (["--image_size=30"], "nearest sizes: 16 or 32"),
        (["--batch=0"], "batch_size is 0; it must be at least 1"),
        (["--steps=0"], "--steps is 0; it must be at least 1"),
        (["--warmup=0"], "--warmup is 0"),
        (["--rounds=0"], "--rounds is 0"),
        (["--mode=train"], "--mode: invalid choice"),
        (["--mesh=fdsp:2"], "config.mesh has no field 'fdsp'. Did you mean fsdp?"),
        (["--mesh=data"], "config.mesh.data is ''; it must be a whole number"),
        (["--env=FOO"], "'FOO' is not KEY=VALUE"),
        (["--config=configs/cifar10.py"], "does not accept --config=FILE"),
        (["--config.batch_size=8"], "benchmark takes --batch instead"),
        (["--config.model.hidden=8"], "no field 'hidden'"),
        (["--suite=cpu", "--batch=3"], "--suite=cpu has its own batches"),
        (["--suite=cpu", "--model=vit_b32"], "is not in --suite=cpu; it has vit_ti16, vit_s16"),
        (["--out=no/such/folder.jsonl"], "--out=no/such/folder.jsonl is no file that can"),
        (["--peer=timm", "--peer_python=/no/python"], "--peer_python=/no/python: No such file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = mistake(*arguments)
    assert error.exit_code == 2
    assert words in str(error)
    assert not list(tmp_path.iterdir())


def test_devices_that_cannot_share_the_batch_are_told_in_one_line(tmp_path):
    (cell,) = tiny_cells(batch=3)
    with pytest.raises(ConfigError, match="batch_size 3 is not divisible by 8 devices"):
        ours(cell, {"JAX_NUM_CPU_DEVICES": "8"}, False)[0].measure(str(tmp_path))


def test_an_interpreter_without_timm_is_told_how_to_get_it(tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho torch timm\n")
    bare.chmod(0o755)
    error = mistake("--peer=timm", f"--peer_python={bare}", f"--out={tmp_path / 'o'}")
    assert error.exit_code == 2
    assert f"{bare} has no torch and no timm: pip install torch timm, or name" in str(error)


def test_the_help_tells_the_defaults():
    text = run_main("benchmark", "--help").out
    suite = benchmark.SUITES["cpu"].protocol
    for name, value in benchmark.PROTOCOL.items():
        assert f"(default {value}; {suite[name]} in the" in " ".join(text.split())
    assert f"(default {benchmark.BATCH})" in text
    assert benchmark.MODEL in text


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
def test_the_peer_is_the_model_that_timm_has_by_name(name, timm_name):
    import torch

    from vit_jax.benchmark import timm_peer

    timm = timm_peer.import_timm()
    (cell,) = tiny_cells(model=name, fields=WHOLE | {"data.image_size": "224"})
    with torch.device("meta"):  # Shapes without numbers.
        peer = timm_peer.build_model(Timm(sys.executable, None).shape(cell))
        named = timm.create_model(timm_name, num_classes=1000)
    if "siglip" in timm_name:  # Its pooling is another; its MLP is what is odd.
        peer, named = peer.blocks, named.blocks
    assert str(peer) == str(named)
    assert {k: v.shape for k, v in peer.state_dict().items()} == {
        k: v.shape for k, v in named.state_dict().items()
    }


@pytest.mark.parity
def test_timm_is_raced_and_the_ratio_printed(tmp_path):
    out = tmp_path / "raced.jsonl"
    done = run_main(
        "benchmark", *TINY, "--mode=both", "--rounds=1", "--peer=timm", f"--out={out}",
        f"--peer_python={sys.executable}",
    )  # fmt: skip
    assert done.code == 0, done.err
    records = benchmarks.read(str(out))
    assert [each["contestant"] for each in records] == [
        "vit_jax", "timm fused", "timm explicit",
    ] * 2  # fmt: skip
    assert [each["env"].get("TIMM_FUSED_ATTN") for each in records[:3]] == [None, "1", "0"]
    for row in benchmarks.comparison(benchmarks.summaries(records)):
        best = max(row["timm fused"], row["timm explicit"])
        assert row["ratio"] == pytest.approx(row["vit_jax"] / best)
        assert f"{row['ratio']:.2f}" in done.out
