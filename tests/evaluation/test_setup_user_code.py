"""Commands that read a run whose config names user-defined objects."""

import json
import re
import sys

import pytest

from tests.support.tiny_flags import tiny_flags
from vit_jax import main
from vit_jax.config import registry
from vit_jax.errors import ConfigError

pytestmark = pytest.mark.slow  # Trains or runs models for seconds.

MODULES = {
    "own_model": "from vit_jax.models.layers import Mlp",
    "own_task": """
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.losses import focal_loss
""",
    "own_data": """
from vit_jax.data.sources import open_fake

def darken(factor):
    return lambda image, random: image // factor
""",
    "own_training": """
import optax

def rule(decay=0.9):
    return optax.trace(decay)

def schedule(optimizer, total_steps):
    return optax.constant_schedule(optimizer.lr)
""",
}
FLAGS = (
    "model.mlp=own_model:Mlp",
    "data.source=own_data:open_fake",
    "data.augment=resize|own_data:darken(2)",
    "task.name=own_task:Classification",
    "task.loss=own_task:focal_loss",
    "optimizer.name=own_training:rule",
    "optimizer.schedule=own_training:schedule",
)
NEED_THE_MODEL = (
    "evaluate --workdir=RUN",
    "evaluate --workdir=RUN --config.data.source=fake",
    "evaluate --workdir=RUN --protocol=knn",
    "features --checkpoint=RUN --out=OUT.npz",
    "predict --checkpoint=RUN IMAGE",
    "figures --checkpoint=RUN --out=OUT",
    "convert RUN OUT-weights.npz",
)
OTHERS = ("inspect RUN", "tables table2 RUN", "report RUN")


@pytest.fixture
def own_run(tmp_path, monkeypatch):
    """A run with objects of these modules, read by a process that has not trained."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert main.run(tiny_flags(tmp_path / "run", *FLAGS)) == 0
    monkeypatch.setattr(registry, "_trusted", set())
    monkeypatch.delenv("VIT_JAX_TRUSTED", raising=False)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "run"


def test_commands_import_only_packages_that_are_trusted(own_run, photo_folder, monkeypatch):
    words = {
        "RUN": str(own_run),
        "OUT": str(own_run.with_name("out")),
        "IMAGE": str(next(photo_folder.rglob("*.jpg"))),
    }

    def run(command: str) -> int:
        return main.run(re.sub("|".join(words), lambda match: words[match[0]], command).split())

    def assert_refused(command: str, names: str, packages: str) -> None:
        with pytest.raises(ConfigError) as caught:
            run(command)
        assert f"{names}: not part of vit_jax." in str(caught.value)
        assert str(caught.value).endswith(f"set VIT_JAX_TRUSTED={packages}.")

    page = own_run / "report.html"
    for command in OTHERS:
        assert run(command) == 0
    assert "config.data.augment is &#x27;own_data:darken&#x27;: not part of" in page.read_text()
    task = "config.task.name is 'own_task:Classification'"
    for command in NEED_THE_MODEL:
        names = f"config.model.mlp is 'own_model:Mlp', {task}"
        assert_refused(command, names, "own_model,own_task")
    monkeypatch.setenv("VIT_JAX_TRUSTED", "own_model")
    for command in NEED_THE_MODEL:
        assert_refused(command, task, "own_model,own_task")
    assert "own_task" not in sys.modules
    monkeypatch.setenv("VIT_JAX_TRUSTED", "own_model, own_task")
    for command in ("evaluate --workdir=RUN", "evaluate --workdir=RUN --protocol=knn"):
        names = "config.data.source is 'own_data:open_fake'"
        assert_refused(command, names, "own_model,own_task,own_data")
    assert "own_data" not in sys.modules
    assert run("predict --checkpoint=RUN IMAGE") == 0
    assert run("evaluate --workdir=RUN --config.data.source=fake") == 0
    monkeypatch.setenv("VIT_JAX_TRUSTED", "own_model,own_task,own_data")
    for command in NEED_THE_MODEL + OTHERS:
        assert run(command) == 0
    assert "not part of" not in page.read_text()
    assert "own_training" not in sys.modules


def test_evaluate_imports_a_data_set_of_the_command_line(own_run, monkeypatch):
    monkeypatch.setenv("VIT_JAX_TRUSTED", "own_model,own_task")
    flags = [f"--workdir={own_run}", "--config.data.source=own_data:open_fake"]
    assert main.run(["evaluate", *flags]) == 0


def test_report_trusts_a_config_no_more_than_the_checkpoint_of_the_run(own_run, monkeypatch):
    values = json.loads((own_run / "config.json").read_text())
    values["task"]["name"] = "own_training:rule"
    (own_run / "config.json").write_text(json.dumps(values))
    monkeypatch.setenv("VIT_JAX_TRUSTED", "own_model,own_task,own_data")
    assert main.run(["report", str(own_run)]) == 0
    assert "own_training" not in sys.modules


def test_training_may_start_from_weights_with_the_same_objects(own_run):
    """Worker processes import the augmentation, too."""
    flags = (*FLAGS, f"init.path={own_run}", "data.workers=1")
    assert main.run(tiny_flags(own_run.with_name("new"), *flags)) == 0
