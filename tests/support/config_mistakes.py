"""Mistakes in a config, each with a part of its message: KEY=VALUE, or several separated by spaces.

They are made in the config `TINY`, whose model and data are small.
"""

TINY = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=7, num_layers=1, hidden_size=16, mlp_size=32)
    config.model.num_heads = 2
    config.data.update(source="fake", image_size=28, num_examples=24, num_classes=3)
    config.update(batch_size=8, steps=4, log_every=1, checkpoint_every=2)
    return config
"""

NAMES = [
    ("modle.name=vit_b16", "no field 'modle'. Did you mean model?"),
    ("optimizer.weight_deacy=1", "Did you mean weight_decay?"),
    ("lr=0.1", "config has no field 'lr'. Did you mean optimizer.lr?"),
    ("model.lr=0.1", "config.model has no field 'lr'. Did you mean optimizer.lr?"),
    ("learning_rate=0.1", "Did you mean optimizer.lr?"),
    ("dropout=0.1", "Did you mean model.dropout?"),
    ("data.dropout=0.1", "Did you mean model.dropout?"),
    ("num_workers=2", "Did you mean data.workers?"),
    ("warmup=3", "has no field 'warmup'"),
    ("freeze=head", "Did you mean optimizer.freeze?"),
    ("name=vit_b16", "Did you mean model.name or task.name or optimizer.name?"),
    ("augment=flip", "Did you mean data.augment?"),
    ("optimizer.name.kind=sgd", "config.optimizer.name has no field 'kind'."),
    ("model=vit_b16", "is a section"),
    ("data.crop=random", "Use data.augment='random_crop|flip'"),
    ("optimizer.beta1=0.9", "Use optimizer.kwargs.b1"),
]
TYPES = [
    ("steps=many", "config.steps is 'many'; it must be a whole number or None"),
    ("batch_size=7.5", "must be a whole number"),
    ("batch_size=none", "config.batch_size is None; it must be a whole number"),
    ("optimizer.lr=fast", "must be a number"),
    ("optimizer.lr=(1,2)", "must be a number"),
    ("data.fast_crop=yes", "must be True or False"),
    ("data.image_size=(28,28,28)", "must be a whole number or (whole number, whole number)"),
    ("data.image_size=big", "must be a whole number or"),
    ("accumulate=many", "must be a whole number or 'auto'"),
    ("accumulate=1.5", "must be a whole number or a string"),
    ("optimizer.lr_factors=head", "must be a tuple of"),
    ("optimizer.lr_factors=(('head',),)", "must be a tuple of"),
    ("data.mix=(('a',0.5),)", "must be a tuple of (string, whole number) items"),
    ("seed=1e3", "must be a whole number"),
    ("optimizer.kwargs.b1=big", "must be a number"),
    ("optimizer.kwargs.b3=0.9", "has no option 'b3'"),
]
BOUNDS = [
    ("batch_size=-5", "config.batch_size is -5; it must be at least 1"),
    ("batch_size=0", "at least 1"),
    ("batch_size=100000000000", "config.batch_size is 100000000000; it must be at most"),
    ("steps=1000000000000000", "config.steps is 1000000000000000; it must be at most"),
    ("steps=None epochs=1e12", "config.epochs is 1000000000000.0, which is 3e+12 steps"),
    ("steps=None examples=1000000000000", "config.examples is 1000000000000, which is"),
    ("steps=" + "9" * 400, "(400 characters); it must be below 9223372036854775808"),
    ("seed=" + "9" * 400, "config.seed is 999"),
    ("optimizer.lr=" + "9" * 400, "config.optimizer.lr is "),
    ("optimizer.lr=nan", "config.optimizer.lr is nan; it must be finite"),
    ("optimizer.lr=1e39", "config.optimizer.lr is 1e+39; it must be at most 3.4e+38"),
    ("optimizer.lr=1e-300", "it must be 0 or at least 1.2e-38"),
    ("optimizer.lr=-1", "must be above 0"),
    ("optimizer.weight_decay=-1", "config.optimizer.weight_decay is -1.0; it must be at least 0"),
    ("optimizer.ema=1", "config.optimizer.ema is 1.0; it must be at most 0.9999999"),
    ("model.num_layers=1000000000", "config.model.num_layers is 1000000000; it must be at most"),
    ("model.hidden_size=100000000", "config.model.hidden_size is 100000000; it must be at most"),
    ("model.dropout=1", "config.model.dropout is 1.0; it must be at most 0.99"),
    ("model.registers=100000", "config.model.registers is 100000; it must be at most"),
    ("data.image_size=100000", "config.data.image_size is 100000; it must be at most"),
    ("data.num_classes=1000000000", "config.data.num_classes is 1000000000; it must be at most"),
    ("data.workers=100000", "config.data.workers is 100000; it must be at most"),
    ("data.fraction=1.5", "config.data.fraction is 1.5; it must be at most 1"),
    ("task.label_smoothing=1", "it must be at most 0.99"),
    ("fewshot.every=1 fewshot.shots=(0,)", "config.fewshot.shots is (0,); it must be at least 1"),
    ("mesh.data=-2", "must be at least -1"),
]
CHOICES = [
    ("optimizer.name=adam", "Did you mean adamw?"),
    ("model.name=vit_b", "unknown"),
    ("model.name=vit_x16", "Did you mean"),
    ("model.name=auto", "config.model.name is 'auto', the model of init.path"),
    ("model.pool=mean", "choose from ['token', 'gap', 'map', 'token_gap']"),
    ("model.dtype=float16", "choose from ['auto', 'float32', 'bfloat16']"),
    ("data.source=folders", "Did you mean folder?"),
    ("data.augment=flip", "expected one crop, as the first step"),
    ("data.augment=inception_crop|flop", "Did you mean flip?"),
    ("task.name=classify", "Did you mean classification?"),
    ("task.loss=sofmax", "Did you mean softmax?"),
    ("optimizer.schedule=cosin", "Did you mean cosine?"),
    ("optimizer.freeze=body", "expected 'all but head', 'first N blocks'"),
    ("task.name=math:pi", "config.task.name is 'math:pi', which is 3.14"),
    ("task.name=math:sqrt", "config.task.name is 'math:sqrt', which has no evaluator"),
    ("task.loss=math:pi", "config.task.loss is 'math:pi', which is 3.14"),
    ("task.loss=math:sqrt", "config.task.loss='math:sqrt' cannot be used for training"),
    ("data.source=math:tau", "config.data.source is 'math:tau', which is 6.28"),
    ("optimizer.name=math:e", "config.optimizer.name is 'math:e', which is 2.718"),
    ("optimizer.schedule=math:sqrt", "config.optimizer.schedule='math:sqrt' cannot be used for"),
    ("model.mlp=math:inf", "config.model.mlp is 'math:inf', which is inf"),
    ("model.mlp=no_such_package:Mlp", "cannot be imported"),
    ("optimizer.name=os.path", "package.module:name"),
]
RULES = [
    ("optimizer.warmup_steps=100", "must be at most the 4 steps"),
    ("optimizer.cooldown_steps=5", "must be at most the 4 steps"),
    ("model.hidden_size=15", "not divisible by model.num_heads 2"),
    ("data.image_size=30", "nearest sizes: 28 or 35"),
    ("data.image_size=5", "nearest sizes: 7"),
    ("steps=None", "set one of steps, epochs, examples"),
    ("steps=5 epochs=2", "set one of them"),
    ("accumulate=3", "accumulate is 3; it must divide batch_size, 8"),
    ("select=best", "select is 'best', but eval_every is None"),
    ("data.per_class=2 data.count=5", "set at most one of per_class, fraction, count"),
    ("optimizer.end_lr=1", "it must be at most lr, 0.001"),
    ("optimizer.gsam_alpha=0.5", "it needs sam_rho, which is None"),
    ("data.eval_crops=5", "that needs data.eval_crop='center'"),
    ("optimizer.lr_factors=(('(',1),)", "is no regular expression"),
    ("optimizer.lr_factors=(('(?!head).*',0),)", "factor 0 for every parameter"),
    ("optimizer.lr_factors=(('encoderblok',0.1),)", "'encoderblok' matches no parameter"),
    (
        "optimizer.weight_decay=0.1 optimizer.decay_factors=(('relative',0),)",
        "decay_factors: 'relative' matches no parameter",
    ),
    ("optimizer.freeze='first_9_blocks'", "expected 'all but head'"),
    ("model.name=bit_r50x1", "does not have this option"),
    ("init.path=a init.stage=b", "set path or stage, not both"),
    ("sweep.grid=(('optimizer.lrr',(1,)),)", "has no field 'lrr'"),
    ("sweep.grid=(('optimizer.lr',()),)", "has no values for 'optimizer.lr'"),
    ("sweep.seeds=3 data.val_split=", "a sweep needs it to score its final runs"),
    ("model.patch=7 model.scan=True model.pos_embed_at=layers", "use scan=False"),
    ("mesh.fsdp=-1", "each size must be at least 1, or -1"),
    ("mesh.fsdp=0", "each size must be at least 1"),
    ("mesh.fsdp=3", "data x fsdp x tensor can be "),
]
WITHOUT_EFFECT = [
    ("optimizer.schedule=stair", "optimizer.schedule is 'stair', which has no effect without"),
    ("optimizer.stair_at=(0.5,)", "which has no effect without optimizer.schedule='stair'"),
    ("optimizer.timescale=10", "which has no effect without optimizer.schedule='rsqrt'"),
    ("optimizer.schedule=constant optimizer.end_lr=1e-5", "optimizer.end_lr is 1e-05, which has"),
    ("task.temperature=2", "which has no effect without task.teacher"),
    ("task.distill_weight=0.9", "which has no effect without task.teacher"),
    ("task.targets=pixels", "which has no effect without task.name='masked_patches'"),
    ("data.crop_fraction=0.9", "which has no effect without data.eval_crop='center'"),
    ("data.max_bad=0.1", "which has no effect without data.on_bad_image='skip'"),
    ("data.dir=photos", "config.data.dir is 'photos', which has no effect without"),
    ("data.dataset=cifar10", "config.data.dataset is 'cifar10', which has no effect without"),
    ("data.subset_seed=1", "which has no effect without data.per_class"),
    ("init.new_head=True", "which has no effect without init.path or init.stage"),
    ("fewshot.seeds=9", "which has no effect without fewshot.every"),
    ("probe.k=9", "which has no effect without probe.every"),
    ("sweep.dev=0.2", "which has no effect without sweep.grid"),
    ("data.val_split= eval_every=2", "which has no effect without data.val_split"),
]
CONFIG_MISTAKES = [*NAMES, *TYPES, *BOUNDS, *CHOICES, *RULES, *WITHOUT_EFFECT]
