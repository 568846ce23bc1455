"""Bytes sent per device in modules that XLA compiled for CPU devices (jax 0.10.2).

Recorded here because compiling all of them takes a quarter of an hour. To measure one again, see
`bytes_sent` under `compiled` in the output of:

  python -m vit_jax.main plan --config=configs/pretrain.py:data=imagenet,model=MODEL \\
    --config.model.dropout=0 --devices=DEVICES --mesh=MESH --compile --json

MESH is data:DEVICES; or data:1,fsdp:DEVICES; or data:1,fsdp:DEVICES/2,tensor:2.
"""

# (model, mesh, devices) -> kind of collective -> bytes that a device sends per training step.
COMPILED_BYTES = {
    ("vit_b16", "data", 2): {"all-reduce": 348633008},
    ("vit_b16", "data", 8): {"all-reduce": 610107764},
    ("vit_b16", "data", 32): {"all-reduce": 675476453},
    ("vit_b16", "data", 64): {"all-reduce": 686371234},
    ("vit_b16", "fsdp", 2): {
        "all-reduce": 499216,
        "all-gather": 343936512,
        "all-reduce + slice": 348134400,
    },
    ("vit_b16", "fsdp", 8): {
        "all-reduce": 873628,
        "all-gather": 601888896,
        "all-reduce + slice": 609235200,
    },
    ("vit_b16", "fsdp", 32): {
        "all-reduce": 967231,
        "all-gather": 666376992,
        "all-reduce + slice": 674510400,
    },
    ("vit_b16", "fsdp", 64): {
        "all-reduce": 982832,
        "all-gather": 677125008,
        "all-reduce + slice": 685389600,
    },
    ("vit_b16", "fsdp, tensor 2", 2): {"all-reduce": 178476024768},
    ("vit_b16", "fsdp, tensor 2", 8): {
        "all-reduce": 44619562200,
        "all-gather": 261100800,
        "all-reduce + slice": 267397632,
    },
    ("vit_b16", "fsdp, tensor 2", 64): {
        "all-reduce": 5578093951,
        "all-gather": 337255200,
        "all-reduce + slice": 345388608,
    },
    ("vit_l16", "data", 2): {"all-reduce": 1221504944},
    ("vit_l16", "data", 8): {"all-reduce": 2137633652},
    ("vit_l16", "data", 64): {"all-reduce": 2404837858},
    ("vit_l16", "fsdp", 2): {
        "all-reduce": 1303632,
        "all-gather": 1214081024,
        "all-reduce + slice": 1220202496,
    },
    ("vit_l16", "fsdp", 8): {
        "all-reduce": 2281356,
        "all-gather": 2124641792,
        "all-reduce + slice": 2135354368,
    },
    ("vit_l16", "fsdp", 64): {
        "all-reduce": 2566526,
        "all-gather": 2390222016,
        "all-reduce + slice": 2402273664,
    },
    ("vit_l16", "fsdp, tensor 2", 2): {"all-reduce": 475936065408},
    ("vit_l16", "fsdp, tensor 2", 8): {
        "all-reduce": 118985457144,
        "all-gather": 915151872,
        "all-reduce + slice": 924334080,
    },
    ("vit_l16", "fsdp, tensor 2", 64): {
        "all-reduce": 14874863067,
        "all-gather": 1182071168,
        "all-reduce + slice": 1193931520,
    },
}
