"""Tables of benchmark records: ratios, medians and peaks against hand-calculated values."""

import json

import pytest

from vit_jax import main
from vit_jax.errors import ConfigError, DataError
from vit_jax.tables import benchmarks


def make_record(contestant: str, step_seconds: list[float], **changes) -> dict:
    """Returns a benchmark record with invented values."""
    line = dict.fromkeys(benchmarks.CELL_FIELDS, "") | {
        "batch": 8,
        "model": "vit_s16",
        "mode": "training",
    }
    line |= {"run": "2026-01-01", "dtype": "float32", "image_size": 224, "warmup": 1, "env": {}}
    line |= {"contestant": contestant, "step_seconds": step_seconds, "step_flops": 6e11}
    line |= {"cache": "cold", "compile_seconds": 9.0, "start_seconds": 12.0, "peak_bytes": 2e9}
    return line | {"peak_of": "process", "device": "test device", "versions": {}} | changes


def write_records(path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_comparison_ratio_is_our_median_over_the_fastest_peer(tmp_path, capsys):
    file = write_records(
        tmp_path / "two.jsonl",
        make_record("vit_jax", [4.0, 2.0, 1.0], peak_flops=6e11, num_devices=1),  # 4 img/s.
        make_record("timm fused", [1.6, 1.6], cache="", compile_seconds=None),  # 5 img/s.
        make_record(
            "timm explicit", [1.0, 3.0, 9.0], cache="", compile_seconds=None
        ),  # 2.67 img/s.
    )
    assert main.run(["tables", "benchmark", file, "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    (row,) = tables["comparison"]
    assert (row["vit_jax"], row["timm fused"], row["ratio"]) == (4.0, 5.0, 0.8)
    ours, fused, _ = tables["measured"]
    # 6e11 FLOPs in 2 s are 50 % of the peak of 6e11 FLOP/s; in 1.6 s they are 62.5 % of it.
    assert (ours["MFU %"], fused["MFU %"]) == (50.0, pytest.approx(62.5))
    assert (ours["best"], ours["ms/step"], ours["TFLOP/s"]) == (8.0, 2000.0, 0.3)
    assert (ours["peak GB"], ours["compile s"], ours["compile s, warm"]) == (2.0, 9.0, None)


def test_format_files_has_a_column_for_each_field_that_differs(tmp_path, capsys):
    file = write_records(
        tmp_path / "rows.jsonl",
        make_record("vit_jax", [2.0], num_devices=1),
        make_record("vit_jax untuned", [1.0], num_devices=1, env={"MALLOC_ARENA_TEST": "8"}),
        make_record("timm fused", [1.6]),
        make_record("vit_jax", [3.0], num_devices=1, options="model.scan=True", cache="warm"),
    )
    assert main.run(["tables", "benchmark", file]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    head = ["model", "batch", "dtype", "mode"]
    assert table[0] == [*head, "vit_jax", "vit_jax untuned", "timm fused", "ratio", "ratio untuned"]
    assert table[2][4:] == ["4.00", "8.00", "5.00", "0.80", "1.60"]
    assert table[3][4:6] == ["options", "contestant"]
    assert len(table) == 3 + 2 + 4
    assert "vit_jax untuned: MALLOC_ARENA_TEST=8" in out
    assert "test device" in out


def test_comparison_is_within_one_run(tmp_path):
    file = write_records(
        tmp_path / "runs.jsonl",
        make_record("vit_jax", [2.0]),
        make_record("timm fused", [1.0], run="2026-01-02"),
        make_record("vit_jax", [4.0], run="2026-01-02"),
    )
    rows = benchmarks.compare_with_peers(
        benchmarks.summarize_records(benchmarks.read_records(file))
    )
    assert [(row["run"], row["ratio"]) for row in rows] == [("2026-01-02", 0.25)]


def test_read_records_rejects_other_files(tmp_path):
    with pytest.raises(DataError, match="line 2: not a record of `benchmark`"):
        benchmarks.read_records(
            write_records(tmp_path / "a", make_record("vit_jax", [1.0]), {"step": 1})
        )
    with pytest.raises(DataError, match="contains no measurements"):
        benchmarks.read_records(write_records(tmp_path / "b"))
    with pytest.raises(ConfigError, match="cannot be read"):
        benchmarks.read_records(str(tmp_path / "c"))


def test_format_files_lists_failures_and_other_sizes_of_peers(tmp_path, capsys):
    file = write_records(
        tmp_path / "peers.jsonl",
        {"run": "2026-01-01", "contestant": "absent", "error": "No module named 'absent'"},
        make_record("vit_jax", [2.0], parameters=7000, versions={"jax": "1", "flax": "9"}),
        make_record("timm", [1.0], parameters=7000, versions={"timm": "2"}),
        make_record("other", [1.0], parameters=6500, versions={"other": "3"}),
        *[make_record("large", [1.0], error="out of memory") | {"round": n} for n in range(2)],
    )
    assert main.run(["tables", "benchmark", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "- absent: not measured: No module named 'absent'" in lines
    assert lines.count("- large, vit_s16 float32 training: not measured: out of memory") == 1
    assert "- parameters of vit_s16: vit_jax 7,000, other 6,500" in lines
    assert "- versions: jax 1, timm 2, other 3" in lines
    assert not any("large" in line for line in lines if line.startswith("|"))
    assert main.run(["tables", "benchmark", file, "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert [record["contestant"] for record in tables["failed"]] == ["absent", "large", "large"]
