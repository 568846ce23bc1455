"""The tables of what `benchmark` measured: ratios, medians and peaks by hand."""

import json

import pytest

from vit_jax import main
from vit_jax.errors import ConfigError, DataError
from vit_jax.tables import benchmarks


def record(contestant: str, step_seconds: list[float], **changes) -> dict:
    """A line of the results, made up."""
    line = dict.fromkeys(benchmarks.CELL, "") | {"batch": 8, "model": "vit_s16", "mode": "training"}
    line |= {"run": "2026-01-01", "dtype": "float32", "image_size": 224, "warmup": 1, "env": {}}
    line |= {"contestant": contestant, "step_seconds": step_seconds, "step_flops": 6e11}
    line |= {"cache": "cold", "compile_seconds": 9.0, "start_seconds": 12.0, "peak_bytes": 2e9}
    return line | {"peak_of": "process", "device": "a chip", "versions": {}} | changes


def written(path, *records: dict) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def test_a_ratio_is_our_median_over_the_peers_fastest(tmp_path, capsys):
    file = written(
        tmp_path / "two.jsonl",
        record("vit_jax", [4.0, 2.0, 1.0], peak_flops=6e11, num_devices=1),  # 8 / 2 = 4 img/s.
        record("timm fused", [1.6, 1.6], cache="", compile_seconds=None),  # 5 img/s.
        record("timm explicit", [1.0, 3.0, 9.0], cache="", compile_seconds=None),  # 2.67 img/s.
    )
    assert main.run(["tables", "benchmark", file, "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    (row,) = tables["comparison"]
    assert (row["vit_jax"], row["timm fused"], row["ratio"]) == (4.0, 5.0, 0.8)
    ours, fused, _ = tables["measured"]
    # 6e11 FLOPs in 2 s are half of the peak; in 1.6 s, 62.5 % of the same.
    assert (ours["MFU %"], fused["MFU %"]) == (50.0, pytest.approx(62.5))
    assert (ours["best"], ours["ms/step"], ours["TFLOP/s"]) == (8.0, 2000.0, 0.3)
    assert (ours["peak GB"], ours["compile s"], ours["compile s, warm"]) == (2.0, 9.0, None)


def test_the_table_is_markdown_with_what_differs_in_columns(tmp_path, capsys):
    file = written(
        tmp_path / "rows.jsonl",
        record("vit_jax", [2.0], num_devices=1),
        record("vit_jax tuned", [1.0], num_devices=1, env={"MALLOC_ARENA_MAX": "1"}),
        record("timm fused", [1.6]),
        record("vit_jax", [3.0], num_devices=1, options="model.scan=True", cache="warm"),
    )
    assert main.run(["tables", "benchmark", file]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    head = ["model", "batch", "dtype", "mode"]
    assert table[0] == [*head, "vit_jax", "vit_jax tuned", "timm fused", "ratio", "ratio tuned"]
    assert table[2][4:] == ["4.00", "8.00", "5.00", "0.80", "1.60"]
    assert table[3][4:6] == ["options", "contestant"]
    assert len(table) == 3 + 2 + 4
    assert "vit_jax tuned: MALLOC_ARENA_MAX=1" in out
    assert "a chip" in out


def test_only_measurements_of_one_run_are_compared(tmp_path):
    file = written(
        tmp_path / "runs.jsonl",
        record("vit_jax", [2.0]),
        record("timm fused", [1.0], run="2026-01-02"),
        record("vit_jax", [4.0], run="2026-01-02"),
    )
    rows = benchmarks.comparison(benchmarks.summaries(benchmarks.read(file)))
    assert [(row["run"], row["ratio"]) for row in rows] == [("2026-01-02", 0.25)]


def test_files_of_something_else_are_told_in_one_line(tmp_path):
    with pytest.raises(DataError, match="line 2: no record of the verb benchmark"):
        benchmarks.read(written(tmp_path / "a", record("vit_jax", [1.0]), {"step": 1}))
    with pytest.raises(DataError, match="holds no records"):
        benchmarks.read(written(tmp_path / "b"))
    with pytest.raises(ConfigError, match="cannot be read"):
        benchmarks.read(str(tmp_path / "c"))
