"""Numbers of the paper's tables (arXiv:2010.11929v2); accuracies in percent."""

import dataclasses

from vit_jax.data.dataset_info import DATASETS

TABLE_1 = {  # (layers, hidden size D, MLP size, heads, parameters in millions).
    "ViT-Base": (12, 768, 3072, 12, 86),
    "ViT-Large": (24, 1024, 4096, 16, 307),
    "ViT-Huge": (32, 1280, 5120, 16, 632),
}

# (mean, standard deviation) of three fine-tuning runs, and TPUv3-core-days of pre-training. BiT and
# Noisy Student are from other papers. Omitted: the second ImageNet number that the paper prints for
# Noisy Student, which is of FixEfficientNet.
TASKS_2 = ("ImageNet", "ImageNet ReaL", "CIFAR-10", "CIFAR-100", "Pets", "Flowers", "VTAB")
TABLE_2 = {
    "ViT-H/14, JFT-300M": (
        *((88.55, 0.04), (90.72, 0.05), (99.50, 0.06), (94.55, 0.04), (97.56, 0.03)),
        *((99.68, 0.02), (77.63, 0.23), 2_500),
    ),
    "ViT-L/16, JFT-300M": (
        *((87.76, 0.03), (90.54, 0.03), (99.42, 0.03), (93.90, 0.05), (97.32, 0.11)),
        *((99.74, 0.00), (76.28, 0.46), 680),
    ),
    "ViT-L/16, ImageNet-21k": (
        *((85.30, 0.02), (88.62, 0.05), (99.15, 0.03), (93.25, 0.05), (94.67, 0.15)),
        *((99.61, 0.02), (72.72, 0.21), 230),
    ),
    "BiT-L (ResNet152x4)": (
        *((87.54, 0.02), (90.54, None), (99.37, 0.06), (93.51, 0.08), (96.62, 0.23)),
        *((99.63, 0.03), (76.29, 1.70), 9_900),
    ),
    "Noisy Student (EfficientNet-L2)": (
        *((88.4, None), (90.55, None), None, None, None, None, None, 12_300),
    ),
}

# (models, data, epochs, base learning rate, learning-rate decay, weight decay, dropout). All: batch
# size 4,096, 10,000 warm-up steps, Adam with betas 0.9 and 0.999, 224 px. On ImageNet: gradients
# clipped to global norm 1.
TABLE_3 = (
    ("ViT-B/{16,32}", "JFT-300M", "7", 8e-4, "linear", 0.1, 0.0),
    ("ViT-L/32", "JFT-300M", "7", 6e-4, "linear", 0.1, 0.0),
    ("ViT-L/16", "JFT-300M", "7/14", 4e-4, "linear", 0.1, 0.0),
    ("ViT-H/14", "JFT-300M", "14", 3e-4, "linear", 0.1, 0.0),
    ("R50x{1,2}", "JFT-300M", "7", 1e-3, "linear", 0.1, 0.0),
    ("R101x1", "JFT-300M", "7", 8e-4, "linear", 0.1, 0.0),
    ("R152x{1,2}", "JFT-300M", "7", 6e-4, "linear", 0.1, 0.0),
    ("R50+ViT-B/{16,32}", "JFT-300M", "7", 8e-4, "linear", 0.1, 0.0),
    ("R50+ViT-L/32", "JFT-300M", "7", 2e-4, "linear", 0.1, 0.0),
    ("R50+ViT-L/16", "JFT-300M", "7/14", 4e-4, "linear", 0.1, 0.0),
    ("ViT-B/{16,32}", "ImageNet-21k", "90", 1e-3, "linear", 0.03, 0.1),
    ("ViT-L/{16,32}", "ImageNet-21k", "30/90", 1e-3, "linear", 0.03, 0.1),
    ("ViT-*", "ImageNet", "300", 3e-3, "cosine", 0.3, 0.1),
)

