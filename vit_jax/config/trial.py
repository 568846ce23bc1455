"""Trial configs: the recipe of a config with a tiny model, packaged images and 20 steps."""

import re

from vit_jax.config import conditions
from vit_jax.config.loading import ConfigDict, base_config, update_section
from vit_jax.config.overrides import override
from vit_jax.config.schema import Config


def smoke(config: ConfigDict, keep_data: bool = False) -> ConfigDict:
    """Replaces model, data and length of every stage for a trial of at most two minutes.

    The recipe stays the same: task, loss, optimizer, schedule, augmentation, head, position
    embedding, model family, and a change of image size between stages. A teacher is trained
    first, as a stage.
    """
    if not config.stages and config.task.teacher:
        config = _teacher_first(config)
    stages = [config.stages[name] for name in config.stages] or [config]
    config.mesh.update(data=-1, fsdp=1)
    pixels = stages[0].data.image_size
    for stage in stages:
        patch = _shrink_model(stage.model)
        stage.data.image_size = patch * (4 if stage.data.image_size == pixels else 5)
        if not keep_data:
            stage.data.update(source="digits", split="train", val_split="val", mix=())
        _shrink_subset(stage.data)
        _shrink_schedule(stage.optimizer)
        _shrink_task(stage.task)
        stage.data.update(local_size=2 * patch, local_crops=min(stage.data.local_crops, 2))
        if stage.accumulate != "auto":
            stage.accumulate = min(stage.accumulate, 2)
        stage.batch_size = 16
        stage.update(steps=20, epochs=None, examples=None)
        stage.update(log_every=5, eval_every=stage.eval_every and 10, checkpoint_every=10)
        if stage.fewshot.every:
            stage.fewshot.update(every=10, source="digits", sets=(), test_split="val", shots=(1,))
        if stage.probe.every:
            stage.probe.update(every=10, source="digits", dir="", dataset="")
            stage.probe.update(split="train", test_split="val")
        stage.init.path = ""
        if stage.task.teacher not in config.stages:
            stage.task.teacher = ""
        for field, _ in list(conditions.without_effect(stage)):
            override(stage, field, conditions.value_of(Config(), field))
    return config


def _teacher_first(config: ConfigDict) -> ConfigDict:
    """Returns a config with the stage `student` after a stage `teacher` that has no teacher."""
    staged = base_config("teacher", "student")
    for name in staged.stages:
        run = {key: value for key, value in config.to_dict().items() if key != "stages"}
        update_section(staged.stages[name], run, name)
    staged.stages.teacher.task.teacher = ""
    staged.stages.student.task.teacher = "teacher"
    return staged


def _shrink_model(model) -> int:
    """Replaces a model by the smallest of its family; returns the pixels of a patch."""
    if model.name.startswith("bit_"):
        model.name = "bit_r26x1"
        return 8
    is_hybrid = model.name.startswith("r")
    model.update(name="r_ti16" if is_hybrid else "vit_ti16", patch=None if is_hybrid else 8)
    model.update(num_layers=2, hidden_size=32, mlp_size=64, num_heads=2)
    return 32 if is_hybrid else 8


def _shrink_task(task) -> None:
    """Shrinks the parts of a model that only its task has."""
    if task.name == "mae":
        task.update(decoder_layers=1, decoder_size=32, decoder_heads=2)
    if task.name == "dino":
        task.update(prototypes=64, head_hidden=64, bottleneck=16)
        task.patch_prototypes = task.patch_prototypes and 64
        task.teacher_warmup_steps = min(task.teacher_warmup_steps, 5)


def _shrink_subset(data) -> None:
    """Limits a subset to a few batches."""
    data.update(per_class=None, count=data.count and min(data.count, 64))
    data.fraction = data.fraction and max(data.fraction, 0.05)


def _shrink_schedule(optimizer) -> None:
    optimizer.update(warmup_steps=2, timescale=min(optimizer.timescale, 5))
    optimizer.cooldown_steps = min(optimizer.cooldown_steps, 2)
    optimizer.freeze = re.sub(r"\d+", "1", optimizer.freeze)  # Of two blocks.
    optimizer.ema = optimizer.ema and min(optimizer.ema, 0.9)  # Averages must follow 20 steps.
    optimizer.freeze_steps = tuple((name, min(n, 2)) for name, n in optimizer.freeze_steps)
