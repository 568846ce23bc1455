"""Hints at the field, of any section, that a wrong name may mean."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator

from vit_jax.config import upgrade
from vit_jax.config.schema import Config
from vit_jax.errors import nearest

MAX_SHOWN = 3  # Fields of one name in a hint.
# Usual names elsewhere that are spelt differently here.
ALIASES = {
    "learning_rate": "optimizer.lr",
    "base_lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "num_steps": "steps",
    "total_steps": "steps",
    "max_steps": "steps",
    "num_workers": "data.workers",
    "accum_steps": "accumulate",
    "grad_accum_steps": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "precision": "model.dtype",
    "pretrained": "init.path",
    "drop_rate": "model.dropout",
    "depth": "model.num_layers",
    "width": "model.hidden_size",
    "embed_dim": "model.hidden_size",
    "grad_clip": "optimizer.clip_norm",
    "ema_decay": "optimizer.ema",
    "smoothing": "task.label_smoothing",
}


def field_names(section: type = Config, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all fields that are not sections."""
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            yield from field_names(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def suggest(name: str, section: str = "", siblings: Iterable[str] = (), prefix: str = "") -> str:
    """Returns a hint such as ' Did you mean optimizer.lr?', or '' if no field is similar.

    Args:
      name: a name that is no field of the section.
      section: name of the section, such as `optimizer`; '' for the config itself.
      siblings: the fields of the section.
      prefix: put before a dotted name, such as `config.stages.finetune.`.
    """
    renamed = upgrade.hint(f"{section}.{name}" if section else name)
    if renamed:
        return renamed
    fields = list(field_names())
    same = [field for field in fields if field.rpartition(".")[2] == name]
    if not same and name in ALIASES:
        same = [ALIASES[name]]
    if not same and (hint := nearest(name, siblings)):
        return hint
    if not same:
        leaves = [field.rpartition(".")[2] for field in fields]
        close = difflib.get_close_matches(name, leaves, n=1, cutoff=0.7)
        same = [field for field in fields if field.rpartition(".")[2] in close]
    names = " or ".join(prefix + field for field in same[:MAX_SHOWN])
    return f" Did you mean {names}?" if names else ""
