"""Memory of loading a weights file onto a mesh."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vit_jax import create_model
from vit_jax.models.registry import param_shapes
from vit_jax.weights import writer
from vit_jax.weights.archive import write_npz

OPTIONS = {"num_classes": 21843, "pre_logits": True}  # As published; the head is 28 % of the file.

CHILD = """
import os, pathlib, sys, threading, time
import jax
import vit_jax
from vit_jax.distributed import mesh as sharding
from vit_jax.models.registry import make_init

def private():  # Bytes of anonymous memory.
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], private())
        time.sleep(0.001)

path, num_devices, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
model = vit_jax.create_model("vit_s16", **options)
shapes = jax.eval_shape(make_init(model), jax.random.key(0))
places = sharding.tree_shardings(shapes, sharding.make_mesh(1, num_devices))
jax.block_until_ready(jax.device_put(jax.numpy.ones(8)))
start = private()
peak, done = [start], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
params = jax.block_until_ready(vit_jax.load_params(path, model, shardings=places))
done.set()
watcher.join()
kernel = params["Transformer"]["encoderblock_0"]["MlpBlock_0"]["Dense_0"]["kernel"]
assert len(kernel.sharding.device_set) == num_devices
print((peak[0] - start) / os.path.getsize(path))
"""


@pytest.mark.stress
def test_load_params_takes_at_most_half_more_memory_than_the_file(tmp_path):
    model = create_model("vit_s16", **OPTIONS)
    params = {name: np.ones(shape, np.float32) for name, shape in param_shapes(model).items()}
    shapes = {name: array.shape for name, array in params.items()}
    path = tmp_path / "s16.npz"
    write_npz(path, writer.export_tensors(writer.plan_export("npz", model, shapes), params), {})
    for num_devices in (1, 8):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices)}
        command = [sys.executable, "-c", CHILD, path, str(num_devices), repr(OPTIONS)]
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        ratio = float(child.stdout)
        # All weights at the end, and one more array during loading.
        assert 1 <= ratio <= 1.5
