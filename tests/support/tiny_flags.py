"""Flags of a training run that takes seconds."""

from tests.support.runs import ROOT


def tiny_flags(workdir, *overrides: str) -> list[str]:
    """A run of a few steps on noise that can be learnt."""
    tiny = {
        "model.num_layers": 1,
        "model.hidden_size": 16,
        "model.mlp_size": 32,
        "data.source": "fake",
        "data.num_classes": 3,
        "data.num_examples": 48,
        "batch_size": 16,
        "steps": 8,
        "checkpoint_every": 4,
    }
    tiny |= dict(each.split("=", 1) for each in overrides)
    if tiny["data.source"] != "fake":
        del tiny["data.num_classes"], tiny["data.num_examples"]
    flags = [f"--config.{key}={value}" for key, value in tiny.items()]
    config = f"--config={ROOT / 'configs' / 'finetune.py'}:data=x,smoke"
    return [config, f"--workdir={workdir}", *flags]
