"""Kinds of files that are not weights, by their first bytes, and what to do."""

import glob
import pathlib
import re

from vit_jax.errors import CheckpointError

HEAD = 512  # Bytes that identify a file.
NPZ, SAFETENSORS, PICKLE, ZIP = ".npz", ".safetensors", ".pth", ".zip"
PICKLES = (PICKLE, ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
# Keys that the weights in a pickle of a training may be under; of several, the last is evaluated.
NESTED = ("state_dict", "model", "module", "teacher", "target_encoder")
KINDS = (  # Pattern of the first bytes, suffix, and description of such files.
    (rb".{6}\0\0\{", SAFETENSORS, "is a .safetensors file; give it this suffix"),
    (rb"\x80[\x02-\x05]", PICKLE, ""),
    (rb"PK\x03\x04.{26}[^/]{0,200}/data\.pkl", PICKLE, ""),
    (rb"PK\x03\x04.{26}.{0,200}\.npy", NPZ, "is an .npz file; give it this suffix"),
    (rb"PK\x03\x04", ZIP, "is a zip file; unpack it"),
    (rb"\Z", "", "is empty; copy or download the file again"),
    (rb"version https://git-lfs\.", "", "is a Git LFS pointer, not the file; run `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml)", "", "is a web page, not weights; download the file again"),
    (rb"\s*[{\[]", "", "is a JSON file, not weights"),
    (rb"\x93NUMPY", "", "is one array of numpy; expected the named arrays of an .npz"),
    (rb"\x89HDF", "", "is an HDF5 file of Keras, which is not supported"),
    (rb"GGUF", "", "is a GGUF file, which is not supported"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "", "is compressed; unpack it"),
    (rb".{257}ustar", "", "is a tar file; unpack it"),
)


def check_kind(path: pathlib.Path, head: bytes) -> None:
    """Raises CheckpointError, with what to do, for a file that is not an .npz or .safetensors.

    Args:
      path: the file; one whose first bytes are unknown passes if its suffix is one of these.
      head: its first bytes, HEAD of them.
    """
    kinds = (kind for kind in KINDS if re.match(kind[0], head, re.DOTALL | re.IGNORECASE))
    _, suffix, description = next(kinds, (None, None, ""))
    if suffix == PICKLE:
        raise pickle_error(path)
    if path.suffix == suffix or (path.suffix, suffix) == (NPZ, ZIP):  # Its reader says more.
        return
    if path.suffix in PICKLES and suffix in (None, ZIP):
        raise pickle_error(path)
    if description:
        raise CheckpointError(f"{path} {description}.")
    if path.suffix not in (NPZ, SAFETENSORS):
        raise CheckpointError(
            f"{path}: unsupported suffix; expected .npz or .safetensors (pickles are never read)."
        )


def pickle_error(path: pathlib.Path) -> CheckpointError:
    """Returns the error of a PyTorch pickle, with a command that saves it as safetensors.

    The command for a shard saves all shards of its model.
    """
    save = "s.save_file({k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}, "
    if shard := re.fullmatch(r"(.+-)\d{5}(-of-\d{5})(\.\w+)", path.name):
        files = glob.escape(str(path.parent / shard[1])) + "*" + glob.escape(shard[2] + shard[3])
        code = (
            f"import glob, torch, safetensors.torch as s; [{save}p[:-{len(shard[3])}] + "
            f"{SAFETENSORS!r}) for p in glob.glob({files!r}) "
            "for w in [torch.load(p, 'cpu', weights_only=True)]]"
        )
    else:
        name = "model" if path.name == "pytorch_model.bin" else path.stem
        code = (
            f"import torch, safetensors.torch as s; w = torch.load({str(path)!r}, 'cpu', "
            f"weights_only=True); [w := w.get(k, w) for k in {NESTED}]; {save}"
            f"{str(path.with_name(name + SAFETENSORS))!r})"
        )
    return CheckpointError(
        f"{path} is a pickle, which can run code and is never read. If you trust it, save its "
        f'tensors with your own PyTorch: python -c "{code}"'
    )
