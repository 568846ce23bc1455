"""Times timm's Vision Transformer on PyTorch, for the verb `benchmark`.

    PYTHON timm_peer.py CELL       (with TIMM_FUSED_ATTN=0 or 1)

CELL is JSON: mode (training, inference), platform (cpu, gpu), dtype (float32, bfloat16), batch,
shape (keywords of timm's VisionTransformer), lr, weight_decay, warmup, steps, compiled, and
started, the `time.time()` at which this process was. The last line of standard output is JSON,
too: what was measured, or {"error": words}.

It needs nothing of vit_jax, so that any interpreter with torch and timm can run it.
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
    """timm, also where torchvision does not fit torch and asks for operators it should bring."""
    try:
        import timm
    except RuntimeError:
        for op in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{op}", signature)
        import timm
    return timm


def build_model(shape: dict):
    """timm's model; `timm.create_model("vit_small_patch16_224")` is one of these."""
    import_timm()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**shape)


def make_step(cell: dict, model, device: str):
    """Returns a function that does one training step, or one forward pass.

    bfloat16 is PyTorch's mixed precision, with float32 parameters, as ours has it.
    """
    pixels = [cell["batch"], 3, *cell["shape"]["img_size"]]
    images = torch.randn(pixels, device=device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=cell["dtype"] == "bfloat16")
    if cell["mode"] == "inference":

        def forward():
            with torch.inference_mode(), mixed:
                model(images)

        return forward
    labels = torch.randint(cell["shape"]["num_classes"], (cell["batch"],), device=device)
    rule = torch.optim.AdamW(
        model.parameters(), lr=cell["lr"], weight_decay=cell["weight_decay"], fused=True
    )

    def train():
        rule.zero_grad()
        with mixed:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        rule.step()

    return train


def measure(cell: dict) -> dict:
    """Seconds of every timed step, and what else a row of the benchmark says."""
    device = "cuda" if cell["platform"] == "gpu" else "cpu"
    if device == "cuda":  # As timm's benchmark.py; JAX multiplies float32 as TF32, too.
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = build_model(cell["shape"]).to(device).train(cell["mode"] == "training")
    parameters = sum(each.numel() for each in model.parameters())
    step = make_step(cell, torch.compile(model) if cell["compiled"] else model, device)

    def timed() -> float:
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    first = timed()
    start_seconds = time.time() - cell["started"]
    for _ in range(cell["warmup"] - 1):
        timed()
    seconds = [timed() for _ in range(cell["steps"])]
    return {
        "step_seconds": seconds,
        "start_seconds": start_seconds,
        "compile_seconds": first - statistics.median(seconds) if cell["compiled"] else None,
        "cache": "",
        **peak_memory(device),
        "parameters": parameters,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": versions(),
    }


def peak_memory(device: str) -> dict:
    """Bytes at most: of tensors on the GPU, or of the whole process."""
    if device == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "peak_of": "device"}
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        kilobytes = int(status.partition("VmHWM:")[2].split()[0])
        return {"peak_bytes": 1024 * kilobytes, "peak_of": "process"}
    except OSError:  # macOS, which counts in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_bytes": peak, "peak_of": "process"}


def versions() -> dict[str, str]:
    """Of Python and of the packages that the figures depend on."""
    timm = import_timm()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def main() -> None:
    cell = json.loads(sys.argv[1])
    if cell["platform"] == "gpu" and not torch.cuda.is_available():
        found = {"error": f"torch {torch.__version__} of {sys.executable} sees no CUDA device."}
    else:
        try:
            found = measure(cell)
        except torch.OutOfMemoryError:
            found = {"error": "out of memory"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
