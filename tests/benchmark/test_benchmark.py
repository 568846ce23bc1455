"""Tests of the verb `benchmark`: records, cases, order of the runners, and errors."""

import json
import sys

import jax
import pytest

from tests.support.benchmark_cases import SHAPE, tiny_cases
from tests.support.runs import run_main
from vit_jax import main
from vit_jax.benchmark import benchmark, worker
from vit_jax.benchmark.runners import UNTUNED, Runner, vit_jax_runners
from vit_jax.errors import ConfigError, VitJaxError
from vit_jax.tables import benchmarks

TINY = ("--model=vit_ti16", "--image_size=32", "--batch=4", "--steps=2", "--warmup=1")
TINY += ("--dtype=float32", *(f"--config.model.{name}={size}" for name, size in SHAPE.items()))


def error_of(*arguments) -> VitJaxError:
    with pytest.raises(VitJaxError) as caught:
        main.run(["benchmark", *map(str, arguments)])
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Output and records of a training case, timed in two rounds with the persistent cache."""
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


@pytest.mark.stress
def test_benchmark_writes_a_line_for_every_measurement(measured):
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


@pytest.mark.stress
def test_benchmark_compiles_in_the_first_round_and_uses_the_cache_later(measured):
    _, records = measured
    assert [record["cache"] for record in records] == ["cold", "warm"]
    assert records[1]["compile_seconds"] < records[0]["compile_seconds"]


@pytest.mark.stress
def test_benchmark_prints_progress_to_stderr_and_the_table_to_stdout(measured):
    done, records = measured
    table = json.loads(done.out)
    assert table["comparison"] == []
    (row,) = table["measured"]
    pooled = sorted(records[0]["step_seconds"] + records[1]["step_seconds"])
    assert row["best"] == pytest.approx(4 / pooled[0])
    assert row["img/s"] == pytest.approx(4 / ((pooled[1] + pooled[2]) / 2))
    assert "[1/1] vit_ti16 float32 training, batch 4" in done.err
    assert done.err.count("img/s") == 2


def test_case_flops_are_those_of_its_matrix_products():
    N, T, L, D, M, K = 4, 5, 1, 32, 64, 1000  # 32 px in patches of 16, and a class token.
    block = 4 * T * D * D + 2 * T * T * D + 2 * T * D * M
    macs = N * 16 * 16 * 3 * D + L * block + D * K
    training, inference = tiny_cases(mode="both")
    assert training.record()["step_flops"] == 6 * macs * 4
    assert inference.record()["step_flops"] == 2 * macs * 4


@pytest.mark.stress
def test_worker_measures_all_devices_of_a_mesh():
    (case,) = tiny_cases(mode="inference", batch=8, fields={"mesh.data": "4", "mesh.fsdp": "2"})
    result = worker.measure(**vit_jax_runners(case, {}, False)[0].arguments, started=0.0)
    assert case.record()["mesh"] == "data:4,fsdp:2"
    assert result["num_devices"] == 8
    D, M, K = 32, 64, 1000
    block = 4 * (D * D + D) + (D * M + M + M * D + D) + 2 * 2 * D
    # Patch embedding, class token, positions, block, final norm, head.
    assert result["parameters"] == (768 + 1) * D + D + 5 * D + block + 2 * D + (D + 1) * K


def test_make_cases_of_a_suite_returns_the_published_table():
    cases = benchmark.make_cases(
        suite="cpu", model=None, batch=None, dtype="both", mode="both", warmup=None, steps=None,
        fields={},
    )  # fmt: skip
    kinds = [(c.config.model.name, c.config.batch_size, c.config.model.dtype) for c in cases]
    assert len(cases) == 12
    assert list(dict.fromkeys(kinds)) == [
        (name, batch, dtype)
        for name, batch in (("vit_ti16", 16), ("vit_s16", 16), ("vit_b16", 8))
        for dtype in ("float32", "bfloat16")
    ]
    assert {(case.warmup, case.steps) for case in cases} == {(5, 15)}


def test_make_cases_of_a_suite_selects_models():
    cases = benchmark.make_cases(
        suite="peers", model="vit_s16,vit_l16", batch=None, dtype="float32", mode="training",
        warmup=None, steps=3, fields={},
    )  # fmt: skip
    assert [(c.config.model.name, c.config.batch_size) for c in cases] == [
        ("vit_s16", 16),
        ("vit_l16", 4),
    ]
    assert {(case.warmup, case.steps) for case in cases} == {(10, 3)}


def test_vit_jax_runners_with_untuned_adds_a_runner_with_more_variables():
    (case,) = tiny_cases()
    plain, untuned = vit_jax_runners(case, {"A": "1"}, untuned=True)
    assert (plain.name, plain.env) == ("vit_jax", {"A": "1"})
    assert (untuned.name, untuned.env) == ("vit_jax untuned", {"A": "1"} | UNTUNED)
    assert plain.arguments == untuned.arguments


def test_largest_that_fits_doubles_and_bisects():
    tried = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= 100

    assert worker.largest_that_fits(fits, unit=1) == 100
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 96, 112, 104, 100]
    assert worker.largest_that_fits(lambda batch: batch <= 100, unit=8) == 96
    assert worker.largest_that_fits(lambda batch: False, unit=8) == 0
    with pytest.raises(ConfigError, match="--largest_batch needs an accelerator"):
        (case,) = tiny_cases()
        worker.measure(
            **vit_jax_runners(case, {}, False, largest_batch=True)[0].arguments, started=0.0
        )


def fake_runner(name: str, **fields) -> Runner:
    """Returns a runner that prints a fixed result."""
    line = {"step_seconds": [0.5], "parameters": 7, "platform": "cpu", "num_devices": 1} | fields
    return Runner(name, (sys.executable, "-c", f"print({json.dumps(line)!r})"), {}, {})


class FakePeer:
    """Peer with given runners, or with an error."""

    def __init__(self, *runners: Runner, name="timm", is_required=True, error=""):
        self._runners, self.name, self.is_required = runners, name, is_required
        self.must_match = is_required
        self._error = error

    def check(self, cases) -> None:
        assert cases
        if self._error:
            raise ConfigError(self._error)

    def runners(self, case, platform: str, num_devices: int):
        assert (platform, num_devices) == ("cpu", 1)
        return self._runners


def time_with_fakes(monkeypatch, path, own: Runner, *peers) -> tuple[list[dict], list[str]]:
    """Times a case with peers, or with one peer that has the given runners."""
    lines: list[str] = []
    if not any(isinstance(peer, FakePeer) for peer in peers):
        peers = (FakePeer(*peers),)
    monkeypatch.setattr(benchmark, "vit_jax_runners", lambda *_, **__: [own])
    records = benchmark.time_cases(
        tiny_cases(), rounds=2, env={}, untuned=False, largest_batch=False,
        peers=peers, out=str(path), print_line=lines.append,
    )  # fmt: skip
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    return records, lines


def test_time_cases_alternates_between_runners(monkeypatch, tmp_path):
    path = tmp_path / "out.jsonl"
    own, peers = fake_runner("vit_jax"), [fake_runner("timm fused"), fake_runner("timm explicit")]
    records, lines = time_with_fakes(monkeypatch, path, own, *peers)
    names = [record["contestant"] for record in records]
    assert names == ["vit_jax", "timm fused", "timm explicit"] * 2
    assert "round 2/2  vit_jax              8.00 img/s" in lines[4]


def test_time_cases_skips_a_peer_that_runs_out_of_memory(monkeypatch, tmp_path):
    full = fake_runner("timm fused", error="out of memory")
    records, lines = time_with_fakes(monkeypatch, tmp_path / "a", fake_runner("vit_jax"), full)
    assert [record["contestant"] for record in records] == ["vit_jax", "timm fused", "vit_jax"]
    assert records[1]["error"] == "out of memory"
    assert lines[2].endswith("timm fused      out of memory")
    with pytest.raises(ConfigError, match="batch 4: out of memory; use a smaller --batch"):
        time_with_fakes(monkeypatch, tmp_path / "b", fake_runner("vit_jax", error="out of memory"))


def test_time_cases_rejects_a_peer_of_another_size(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="timm fused has 8 parameters, but vit_ti16 has 7"):
        time_with_fakes(
            monkeypatch,
            tmp_path / "a",
            fake_runner("vit_jax"),
            fake_runner("timm fused", parameters=8),
        )


def test_time_cases_records_the_failures_of_peers_that_are_not_required(monkeypatch, tmp_path):
    failing = Runner("b", (sys.executable, "-c", "1 / 0"), {}, {})
    peers = (
        FakePeer(name="a", is_required=False, error="no package a"),
        FakePeer(failing, name="b", is_required=False),
        FakePeer(fake_runner("c", parameters=8), name="c", is_required=False),
    )
    records, lines = time_with_fakes(monkeypatch, tmp_path / "a", fake_runner("vit_jax"), *peers)
    names = [record["contestant"] for record in records]
    assert names == ["a", "vit_jax", "b", "c", "vit_jax", "c"]
    assert records[0]["error"] == "no package a"
    assert records[2]["error"].startswith("b failed with exit code 1: ZeroDivisionError")
    assert (records[3]["parameters"], records[1]["parameters"]) == (8, 7)
    assert lines[0] == "a is skipped: no package a"
    with pytest.raises(ConfigError, match="no package a"):  # No peer is left.
        time_with_fakes(monkeypatch, tmp_path / "b", fake_runner("vit_jax"), peers[0])
    assert not (tmp_path / "b").exists()


def test_runner_measure_reports_a_failing_command():
    failing = (sys.executable, "-c", "import nothing_of_that_name")
    with pytest.raises(
        ConfigError, match="timm fused failed with exit code 1: ModuleNotFoundError"
    ):
        Runner("timm fused", failing, {}, {}).measure("caches")
    with pytest.raises(
        RuntimeError, match="Traceback"
    ):  # A failure of vit_jax shows the whole traceback.
        Runner("vit_jax", failing, {}, {}).measure("caches")
    with pytest.raises(ConfigError, match="invalid argument"):
        fake_runner("vit_jax", error="invalid argument").measure("caches")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=vit_x16"], "unknown; expected vit_<"),
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
        (["--config.batch_size=8"], "--config.batch_size is not supported; use --batch"),
        (["--config.model.hidden=8"], "no field 'hidden'"),
        (["--config.accumulate=auto"], "a benchmark needs a number"),
        (["--suite=cpu", "--batch=3"], "--batch=3 cannot be combined with --suite=cpu"),
        (
            ["--suite=cpu", "--model=vit_b32"],
            "is not in --suite=cpu; choose from vit_ti16, vit_s16",
        ),
        (["--out=no/such/folder.jsonl"], "--out=no/such/folder.jsonl cannot be written"),
        (["--suite=peers", "--model=vit_ti16,vit_b32"], "--model=vit_b32 is not in --suite=peers"),
        (["--peer=timm", "--peer_python=/no/python"], "--peer_python=/no/python: No such file"),
        (["--suite=peers", "--peer_python=/no/python"], "--peer_python=/no/python: No such file"),
        (["--peer=tim"], "--peer=tim is unknown; choose from"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_benchmark_rejects_invalid_flags_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = error_of(*arguments)
    assert error.exit_code == 2
    assert message in str(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.stress
def test_runner_measure_rejects_a_batch_that_cannot_be_split_evenly(tmp_path):
    (case,) = tiny_cases(batch=3)
    with pytest.raises(ConfigError, match="batch_size 3 is not divisible by 8 devices"):
        vit_jax_runners(case, {"JAX_NUM_CPU_DEVICES": "8"}, False)[0].measure(str(tmp_path))


def test_benchmark_help_shows_the_defaults():
    text = run_main("benchmark", "--help").out
    suite = benchmark.SUITES["cpu"].protocol
    for name, value in benchmark.PROTOCOL.items():
        assert f"(default {value}; {suite[name]} in the" in " ".join(text.split())
    assert f"(default {benchmark.BATCH})" in text
    assert benchmark.MODEL in text


@pytest.mark.parity
def test_benchmark_with_timm_prints_the_ratio(tmp_path):
    out = tmp_path / "results.jsonl"
    done = run_main(
        "benchmark", *TINY, "--mode=both", "--rounds=1", "--peer=timm", f"--out={out}",
        f"--peer_python={sys.executable}",
    )  # fmt: skip
    assert done.code == 0, done.err
    records = benchmarks.read_records(str(out))
    assert [record["contestant"] for record in records] == [
        "vit_jax", "timm fused", "timm explicit",
    ] * 2  # fmt: skip
    assert [record["env"].get("TIMM_FUSED_ATTN") for record in records[:3]] == [None, "1", "0"]
    for row in benchmarks.compare_with_peers(benchmarks.summarize_records(records)):
        best = max(row["timm fused"], row["timm explicit"])
        assert row["ratio"] == pytest.approx(row["vit_jax"] / best)
        assert f"{row['ratio']:.2f}" in done.out
