"""Every config file and every row of docs/configs.md: its numbers, and two steps of its trial."""

import ast
import dataclasses
import inspect
import re

import jax
import pytest

from tests.support.runs import ROOT
from vit_jax import config as config_lib
from vit_jax.checkpoints import workdir
from vit_jax.config.schema import Config
from vit_jax.distributed import mesh
from vit_jax.errors import ConfigError
from vit_jax.tasks import registry as task_registry
from vit_jax.training import build, sweep
from vit_jax.training.optimizer import adamw, sgd

FILES = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
DOCS = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z0-9_]+\.py(?::[^` ]+)?)` \|", DOCS, flags=re.MULTILINE)


def checked(file_and_arg: str) -> dict[str, Config]:
    return config_lib.check(config_lib.load(f"{ROOT}/configs/{file_and_arg}"))


def get(config: Config, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def default_of(function, option: str):
    return inspect.signature(function).parameters[option].default


@pytest.mark.parametrize("row", ROWS)
def test_a_documented_row_builds_at_full_size(row):
    for stage in checked(row).values():
        if stage.model.name != "auto":  # Otherwise that of the weights.
            task_registry.build_model(stage, num_classes=1000)


def test_every_file_is_documented_with_a_run_of_its_trial():
    assert {row.partition(":")[0] for row in ROWS} == set(FILES)
    trials = {row.partition(":")[0] for row in ROWS if re.search(r"[:,]smoke$", row)}
    assert trials == {file for file in FILES if "smoke" in (ROOT / "configs" / file).read_text()}


def test_no_row_is_documented_twice():
    assert len(ROWS) == len(set(ROWS))


# Tables 3 and 4 of arXiv:2010.11929v2, typed anew.
JFT = {
    ("vit_b16", "vit_b32", "r50_b16", "r50_b32", "bit_r101x1"): (8e-4, [7]),
    ("vit_l32", "bit_r152x1"): (6e-4, [7]),
    ("bit_r152x2",): (6e-4, [7, 14]),  # 14 in Table 6.
    ("vit_l16", "r50_l16"): (4e-4, [7, 14]),
    ("vit_h14",): (3e-4, [14]),
    ("bit_r50x1", "bit_r50x2"): (1e-3, [7]),
    ("r50_l32",): (2e-4, [7]),
}
B, L = ["vit_b16", "vit_b32"], ["vit_l16", "vit_l32"]
TABLE_3 = [
    ("jft", model, epochs, lr, "linear", 0.1, 0.0, None)
    for models, (lr, lengths) in JFT.items()
    for model in models
    for epochs in lengths
]
TABLE_3 += [("imagenet21k", m, 90, 1e-3, "linear", 0.03, 0.1, None) for m in B + L]
TABLE_3 += [("imagenet21k", m, 30, 1e-3, "linear", 0.03, 0.1, None) for m in L]
TABLE_3 += [("imagenet", m, 300, 3e-3, "cosine", 0.3, 0.1, 1.0) for m in B + L]


def row_of_table_3(data: str, model: str, epochs: int) -> str:
    """The documented row; a length that is not a row's own is an argument."""
    row = f"pretrain.py:data={data},model={model}"
    return row if row in ROWS and checked(row)[""].epochs == epochs else f"{row},epochs={epochs}"


@pytest.mark.parametrize(
    ("data", "model", "epochs", "lr", "decay", "weight_decay", "dropout", "clip"),
    TABLE_3,
    ids=[f"{row[0]}-{row[1]}-{row[2]}" for row in TABLE_3],
)
def test_pre_training_is_table_3(data, model, epochs, lr, decay, weight_decay, dropout, clip):
    row = row_of_table_3(data, model, epochs)
    assert row in ROWS
    config = checked(row)[""]
    rule = config.optimizer
    assert (config.model.name, config.epochs, config.batch_size) == (model, epochs, 4096)
    assert (rule.name, rule.kwargs, rule.warmup_steps) == ("adamw", {}, 10_000)
    assert (default_of(adamw, "b1"), default_of(adamw, "b2")) == (0.9, 0.999)
    assert (rule.lr, rule.schedule, rule.weight_decay) == (lr, decay, weight_decay)
    assert (rule.clip_norm, config.model.dropout) == (clip, dropout)
    assert (config.data.image_size, rule.decay_factors) == (224, ())
    assert config.model.pre_logits == (not model.startswith("bit"))


SMALL = [0.001, 0.003, 0.01, 0.03]
TABLE_4 = {
    "imagenet2012": (20_000, [0.003, 0.01, 0.03, 0.06], 0.01, 500, "validation"),
    "cifar100": (10_000, SMALL, 0.02, 500, "test"),
    "cifar10": (10_000, SMALL, 0.02, 500, "test"),
    "oxford_iiit_pet": (500, SMALL, 0.1, 100, "test"),
    "oxford_flowers102": (500, SMALL, 0.1, 100, "test"),
}


@pytest.mark.parametrize("dataset", TABLE_4)
def test_fine_tuning_is_table_4(dataset):
    steps, rates, held_out, warmup, test = TABLE_4[dataset]
    assert f"transfer.py:dataset={dataset},grid" in ROWS
    sweep = checked(f"transfer.py:dataset={dataset},grid")[""]
    assert sweep.sweep.grid == (("optimizer.lr", tuple(rates)),)
    assert (sweep.sweep.dev, sweep.sweep.seeds) == (held_out, 3)
    single = checked(f"transfer.py:dataset={dataset},lr=0.01")[""]
    assert single.optimizer.lr == 0.01
    for config in (sweep, single):
        rule = config.optimizer
        assert (config.data.split, config.data.val_split) == ("train", test)
        assert (rule.name, rule.schedule) == ("sgd", "cosine")
        assert rule.kwargs == {"accumulator_dtype": "bfloat16"}
        assert default_of(sgd, "momentum") == 0.9
        assert (rule.weight_decay, rule.clip_norm, rule.ema) == (0.0, 1.0, None)
        assert (config.steps, rule.warmup_steps) == (steps, warmup)
        assert (config.batch_size, config.data.image_size) == (512, 384)
        assert (config.init.path, config.init.new_head) == ("imagenet21k/ViT-B_16", True)


ADAPTED = {"optimizer.decay_factors": ((".*kernel", 1.0), (".*", 0.0))}
RAND_M9 = "random_resized_crop|flip|randaug_increasing(2,9,std=0.5,prob=0.5)"
NUMBERS = {  # Recipes beside the paper's tables: what must hold in which stage.
    "transfer.py:dataset=imagenet2012,model=vit_h14,polyak": {
        "": {"data.image_size": 518, "optimizer.ema": 0.9999}
    },
    "transfer.py:dataset=imagenet2012,model=vit_l16,polyak": {
        "": {"data.image_size": 512, "optimizer.ema": 0.9999}
    },
    "transfer.py:dataset=cifar10,model=vit_h14,grid": {
        "": {"data.image_size": 378, "sweep.seeds": 3}
    },
    "transfer.py:dataset=cifar10,steps=500": {"": {"steps": 500, "optimizer.warmup_steps": 50}},
    "vtab.py:task=dtd": {
        "": {
            "steps": 2500,
            "optimizer.lr": 0.01,
            "data.source": "vtab",
            "data.split": "train800val200",
            "data.val_split": "test",
            "data.augment": "random_crop|flip",
        }
    },
    "vtab.py:task=dtd,dev": {"": {"data.split": "train800", "data.val_split": "val200"}},
    "vtab.py:task=all": {
        "dsprites_loc": {"data.augment": "resize"},
        "smallnorb_azim": {"data.augment": "random_crop"},
        "kitti_dist": {"data.augment": "resize|flip", "data.dataset": "kitti_dist"},
    },
    "table7.py:model=bit_r50x1,optimizer=sgd": {
        "": {"optimizer.lr": 0.48, "optimizer.warmup_steps": 5000, "optimizer.weight_decay": 1e-3}
    },
    "table7.py:model=bit_r152x2,optimizer=adam": {
        "": {"optimizer.lr": 6e-4, "optimizer.weight_decay": 0.1, "epochs": 7.0}
    },
    "subsets.py:subset=9M,model=vit_b32": {
        "": {"select": "best", "data.fraction": 9 / 303, "epochs": pytest.approx(7 * 303 / 9)}
    },
    "heads.py:head=gap_low": {"": {"optimizer.lr": 3e-4, "model.pool": "gap"}},
    "heads.py:head=gap": {"": {"optimizer.lr": 8e-4, "model.pool": "gap"}},
    "positions.py:kind=learned_2d,at=shared": {
        "": {"model.pos_embed": "learned_2d", "model.pos_embed_at": "shared"}
    },
    "shapes.py:scale=patch,factor=2": {
        "": {"model.patch": 16, "model.num_layers": 8, "model.hidden_size": 1024}
    },
    "shapes.py:scale=all,factor=2": {
        "": {"model.patch": 16, "model.num_layers": 16, "model.mlp_size": 4096}
    },
    "masked_patches.py": {
        "pretrain": {
            "steps": 1_000_000,
            "optimizer.lr": 2e-4,
            "optimizer.schedule": "cosine",
            "task.corrupted": 0.5,
        },
        "finetune": {"steps": 20_000, "init.stage": "pretrain", "data.image_size": 384},
    },
    "augreg.py:data=imagenet21k,model=r50_l32": {
        "": {
            "data.augment": "inception_crop|flip|randaug(2,15)",
            "data.mixup": 0.2,
            "model.dropout": 0.1,
            "model.drop_path": 0.1,
            "optimizer.weight_decay": 0.1,
            "model.head_bias": -10.0,
            **ADAPTED,
        }
    },
    "augreg.py:model=vit_b16,aug=strong2,reg=0.1,wd=0.03": {
        "": {
            "data.augment": "inception_crop|flip|randaug(2,20)",
            "data.mixup": 0.8,
            "optimizer.weight_decay": 0.03,
            "model.head_bias": -6.9,
        }
    },
    "plain_vit.py:epochs=90": {
        "": {
            "batch_size": 1024,
            "optimizer.lr": 1e-3,
            "optimizer.weight_decay": 0.1,
            "data.mixup": 0.2,
            "data.augment": "inception_crop|flip|randaug(2,10)",
            "model.pos_embed": "sincos",
            "model.pool": "gap",
            **ADAPTED,
        }
    },
    "algoperf.py": {
        "": {
            "steps": 186_666,
            "optimizer.name": "nadamw_algoperf",
            "optimizer.warmup_steps": 9_333,
            "data.augment": "algoperf_crop|flip|randaug_algoperf(2,10)",
            "data.mixup": 0.2,
            "data.mixup_shift": 1,
            "task.label_smoothing": 0.2,
            "model.pixel_stats": "imagenet",
        }
    },
    "deit.py:model=vit_b16": {
        "": {
            "optimizer.lr": 1e-3,
            "optimizer.warmup_steps": 6255,
            "optimizer.weight_decay": 0.05,
            "data.repeats": 3,
            "model.gelu": "erf",
            "data.augment": f"{RAND_M9}|erase(0.25)",
        }
    },
    "deit3.py:model=vit_h14": {
        "pretrain": {"optimizer.name": "lamb", "model.drop_path": 0.6, "task.loss": "binary"},
        "finetune": {
            "optimizer.lr": 1e-5,
            "epochs": 20.0,
            "batch_size": 512,
            "data.augment": RAND_M9,
        },
    },
    "deit3.py:data=imagenet21k,model=vit_h14": {
        "pretrain": {
            "epochs": 90.0,
            "optimizer.weight_decay": 0.02,
            "data.augment": "pad_crop|flip|three_augment|color_jitter(0.3)",
        },
        "finetune": {"epochs": 50.0, "optimizer.lr": 3e-4, "data.image_size": 224},
    },
    "mae.py:model=vit_l16": {
        "pretrain": {
            "epochs": 800.0,
            "batch_size": 4096,
            "optimizer.lr": 2.4e-3,
            "optimizer.warmup_steps": 12_511,
            "optimizer.weight_decay": 0.05,
            "optimizer.clip_norm": None,
            "task.mask_ratio": 0.75,
            "task.decoder_layers": 8,
            "model.pos_embed": "sincos_mae",
            "data.augment": "random_resized_crop(0.2)|flip",
        },
        "finetune": {
            "epochs": 50.0,
            "optimizer.lr": 4e-3,
            "optimizer.layer_decay": 0.75,
            "model.drop_path": 0.2,
            "model.pool": "gap",
            "init.stage": "pretrain",
        },
    },
    "mae.py:mode=linear": {
        "linear": {
            "epochs": 90.0,
            "batch_size": 16_384,
            "optimizer.name": "lars",
            "optimizer.lr": 6.4,
            "optimizer.warmup_steps": 781,
            "optimizer.weight_decay": 0.0,
            "optimizer.clip_norm": None,
            "optimizer.freeze": "all but head",
            "model.pool": "token",
            "model.head_norm": True,
            "model.head_std": 0.01,
            "data.augment": "random_resized_crop|flip",
            "task.label_smoothing": 0.0,
            "init.stage": "pretrain",
        },
    },
    "mae_finetune.py:model=vit_l16": {
        "": {
            "optimizer.lr": 4e-3,
            "optimizer.layer_decay": 0.75,
            "optimizer.warmup_steps": 6255,
            "model.drop_path": 0.2,
            "epochs": 50.0,
            "data.augment": f"{RAND_M9}|erase(0.25)",
        }
    },
    "bit_hyperrule.py:dataset=imagenet2012": {
        "": {"steps": 20_000, "optimizer.stair_at": (0.3, 0.6, 0.9), "data.mixup": 0.1}
    },
    "bit_hyperrule.py:dataset=oxford_iiit_pet": {
        "": {"steps": 500, "optimizer.stair_at": (0.4, 0.6, 0.8), "data.mixup": 0.0}
    },
    "sam.py:rule=sam,model=vit_s16": {"": {"optimizer.sam_rho": 0.1, "optimizer.gsam_alpha": 0.0}},
    "sam.py:rule=gsam,model=vit_b32": {
        "": {
            "optimizer.sam_rho": 0.6,
            "optimizer.sam_rho_min": 0.1,
            "optimizer.gsam_alpha": 0.6,
            "optimizer.end_lr": 3e-5,
        }
    },
    "scaling_vit.py:model=vit_gg14": {
        "": {
            "batch_size": 16_384,
            "optimizer.lr": 8e-4,
            "optimizer.cooldown_steps": 50_000,
            "optimizer.weight_decay": 0.03,
        }
    },
    "distill.py:epochs=300": {
        "": {"optimizer.lr": 0.03, "optimizer.weight_decay": 0.01, "task.distill_weight": 1.0}
    },
}


@pytest.mark.parametrize("row", NUMBERS)
def test_a_recipe_has_its_published_numbers(row):
    assert row in ROWS
    stages = checked(row)
    for name, numbers in NUMBERS[row].items():
        assert {field: get(stages[name], field) for field in numbers} == numbers


WRONG = {
    "transfer.py:seeds=5": "config argument seeds has no effect without grid.",
    "transfer.py:grid,lr=0.1": "config argument lr has no effect with grid",
    "mae.py:mode=probe": "mode is 'probe'; choose from finetune, linear, both.",
    "mae.py:linear_batch=256": "linear_batch has no effect with mode=finetune; give mode=linear.",
    "heads.py:source=folder,dataset=cifar10": "config argument source has no effect with dataset",
    "deit3.py:source=folder": "source and dir are those of data=imagenet21k; give imagenet_dir.",
    "finetune.py:data=d,init=nowhere,smoke": "config argument init has no effect with smoke",
    "pretrain.py:model=vit_b17": "model is 'vit_b17'; choose from vit_b16, vit_b32, vit_l16",
    "pretrain.py:data=jfk": "data is 'jfk'; choose from jft, imagenet21k, imagenet.",
    "transfer.py:dataset=cifar": "dataset is 'cifar'; choose from imagenet2012, cifar100, cifar10",
    "transfer.py:model=vit_s16": "model is 'vit_s16'; give init=WHERE, or one of vit_b16",
    "algoperf.py:pool=token": "pool is 'token'; choose from gap, map.",
    "augreg.py:aug=heavy": "aug is 'heavy'; choose from none, light1, light2, medium1",
    "positions.py:kind=none,at=layers": "at is 'layers'; none has stem.",
    "vtab.py:task=clevr": "task is 'clevr'; choose from caltech101, cifar100, dtd, flowers",
    "dino.py:recipe=simclr": "recipe is 'simclr'; choose from dino, ibot, dinov2.",
    "dino.py:recipe=dinov2,model=vit_s16": "model is 'vit_s16'; choose from vit_l16.",
    "bit_hyperrule.py:dataset=svhn": "dataset is 'svhn'; give regime, or cifar10, cifar100",
}


@pytest.mark.parametrize("row", WRONG)
def test_a_wrong_name_is_answered_with_the_right_ones(row):
    with pytest.raises(ConfigError) as caught:
        checked(row)
    assert WRONG[row] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_source_of_the_command_line_replaces_the_data_set_of_a_recipe():
    for row in ("pretrain.py:source=folder,dir=d", "augreg.py:source=folder,dir=d"):
        data = checked(row)[""].data
        assert (data.source, data.dataset, data.dir, data.val_split) == ("folder", "", "d", "val")


def test_small_images_without_weights_start_with_small_patches():
    for size, patch in ((28, 4), (32, 4), (48, 6), (64, 8), (96, 12), (13, 1)):
        run = checked(f"finetune.py:data=d,size={size}")[""]
        assert (run.model.name, run.model.patch) == ("vit_ti16", patch)
        assert run.optimizer.name == "adamw"
    run = checked("finetune.py:data=d,size=32,patch=8,lr=0.5")[""]
    assert (run.model.patch, run.optimizer.lr) == (8, 0.5)
    run = checked("finetune.py:data=d,init=w.npz")[""]
    assert (run.model.name, run.model.patch, run.optimizer.lr) == ("auto", None, 0.01)
    assert checked("finetune.py:data=d,init=w.npz,model=vit_s16")[""].model.name == "vit_s16"


TRIALS = [row for row in ROWS if re.search(r"[:,]smoke$", row)]


@pytest.fixture
def quick_compiling(monkeypatch):
    """One of the eight devices and slow programs: two steps are nothing beside compiling them."""
    monkeypatch.setattr(
        build, "build_mesh", lambda config: mesh.make_mesh(devices=jax.devices()[:1])
    )
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.stress
@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("row", TRIALS)
def test_a_trial_takes_two_steps(row, tmp_path):
    config = config_lib.load(f"{ROOT}/configs/{row}")
    for stage in [config.stages[name] for name in config.stages] or [config]:
        stage.update(steps=2, eval_every=stage.eval_every and 2)
    stages = config_lib.check(config)
    sweep.run(stages, tmp_path)
    for name in stages:
        summary = workdir.read_json(tmp_path / name / workdir.SUMMARY)
        assert summary["step"] == 2
        assert summary["metrics"]["train/skipped"] == 0


@pytest.mark.parametrize("row", TRIALS)
def test_a_trial_keeps_the_recipe(row):
    whole, small = checked(re.sub(r"[:,]smoke$", "", row)), checked(row)
    if "student" in small:  # Its teacher is trained first.
        assert small["student"].task.teacher == "teacher"
        whole, small = {"": whole[""]}, {"": small["student"]}
    assert list(whole) == list(small)
    for name, stage in small.items():
        changed = ("teacher", "decoder_layers", "decoder_size", "decoder_heads")
        changed += ("prototypes", "head_hidden", "bottleneck", "teacher_warmup_steps")
        changes = {field: getattr(stage.task, field) for field in changed}
        kept = dataclasses.replace(whole[name].task, **changes)
        assert stage.task == kept
        assert stage.data.source == "digits"
        for field in ("model.pool", "model.pos_embed", "model.layer_scale", "data.augment"):
            assert get(stage, field) == get(whole[name], field)
        for field in ("optimizer.name", "optimizer.schedule", "optimizer.sam_rho", "select"):
            assert get(stage, field) == get(whole[name], field)


UNREAD = {"schema.py", "checks.py", "config.py"}  # They know fields, and act on none.


def test_every_field_of_the_schema_is_read():
    names = set()
    for path in (ROOT / "vit_jax").rglob("*.py"):
        if path.name in UNREAD:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.arg | ast.keyword):
                names.add(node.arg)

    def unread(section, prefix=""):
        for each in dataclasses.fields(section):
            if dataclasses.is_dataclass(each.type):
                yield from unread(each.type, f"{prefix}{each.name}.")
            elif each.name not in names:
                yield prefix + each.name

    assert list(unread(Config)) == []
