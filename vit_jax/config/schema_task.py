"""The section `task` of a config: the training objective and its options."""

import dataclasses

from vit_jax.config.fields import field


@dataclasses.dataclass(frozen=True)
class Task:
    """config.task: the training objective."""

    name: str = field(
        "classification",
        "Classification, masked patch prediction (appendix B.1.2), masked autoencoders "
        "(arXiv:2111.06377), or self-distillation: DINO, iBOT and DINOv2 (arXiv:2104.14294).",
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
    prototypes: int = field(
        65_536, "Number of prototypes of self-distillation (arXiv:2104.14294).", least=2, most=2**20
    )
    head_layers: int = field(3, "Number of layers of a projection head.", least=1, most=2**6)
    head_hidden: int = field(2048, "Width of a projection head.", least=1, most=2**16)
    bottleneck: int = field(
        256, "Width of the last layer of a projection head.", least=1, most=2**16
    )
    normalize_last_layer: bool = field(
        True, "Prototypes have the length 1; False learns it, which is better and less stable."
    )
    student_temperature: float = field(0.1, "Temperature of the student.", above=0)
    teacher_temperature: float = field(0.04, "Temperature of the teacher, at first.", above=0)
    end_teacher_temperature: float | None = field(
        None,
        "Temperature of the teacher after `teacher_warmup_steps`; None keeps the first. Above 0.07 "
        "training is unstable.",
        above=0,
    )
    teacher_warmup_steps: int = field(
        0, "Steps in which the temperature of the teacher changes linearly.", least=0
    )
    centering: str = field(
        "mean",
        "Balance of the teacher's assignments: subtract the mean logits, or Sinkhorn-Knopp "
        "(arXiv:2304.07193).",
        choices=("mean", "sinkhorn"),
    )
    center_momentum: float = field(
        0.9, "Decay of the moving average of mean logits.", least=0, most=0.99999
    )
    patch_weight: float = field(
        0.0,
        "Weight of the loss at masked patches (iBOT, arXiv:2111.07832): 1 in iBOT and DINOv2.",
        least=0,
    )
    patch_prototypes: int | None = field(
        None,
        "Number of prototypes of patches, with a projection head of their own; None shares the "
        "head of the class token.",
        least=2,
        most=2**20,
    )
    masked_crops: float = field(
        0.5, "Fraction of the global crops with masked patches.", above=0, most=1
    )
    mask_ratios: tuple[float, float] = field(
        (0.1, 0.5), "Smallest and largest fraction of masked patches of such a crop.", above=0
    )
    koleo_weight: float = field(
        0.0,
        "Weight of the entropy of features in a batch (KoLeo, arXiv:1806.03198): 0.1 in DINOv2.",
        least=0,
    )
