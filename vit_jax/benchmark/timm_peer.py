"""Times timm's Vision Transformer on PyTorch, for the command `benchmark`.

    PYTHON timm_peer.py CASE       (with TIMM_FUSED_ATTN=0 or 1)

CASE is JSON with mode (training, inference), platform (cpu, gpu), dtype (float32, bfloat16), batch,
shape (arguments of timm's VisionTransformer), lr, weight_decay, warmup, steps, compiled, and
started (`time.time()` at the start of this process). The last line of standard output is JSON: the
measurement, or {"error": message}.

The file imports nothing of vit_jax, so that any interpreter with torch and timm can run it.
"""

import json
import pathlib
import platform
import resource
import statistics
import sys
import time

import torch


def import_timm():
    """Returns the module timm.

    If torchvision does not match torch, it fails to find operators of its own; they are defined
    here, because timm's ViTs do not use them.
    """
    try:
        import timm
    except RuntimeError:
        for op in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{op}", signature)
        import timm
    return timm


def build_model(shape: dict):
    """Returns a timm model of a given shape, such as "vit_small_patch16_224"."""
    import_timm()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**shape)


def make_step(case: dict, model, device: str):
    """Returns a function that runs one training step or one forward pass.

    bfloat16 is mixed precision with float32 parameters, as in vit_jax.
    """
    pixels = [case["batch"], 3, *case["shape"]["img_size"]]
    images = torch.randn(pixels, device=device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=case["dtype"] == "bfloat16")
    if case["mode"] == "inference":

        def forward():
            with torch.inference_mode(), mixed:
                model(images)

        return forward
    labels = torch.randint(case["shape"]["num_classes"], (case["batch"],), device=device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=case["lr"], weight_decay=case["weight_decay"], fused=True
    )

    def train():
        optimizer.zero_grad()
        with mixed:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return train


def measure(case: dict) -> dict:
    """Returns the seconds of every timed step and the other fields of a benchmark record."""
    device = "cuda" if case["platform"] == "gpu" else "cpu"
    if device == "cuda":  # As timm's benchmark.py; JAX also multiplies float32 matrices in TF32.
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = build_model(case["shape"]).to(device).train(case["mode"] == "training")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    step = make_step(case, torch.compile(model) if case["compiled"] else model, device)

    def timed() -> float:
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    first = timed()
    start_seconds = time.time() - case["started"]
    for _ in range(case["warmup"] - 1):
        timed()
    seconds = [timed() for _ in range(case["steps"])]
    return {
        "step_seconds": seconds,
        "start_seconds": start_seconds,
        "compile_seconds": first - statistics.median(seconds) if case["compiled"] else None,
        "cache": "",
        **peak_memory(device),
        "parameters": parameters,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": versions(),
    }


def peak_memory(device: str) -> dict:
    """Returns the peak bytes of tensors on the GPU, or of the whole process on a CPU."""
    if device == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "peak_of": "device"}
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
        kilobytes = int(status.partition("VmHWM:")[2].split()[0])
        return {"peak_bytes": 1024 * kilobytes, "peak_of": "process"}
    except OSError:  # macOS, where ru_maxrss is in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_bytes": peak, "peak_of": "process"}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect the speed."""
    timm = import_timm()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def main() -> None:
    case = json.loads(sys.argv[1])
    if case["platform"] == "gpu" and not torch.cuda.is_available():
        result = {"error": f"torch {torch.__version__} of {sys.executable} finds no CUDA device."}
    else:
        try:
            result = measure(case)
        except torch.OutOfMemoryError:
            result = {"error": "out of memory"}
    print(json.dumps(result, allow_nan=False))


if __name__ == "__main__":
    main()
