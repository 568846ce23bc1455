"""Prints the time of a checkpoint in a bucket beside one on the local disk.

python benchmarks/bucket.py [--megabytes=100] [--saves=5]

The bucket is the S3 emulator of moto in a process of its own, on loopback: the figures are the
costs of the code and of the protocol, without those of a network. `pip install -e .[dev]`
installs it.
"""

import argparse
import contextlib
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import jax.numpy as jnp

from vit_jax.checkpoints.checkpoint import Checkpoints
from vit_jax.checkpoints.mirror import local_folder

NUM_ARRAYS = 50


@contextlib.contextmanager
def s3_server() -> Iterator[None]:
    """Runs moto with an empty bucket `bench`, and sets the variables of s3fs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                request = urllib.request.Request(f"{endpoint}/bench", method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
                break
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def time_saves(workdir: str, state: dict, saves: int) -> tuple[float, float, float]:
    """Returns medians of a save: seconds until it returns and until it is durable, CPU seconds."""
    rows = []
    with local_folder(workdir) as folder:
        writer = Checkpoints(pathlib.Path(folder) / "checkpoints")
        for step in range(1, saves + 2):
            begun, cpu = time.perf_counter(), time.process_time()
            writer.save(step, state, data={}, meta={})
            returned = time.perf_counter() - begun
            writer.wait()
            rows.append((returned, time.perf_counter() - begun, time.process_time() - cpu))
        writer.close()
    return tuple(map(statistics.median, zip(*rows[1:])))  # The first save imports Orbax.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    size = options.megabytes * 10**6 // 4 // NUM_ARRAYS
    state = {f"array_{i}": jnp.arange(size, dtype=jnp.float32) + i for i in range(NUM_ARRAYS)}
    with tempfile.TemporaryDirectory() as folder, s3_server():
        os.environ["XDG_CACHE_HOME"] = folder
        disk = time_saves(f"{folder}/run", state, options.saves)
        bucket = time_saves("s3://bench/run", state, options.saves)
    print(f"state of {options.megabytes} MB in {NUM_ARRAYS} arrays, {options.saves} saves, medians")
    for name, (returned, durable, cpu) in {"disk": disk, "bucket": bucket}.items():
        print(
            f"{name:6}  save returns after {returned:.2f} s, durable after {durable:.2f} s, "
            f"CPU time of this process {cpu:.2f} s"
        )


if __name__ == "__main__":
    main()
