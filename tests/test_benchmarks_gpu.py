"""benchmarks/gpu.py: records of failed and skipped checks, and both parts with tiny models."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from tests.support.runs import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def test_part_records_errors_and_skipped_checks_and_continues(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu

    monkeypatch.setattr(gpu.Part, "job", lambda part, name: {"platform": "cpu", "kind": "cpu"})
    out = tmp_path / "out.jsonl"
    args = argparse.Namespace(part=1, out=str(out), minutes=1.0, reserve=0.5, smoke=True)
    part = gpu.Part(args, tmp_path)
    part.check("a", lambda: 1 / 0, {"model": "vit_b16"})
    part.check("b", lambda: {"ok": True}, {"model.kernels": "cudnn"})
    part.check("c", lambda: {"ok": True}, {})
    part.last_start = 0.0
    part.check("d", lambda: {"ok": True}, {})
    machine, a, b, c, d = map(json.loads, out.read_text().splitlines())
    assert (machine["check"], machine["platform"]) == ("machine", "cpu")
    assert (a["error"], a["model"]) == ("division by zero", "vit_b16")
    assert b["skipped"] == "cudnn needs a GPU"
    assert c["ok"] is True
    assert d["skipped"] == "too late to end within 1 minutes"
    assert part.has_failed


@pytest.mark.stress
def test_both_parts_pass_on_a_cpu_with_tiny_models(tmp_path):
    out = tmp_path / "gpu.jsonl"
    for part in ("1", "2"):
        subprocess.run(
            [sys.executable, SCRIPT, f"--part={part}", f"--out={out}", "--smoke", "--minutes=30"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
            check=True,
            capture_output=True,
        )
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["check"] for record in records if record["part"] == 1] == [
        "machine", *["kernels"] * 3, "kill and resume", "training",
    ]  # fmt: skip
    assert [record["check"] for record in records if record["part"] == 2] == [
        "machine", *["step"] * 6, "best mfu",
    ]  # fmt: skip
    assert not any("error" in record for record in records)
    skipped = [record for record in records if "skipped" in record]
    assert [record.get("model.kernels") for record in skipped] == ["cudnn", "cudnn", "cudnn", None]
