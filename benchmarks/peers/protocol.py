"""Timing of another package's Vision Transformer, for the command `benchmark`.

    PYTHON benchmarks/peers/NAME_peer.py [CASE]

CASE is JSON with mode (training, inference), platform (cpu, gpu), dtype (float32, bfloat16), batch,
shape (encoder: a name such as dinov3_s16, or null; image_size as [height, width], patch_size,
num_classes, hidden_size, num_layers, num_heads, mlp_size), lr, weight_decay, warmup, steps,
compiled, and started (`time.time()` at the start of this process). The last line of standard output
is JSON: the measurement, or {"error": message}.
Without CASE, the adapter times one step of a small model, to show that its packages are installed.

An adapter is a file NAME_peer.py that builds a model; `torch_protocol.py` and `jax_protocol.py`
train it. No file here imports vit_jax, so that any interpreter with the packages can run it.
"""

import importlib.metadata
import json
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable

SMALL_CASE = {
    "mode": "training",
    "platform": "cpu",
    "dtype": "float32",
    "batch": 2,
    "shape": {
        "encoder": None,
        "image_size": [32, 32],
        "patch_size": 16,
        "num_classes": 10,
        "hidden_size": 64,
        "num_layers": 1,
        "num_heads": 1,
        "mlp_size": 256,
    },
    "lr": 1e-3,
    "weight_decay": 0.01,
    "warmup": 1,
    "steps": 1,
    "compiled": False,
}


def main(library, build_model: Callable, *packages: str) -> None:
    """Times the case of the command line and prints the result as JSON.

    Args:
      library: module `torch_protocol` or `jax_protocol`.
      build_model: function of the adapter, as `library.make_step` expects it.
      *packages: distributions whose versions are reported.
    """
    case = json.loads(sys.argv[1]) if sys.argv[1:] else SMALL_CASE | {"started": time.time()}
    if not library.has_platform(case["platform"]):
        packages = " and ".join(packages)
        result = {"error": f"{packages} of {sys.executable} find no {case['platform']}."}
    else:
        try:
            versions = {"python": platform.python_version()}
            versions |= {package: importlib.metadata.version(package) for package in packages}
            result = measure(case, library, build_model) | {"versions": versions}
        except Exception as error:
            if not any(text in str(error) for text in library.OUT_OF_MEMORY):
                raise
            result = {"error": "out of memory"}
    print(json.dumps(result, allow_nan=False))


def measure(case: dict, library, build_model: Callable) -> dict:
    """Returns the seconds of every timed step and the other fields of a benchmark record."""
    step, parameters = library.make_step(case, build_model)

    def timed() -> float:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    first = timed()
    start_seconds = time.time() - case["started"]
    for _ in range(case["warmup"] - 1):
        timed()
    seconds = [timed() for _ in range(case["steps"])]
    compiles = case["compiled"] or library.ALWAYS_COMPILES
    return {
        "step_seconds": seconds,
        "start_seconds": start_seconds,
        "compile_seconds": first - statistics.median(seconds) if compiles else None,
        "cache": "",
        **peak_memory(case["platform"], library),
        "parameters": parameters,
        "device": "cpu" if case["platform"] == "cpu" else library.device_name(),
    }


def peak_memory(platform: str, library) -> dict:
    """Returns the peak bytes of the GPU, or of the whole process on a CPU."""
    if platform != "cpu":
        return {"peak_bytes": library.peak_bytes(), "peak_of": "device"}
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:  # macOS, where ru_maxrss is in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_bytes": peak, "peak_of": "process"}
