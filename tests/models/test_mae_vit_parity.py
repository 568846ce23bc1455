"""A whole masked autoencoder beside transformers: predictions, loss and gradients (PyTorch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import some_images
from vit_jax import create_model, load_params
from vit_jax.config.schema import Task
from vit_jax.models import trees
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.pixel_stats import normalize
from vit_jax.models.position import sincos
from vit_jax.tasks import mae
from vit_jax.weights import formats
from vit_jax.weights.tensor_layouts import tensor_to_params

pytestmark = pytest.mark.parity
D, d, HEADS, SIDE, PATCH, KEPT = 64, 32, 4, 48, 8, 9
VIT_5 = formats.FORMATS[f"{formats.HF_VIT}, version 5"]  # Of a state_dict.


def make_theirs(torch):
    """A masked autoencoder of transformers in which no parameter is zero or one."""
    import transformers

    config = transformers.ViTMAEConfig(
        hidden_size=D,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=4 * D,
        image_size=SIDE,
        patch_size=PATCH,
        decoder_num_attention_heads=HEADS,
        decoder_hidden_size=d,
        decoder_num_hidden_layers=2,
        decoder_intermediate_size=4 * d,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    grid = (SIDE // PATCH, SIDE // PATCH)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "pos" in name:  # Fixed; zeros unless weights are loaded.
                values = sincos(grid, parameter.shape[-1], "sincos_mae")
                parameter[0, 1:] = torch.tensor(values)
            else:
                parameter += 0.02 * torch.randn_like(parameter)
    return theirs


def to_params(state: dict) -> dict:
    """Returns the parameters of MaeViT for a state_dict of transformers."""
    params = {}
    for name, tensor in state.items():
        if name.startswith("vit."):
            tensor_name, root = name.removeprefix("vit."), "Transformer"
        else:
            tensor_name, root = name.removeprefix("decoder."), "Decoder"
            tensor_name = tensor_name.replace("decoder_layers.", "layers.")
            tensor_name = tensor_name.replace("decoder_norm.", "layernorm.")
        row = formats.row_of_tensor(VIT_5, tensor_name)
        if row is not None:
            for param, array in zip(row.params, tensor_to_params(row, tensor, HEADS)):
                params[param.replace("Transformer", root)] = array
        elif tensor_name == "mask_token":
            params["decoder_mask_token"] = tensor
        elif tensor_name != "decoder_pos_embed":
            module, _, leaf = tensor_name.rpartition(".")
            params[f"{module}/{'kernel' if leaf == 'weight' else 'bias'}"] = tensor.T
    return params


def relative_error(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(np.array(ours) - theirs).max() / np.abs(theirs).max()


def make_ours() -> MaeViT:
    """The same autoencoder here."""
    sizes = {"hidden_size": D, "num_layers": 2, "num_heads": HEADS, "mlp_size": 4 * D}
    sizes |= {"patch": PATCH, "pos_embed": "sincos_mae"}
    vit = create_model("mae_b16", num_classes=0, image_size=SIDE, **sizes)
    return MaeViT.of(vit, KEPT, num_layers=2, hidden_size=d, num_heads=HEADS)


def test_folder_that_transformers_saves_has_its_loss(tmp_path):
    import torch

    theirs = make_theirs(torch)
    theirs.save_pretrained(tmp_path)
    model, images = make_ours(), jnp.array(some_images(3, SIDE, SIDE, 3))
    params = load_params(tmp_path, model)
    noise = torch.rand(3, (SIDE // PATCH) ** 2)
    pixels = np.array(normalize(images, "imagenet")).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels), noise=noise).loss.item()
    order = jnp.argsort(jnp.array(noise.numpy()), axis=1)
    task = mae.MaskedAutoencoder(Task(name="mae"), model)
    assert abs(jnp.mean(task.losses_of(params, images, order)) - expected) < 1e-5


def test_predictions_loss_and_gradients_are_those_of_transformers():
    import torch

    theirs = make_theirs(torch)
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    params = trees.unflatten(to_params(state))
    sizes = {"hidden_size": D, "num_layers": 2, "num_heads": HEADS, "mlp_size": 4 * D}
    vit = create_model("mae_b16", num_classes=0, image_size=SIDE, patch=PATCH, **sizes)
    model = MaeViT.of(vit, KEPT, num_layers=2, hidden_size=d, num_heads=HEADS)

    images = jnp.array(some_images(3, SIDE, SIDE, 3))
    noise = torch.rand(3, (SIDE // PATCH) ** 2)
    pixels = np.array(normalize(images, "imagenet")).transpose(0, 3, 1, 2).copy()
    output = theirs(torch.tensor(pixels), noise=noise)
    output.loss.backward()

    order = jnp.argsort(jnp.array(noise.numpy()), axis=1)
    task = mae.MaskedAutoencoder(Task(name="mae"), model)
    predictions = model.apply({"params": params}, images, order)
    loss, gradients = jax.value_and_grad(
        lambda params: jnp.mean(task.losses_of(params, images, order))
    )(params)
    assert relative_error(predictions, output.logits) < 1e-5
    assert abs(loss - output.loss.item()) < 1e-5
    decoder = theirs.decoder.decoder_embed.weight.grad
    assert relative_error(gradients["decoder_embed"]["kernel"].T, decoder) < 1e-4
    kernel = gradients["embedding"]["kernel"].transpose(3, 2, 0, 1)
    embedding = theirs.vit.embeddings.patch_embeddings.projection.weight.grad
    assert relative_error(kernel, embedding) < 1e-4