# (steps, base learning rates, share of the training split held out for the choice among them). All:
# SGD with momentum 0.9, batch size 512, cosine decay, no weight decay, gradients clipped to global
# norm 1, 384 px.
TABLE_4 = {
    "ImageNet": (20_000, (0.003, 0.01, 0.03, 0.06), 0.01),
    "CIFAR-100": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02),
    "CIFAR-10": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02),
    "Oxford-IIIT Pets": (500, (0.001, 0.003, 0.01, 0.03), 0.1),
    "Oxford Flowers-102": (500, (0.001, 0.003, 0.01, 0.03), 0.1),
    "VTAB (19 tasks)": (2_500, (0.01,), None),  # VTAB-1k defines 200 of its 1,000 images for this.
}

# Accuracies of Figure 3, fine-tuned at 384 px, without weight averaging.
MODELS_5 = ("ViT-B/16", "ViT-B/32", "ViT-L/16", "ViT-L/32", "ViT-H/14")
TABLE_5 = {
    "ImageNet": {
        "CIFAR-10": (98.13, 97.77, 97.86, 97.94, None),
        "CIFAR-100": (87.13, 86.31, 86.35, 87.07, None),
        "ImageNet": (77.91, 73.38, 76.53, 71.16, None),
        "ImageNet ReaL": (83.57, 79.56, 82.19, 77.83, None),
        "Flowers": (89.49, 85.43, 89.66, 86.36, None),
        "Pets": (93.81, 92.04, 93.64, 91.35, None),
    },
    "ImageNet-21k": {
        "CIFAR-10": (98.95, 98.79, 99.16, 99.13, 99.27),
        "CIFAR-100": (91.67, 91.97, 93.44, 93.04, 93.82),
        "ImageNet": (83.97, 81.28, 85.15, 80.99, 85.13),
        "ImageNet ReaL": (88.35, 86.63, 88.40, 85.65, 88.70),
        "Flowers": (99.38, 99.11, 99.61, 99.19, 99.51),
        "Pets": (94.43, 93.02, 94.73, 93.09, 94.82),
    },
    "JFT-300M": {
        "CIFAR-10": (99.00, 98.61, 99.38, 99.19, 99.50),
        "CIFAR-100": (91.87, 90.49, 94.04, 92.52, 94.55),
        "ImageNet": (84.15, 80.73, 87.12, 84.37, 88.04),
        "ImageNet ReaL": (88.85, 86.27, 89.99, 88.28, 90.33),
        "Flowers": (99.56, 99.27, 99.56, 99.45, 99.68),
        "Pets": (95.80, 93.40, 97.11, 95.83, 97.56),
    },
}


@dataclasses.dataclass(frozen=True)
class ScalingRow:
    """One row of Table 6: a model pre-trained on JFT-300M; accuracies in percent."""

    title: str
    model: str  # Name for `create_model`.
    epochs: int
    imagenet: float
    real: float
    cifar10: float
    cifar100: float
    pets: float
    flowers: float
    exaflops: int


