"""Training step and forward pass of a PyTorch model; see protocol.py."""

from collections.abc import Callable

import protocol
import torch

ALWAYS_COMPILES = False
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


def main(build_model: Callable, *packages: str) -> None:
    """Times a model. build_model(shape) returns a module: images (N, C, H, W) -> logits."""
    protocol.main(__import__(__name__), build_model, "torch", *packages)


def has_platform(platform: str) -> bool:
    return platform == "cpu" or torch.cuda.is_available()


def device_name() -> str:
    return torch.cuda.get_device_name()


def peak_bytes() -> int:
    """Returns the peak bytes of tensors on the GPU."""
    return torch.cuda.max_memory_allocated()


def make_step(case: dict, build_model: Callable) -> tuple[Callable[[], None], int]:
    """Returns a function that runs one step and waits for it, and the parameter count.

    bfloat16 is mixed precision with float32 parameters, as in vit_jax.
    """
    device = "cuda" if case["platform"] == "gpu" else "cpu"
    if device == "cuda":  # As timm's benchmark.py; JAX also multiplies float32 matrices in TF32.
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = build_model(case["shape"]).to(device).train(case["mode"] == "training")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    step = _STEPS[case["mode"]](case, torch.compile(model) if case["compiled"] else model, device)

    def step_and_wait() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step_and_wait, parameters


def _inference(case: dict, model, device: str) -> Callable[[], None]:
    images = _images(case, device)

    def forward() -> None:
        with torch.inference_mode(), _mixed_precision(case, device):
            model(images)

    return forward


def _training(case: dict, model, device: str) -> Callable[[], None]:
    images = _images(case, device)
    labels = torch.randint(case["shape"]["num_classes"], (case["batch"],), device=device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=case["lr"], weight_decay=case["weight_decay"], fused=True
    )

    def train() -> None:
        optimizer.zero_grad()
        with _mixed_precision(case, device):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return train


_STEPS = {"inference": _inference, "training": _training}


def _images(case: dict, device: str):
    return torch.randn([case["batch"], 3, *case["shape"]["image_size"]], device=device)


def _mixed_precision(case: dict, device: str):
    return torch.autocast(device, torch.bfloat16, enabled=case["dtype"] == "bfloat16")
