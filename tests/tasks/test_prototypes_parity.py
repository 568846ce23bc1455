"""Losses on prototypes and their gradients beside lightly (PyTorch).

Deselected by default: `pytest -m parity`. `UPDATE_GOLDEN=1 pytest -m parity -k golden` writes the
values of the default tests again.
"""

import os

import numpy as np
import pytest

from tests.support.prototype_cases import GOLDEN, TEMPERATURES, case

pytestmark = pytest.mark.parity


def leaf(torch, array):
    return torch.tensor(array, requires_grad=True)


def class_results(torch, num_local):
    from lightly.loss import DINOLoss

    inputs = case(num_local)
    theirs = DINOLoss(
        output_dim=inputs["teacher"].shape[-1],
        teacher_temp=TEMPERATURES["teacher"],
        student_temp=TEMPERATURES["student"],
        center_momentum=0.9,
    )
    theirs.center[:] = torch.tensor(inputs["centre"])
    student = leaf(torch, inputs["student"])
    teacher = torch.tensor(inputs["teacher"])
    loss = theirs(
        teacher_out=list(teacher.unbind(1)),
        student_out=list(student.unbind(1)),
        teacher_temp=TEMPERATURES["teacher"],
    )
    loss.backward()
    return {
        f"class_loss-{num_local}": loss.item(),
        f"class_gradient-{num_local}": student.grad.numpy(),
        f"centre-{num_local}": theirs.center[0, 0].numpy(),
    }


def patch_results(torch):
    from lightly.loss import IBOTPatchLoss

    inputs = case(0)
    theirs = IBOTPatchLoss(
        output_dim=inputs["teacher"].shape[-1],
        teacher_temp=TEMPERATURES["teacher"],
        student_temp=TEMPERATURES["student"],
    )
    theirs.center.center[:] = torch.tensor(inputs["centre"])
    is_real = inputs["patch_weights"] > 0
    student = leaf(torch, inputs["patch_student"])
    side = int(inputs["is_masked"].shape[-1] ** 0.5)
    loss = theirs(
        teacher_out=torch.tensor(inputs["patch_teacher"][is_real]),
        student_out=student[torch.tensor(is_real)],
        mask=torch.tensor(inputs["is_masked"].reshape(-1, side, side)),
    )
    loss.backward()
    return {
        "patch_loss": loss.item(),
        "patch_gradient": student.grad.numpy(),
        "patch_centre": theirs.center.value[0].numpy(),
    }


def koleo_results(torch):
    from lightly.loss import KoLeoLoss

    features = leaf(torch, case(0)["features"])
    loss = KoLeoLoss()(features)
    loss.backward()
    return {"koleo": loss.item(), "koleo_gradient": features.grad.numpy()}


def sinkhorn_results(torch):
    from lightly.loss.swav_loss import sinkhorn

    logits = torch.tensor(case(0)["teacher"])
    logits = logits.reshape(-1, logits.shape[-1])
    return {"sinkhorn": sinkhorn(logits, iterations=3, epsilon=0.5).numpy()}


def test_golden_file_has_the_results_of_lightly():
    import torch

    results = class_results(torch, 0) | class_results(torch, 8) | patch_results(torch)
    results |= koleo_results(torch) | sinkhorn_results(torch)
    stored = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        stored |= {name: np.asarray(value) for name, value in results.items()}
        np.savez_compressed(GOLDEN, **stored)
    assert set(results) <= set(stored)
    for name, result in results.items():
        np.testing.assert_allclose(stored[name], result, atol=1e-6, err_msg=name)