TABLE_6 = (
    ScalingRow("ViT-B/32", "vit_b32", 7, 80.73, 86.27, 98.61, 90.49, 93.40, 99.27, 55),
    ScalingRow("ViT-B/16", "vit_b16", 7, 84.15, 88.85, 99.00, 91.87, 95.80, 99.56, 224),
    ScalingRow("ViT-L/32", "vit_l32", 7, 84.37, 88.28, 99.19, 92.52, 95.83, 99.45, 196),
    ScalingRow("ViT-L/16", "vit_l16", 7, 86.30, 89.43, 99.38, 93.46, 96.81, 99.66, 783),
    ScalingRow("ViT-L/16", "vit_l16", 14, 87.12, 89.99, 99.38, 94.04, 97.11, 99.56, 1567),
    ScalingRow("ViT-H/14", "vit_h14", 14, 88.08, 90.36, 99.50, 94.71, 97.11, 99.71, 4262),
    ScalingRow("ResNet50x1", "bit_r50x1", 7, 77.54, 84.56, 97.67, 86.07, 91.11, 94.26, 50),
    ScalingRow("ResNet50x2", "bit_r50x2", 7, 82.12, 87.94, 98.29, 89.20, 93.43, 97.02, 199),
    ScalingRow("ResNet101x1", "bit_r101x1", 7, 80.67, 87.07, 98.48, 89.17, 94.08, 95.95, 96),
    ScalingRow("ResNet152x1", "bit_r152x1", 7, 81.88, 87.96, 98.82, 90.22, 94.17, 96.94, 141),
    ScalingRow("ResNet152x2", "bit_r152x2", 7, 84.97, 89.69, 99.06, 92.05, 95.37, 98.62, 563),
    ScalingRow("ResNet152x2", "bit_r152x2", 14, 85.56, 89.89, 99.24, 91.92, 95.75, 98.75, 1126),
    ScalingRow("ResNet200x3", "bit_r200x3", 14, 87.22, 90.15, 99.34, 93.53, 96.32, 99.04, 3306),
    ScalingRow("R50x1+ViT-B/32", "r50_b32", 7, 84.90, 89.15, 99.01, 92.24, 95.75, 99.46, 106),
    ScalingRow("R50x1+ViT-B/16", "r50_b16", 7, 85.58, 89.65, 99.14, 92.63, 96.65, 99.40, 274),
    ScalingRow("R50x1+ViT-L/32", "r50_l32", 7, 85.68, 89.04, 99.24, 92.93, 96.97, 99.43, 246),
    # 859 as printed; half of the next row's 1668 would be 834.
    ScalingRow("R50x1+ViT-L/16", "r50_l16", 7, 86.60, 89.72, 99.18, 93.64, 97.03, 99.40, 859),
    ScalingRow("R50x1+ViT-L/16", "r50_l16", 14, 87.12, 89.76, 99.31, 93.89, 97.36, 99.11, 1668),
)
JFT_CLASSES, JFT_EXAMPLES = DATASETS["jft"]

# Pre-trained on JFT-300M for 7 epochs with Adam, or with SGD and the hyperparameters of BiT.
TASKS_7 = ("ImageNet", "CIFAR-10", "CIFAR-100", "Pets", "Flowers")
TABLE_7 = {
    ("ResNet50", "Adam"): (77.54, 97.67, 86.07, 91.11, 94.26),
    ("ResNet50", "SGD"): (78.24, 97.46, 85.17, 91.00, 92.06),
    ("ResNet152x2", "Adam"): (84.97, 99.06, 92.05, 95.37, 98.62),
    ("ResNet152x2", "SGD"): (84.37, 99.07, 91.06, 94.79, 99.32),
}

# Linear 5-shot ImageNet accuracy of ViT-B/16 by `pos_embed_at`: added once at the input, learned
# separately for every layer, or shared by all layers.
POS_EMBED_AT_8 = ("stem", "layers", "shared")
TABLE_8 = {
    "none": (61.382, None, None),
    "learned": (64.206, 63.964, 64.292),
    "learned_2d": (64.001, 64.046, 64.022),
    "relative": (64.032, None, None),
}

TABLE_9 = {  # Model and pre-training data -> VTAB-1k accuracies, in the order of its tasks.
    "ViT-H/14, JFT-300M": (
        *(95.3, 85.5, 75.2, 99.7, 97.2, 65.0, 88.9),
        *(83.3, 96.7, 91.4, 76.6),
        *(91.7, 63.8, 53.1, 79.4, 63.3, 84.5, 33.2, 51.2),
    ),
    "ViT-L/16, JFT-300M": (
        *(95.4, 81.9, 74.3, 99.7, 96.7, 63.5, 87.4),
        *(83.6, 96.5, 89.7, 77.1),
        *(86.4, 63.1, 49.7, 74.5, 60.5, 82.2, 36.2, 51.1),
    ),
    "ViT-L/16, ImageNet-21k": (
        *(90.8, 84.1, 74.1, 99.3, 92.7, 61.0, 80.9),
        *(82.5, 95.6, 85.2, 75.3),
        *(70.3, 56.1, 41.9, 74.7, 64.9, 79.9, 30.5, 41.7),
    ),
}
