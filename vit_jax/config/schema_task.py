"""The section `task` of a config: the training objective and its options."""

import dataclasses

from vit_jax.config.fields import field


@dataclasses.dataclass(frozen=True)
class Task:
    """config.task: the training objective."""

    name: str = field(
        "classification",
        "Classification, masked patch prediction (appendix B.1.2), or masked autoencoders "
        "(arXiv:2111.06377).",
        table="vit_jax.tasks.registry:TASKS",
    )
    loss: str = field(
        "softmax",
        "Loss; 'binary' is 'sigmoid' with target 1 for every class of a mixed image.",
        table="vit_jax.tasks.losses:LOSSES",
    )
    label_smoothing: float = field(
        0.0, "Label smoothing: probability shared by all classes.", least=0, most=0.99
    )
    teacher: str = field(
        "", "Weights of a teacher to distil from, as for init.path; '' for none.", is_path=True
    )
    distill: str = field(
        "soft",
        "Distillation from the teacher's probabilities, or from its best class (arXiv:2012.12877).",
        table="vit_jax.tasks.losses:DISTILLATIONS",
    )
    distill_weight: float = field(0.5, "Weight of distillation in the loss.", least=0, most=1)
    temperature: float = field(1.0, "Temperature of soft distillation.", above=0)
    targets: str = field(
        "mean",
        "Targets of masked patches: mean 3-bit colour, 4x4 colours, or pixels (appendix B.1.2).",
        choices=("mean", "downsized", "pixels"),
    )
    corrupted: float = field(
        0.5, "Fraction of patches to corrupt (appendix B.1.2).", above=0, most=1
    )
    mask_share: float = field(0.8, "Fraction of the corrupted patches to mask.", least=0, most=1)
    random_share: float = field(
        0.1, "Fraction of the corrupted patches to replace by others.", least=0, most=1
    )
    mask_ratio: float = field(
        0.75, "Fraction of the patches that a masked autoencoder removes.", above=0, most=0.99
    )
    normalize_targets: bool = field(
        True, "Predict the pixels of a patch divided by their deviation, around their mean."
    )
    decoder_layers: int = field(8, "Number of layers of the decoder.", least=1, most=2**10)
    decoder_size: int = field(512, "Width of the decoder.", least=4, most=2**16)
    decoder_heads: int = field(16, "Number of heads of the decoder.", least=1, most=2**10)
