"""A mistake in a study file gives one line with key, problem and remedy, and editors find it with the schema too."""

from __future__ import annotations

import tomllib
from typing import NamedTuple

import jsonschema
import pytest

from fmnist_search.config.schema import study_schema
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from tests.unit.config.study_files import CNN_SPACE, COMMON_HEADER, FEW_IMAGES, HEADER

SCHEMA_VALIDATOR = jsonschema.Draft202012Validator(study_schema())

LEARNING_RATE = "space.common.optimizer.learning_rate"


class Mistake(NamedTuple):
    """A study file with one mistake, and what the line about it has to say: key, problem, remedy.

    A JSON Schema compares no values with each other, so it does not find every mistake.
    """

    text: str
    key: str
    problem: str
    remedy: str
    in_schema: bool = True


MISTAKES = [
    # Names that do not exist.
    Mistake(f"nmae = 3\n{HEADER}{CNN_SPACE}", "nmae", "unknown key", "'name'"),
    Mistake(f"{HEADER}{CNN_SPACE}[finalist]\nseeds = 3\n", "finalist", "unknown key", "'finalists'"),
    Mistake(f"{HEADER}epoch = 3\n{CNN_SPACE}", "budget.epoch", "unknown key", "'epochs'"),
    Mistake(f"{HEADER}{CNN_SPACE}[data]\ntrain_imges = 300\n", "data.train_imges", "unknown", "'data.train_images'"),
    Mistake(f"{HEADER}[space.cnn]\ndept = [1]\n", "space.cnn.dept", "unknown hyperparameter", "'depth'"),
    Mistake(f"{COMMON_HEADER}batchsize = [64]\n", "space.common.batchsize", "unknown hyperparameter", "'batch_size'"),
    Mistake(f"{COMMON_HEADER}optimizer.learning_rat = 0.1\n", "space.common.optimizer.learning_rat",
            "unknown hyperparameter", "'optimizer.learning_rate'"),
    Mistake(f"{COMMON_HEADER}family = 'cnm'\n", "space.common.family", "no family 'cnm'", "'cnn'"),
    Mistake(f"{COMMON_HEADER}family = ['mlp', 'transformer']\n",
            "space.common.family", "no family 'transformer'", "cnn, convnet"),
    Mistake(f"{HEADER}[space.transformer]\ndepth = 3\n", "space.transformer", "no such family", "cnn"),
    Mistake(f"sampler = 'tpee'\n{HEADER}{CNN_SPACE}", "sampler", "no sampler 'tpee'", "'tpe'"),
    Mistake(f"sampler = {{ name = 'rnadom' }}\n{HEADER}{CNN_SPACE}", "sampler", "no sampler 'rnadom'", "'random'"),
    Mistake(f"{HEADER}{CNN_SPACE}[pruner]\nname = 'halvng'\n", "pruner", "no pruner 'halvng'", "'halving'"),
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 1e-3, hihg = 1 }}\n",
            LEARNING_RATE, "unknown key 'hihg'", "'high'"),
    Mistake(f"{HEADER}{CNN_SPACE}[objective]\nmetrics = ['val_accuracy', 'mult_add']\n",
            "objective.metrics", "no metric 'mult_add'", "'mult_adds'", "plugins.modules"),
    # Objectives that are not defined.
    Mistake(f"{HEADER}{CNN_SPACE}[objective]\nmetrics = ['val_accuracy', 'parameters', 'parameters']\n",
            "objective.metrics", "names 'parameters' twice", "with one of mult_adds, parameters, seconds_per_epoch"),
    Mistake(f"{HEADER}{CNN_SPACE}[objective]\nmetrics = ['parameters']\n",
            "objective.metrics", "'parameters' comes first", 'give ["val_accuracy"]'),
    Mistake(f"{HEADER}{CNN_SPACE}[objective]\nmetrics = ['val_accuracy', 'mult_adds', 'parameters']\n",
            "objective.metrics", "3 metrics are too many", "with one of mult_adds"),
    Mistake(f"{HEADER}{CNN_SPACE}[objective]\nmetrics = []\n",
            "objective.metrics", "[] is not a list of metrics", 'give ["val_accuracy"]'),
    Mistake(f"{HEADER}{CNN_SPACE}[objective]\nmetrics = 'mult_adds'\n",
            "objective.metrics", "'mult_adds' is not a list of metrics", 'give ["val_accuracy"]'),
    Mistake(f"{HEADER}{CNN_SPACE}[pruner]\nname = 'patience'\n[objective]\nmetrics = ['val_accuracy', 'mult_adds']\n",
            "pruner", "'patience' compares trials by one value", "take 'none'", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[sampler]\nname = 'cmaes'\n[objective]\nmetrics = ['val_accuracy', 'mult_adds']\n",
            "sampler", "'cmaes' optimizes one value", "take 'tpe'", in_schema=False),
    # Freeze-thaw where it cannot be used.
    Mistake(f"sampler = 'freeze-thaw'\npruner = 'median'\n{HEADER}{CNN_SPACE}",
            "pruner", "'median' cannot be used with the sampler 'freeze-thaw'", "take 'none'", in_schema=False),
    Mistake(f"sampler = 'freeze-thaw'\n{HEADER}epochs = 1\n{CNN_SPACE}",
            "budget.epochs", "1 leaves the sampler 'freeze-thaw' nothing", "at least 2 epochs", in_schema=False),
    Mistake(f"sampler = 'freeze-thaw'\n{COMMON_HEADER}optimizer.name = ['sgd', 'adamw']\n",
            "sampler", "'freeze-thaw' needs a hyperparameter whose values are numbers", "take 'tpe'", in_schema=False),
    Mistake(f"pruner = 'extrapolation'\n{COMMON_HEADER}optimizer.name = ['sgd', 'adamw']\n",
            "pruner", "'extrapolation' needs a hyperparameter whose values", "take 'halving'", in_schema=False),
    Mistake(f"sampler = 'freeze-thaw'\n{HEADER}{CNN_SPACE}[objective]\nmetrics = ['val_accuracy', 'mult_adds']\n",
            "sampler", "'freeze-thaw' compares trials by one value", "take 'tpe'", in_schema=False),
    # Names that belong elsewhere.
    Mistake(f"{HEADER}{CNN_SPACE}[sampler]\nname = 'random'\nstartup_trials = 3\n",
            "sampler.startup_trials", "unknown key", "known: name"),
    Mistake(f"{HEADER}{CNN_SPACE}[pruner]\nname = 'median'\nreduction_factor = 3\n",
            "pruner.reduction_factor", "unknown key", "known: min_trials, name, startup_trials, warmup_epochs"),
    Mistake(f"{HEADER}{CNN_SPACE}[pruner]\nname = 'none'\nmin_epochs = 3\n",
            "pruner.min_epochs", "unknown key", "known: name"),
    Mistake(f"{COMMON_HEADER}depth = [1, 2]\n", "space.common.depth", "unknown hyperparameter", "[space.cnn]"),
    Mistake(f"{HEADER}[space.cnn]\noptimizer.learning_rate = [0.1, 0.2]\n",
            "space.cnn.optimizer", "unknown hyperparameter", "belongs to [space.common]"),
    Mistake(f"{COMMON_HEADER}learning_rate = [0.1, 0.2]\n",
            "space.common.learning_rate", "unknown hyperparameter", "'optimizer.learning_rate'"),
    Mistake(f"{COMMON_HEADER}family = 'cnn'\n[space.mlp]\ndepth = 1\n",
            "space.mlp", "does not search this family", "space.common.family", in_schema=False),
    Mistake(f"{COMMON_HEADER}epochs = [1, 2]\n", "space.common.epochs", "the same in all trials", "set budget.epochs"),
    Mistake(f"{COMMON_HEADER}precision = 'float32'\n",
            "space.common.precision", "the same in all trials", "set execution.precision"),
    Mistake(f"{COMMON_HEADER}data.validation = [1000, 2000]\n",
            "space.common.data.validation", "the same in all", "set [data]"),
    # Values out of bounds.
    Mistake(f"{HEADER}[space.cnn]\nkernel_1 = [3, 4]\n", "space.cnn.kernel_1", "4 is out of bounds", "3, 5, 7"),
    Mistake(f"{HEADER}[space.cnn]\ndepth = 6\n", "space.cnn.depth", "6 is out of bounds", "at most 5"),
    Mistake(f"{HEADER}[space.cnn]\nwidth_1 = {{ low = 16, high = 5000 }}\n",
            "space.cnn.width_1", "5000 is out of bounds", "at most 4096"),
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = 0\n", LEARNING_RATE, "0.0 is out of bounds", "above 0"),
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = nan\n",
            LEARNING_RATE, "nan is out of bounds", "above 0", in_schema=False),
    Mistake(f"{FEW_IMAGES}[space.common]\nbatch_size = [64, 128]\n",
            "space.common.batch_size", "128 is larger than the 100", "smaller batches or more images", in_schema=False),
    Mistake(f"{FEW_IMAGES}[space.common]\nbatch_size = {{ low = 16, high = 256 }}\n",
            "space.common.batch_size", "256 is larger than the 100", "smaller batches or more images", in_schema=False),
    # The default batch size of 128 is too large for 100 images.
    Mistake(f"{FEW_IMAGES}{CNN_SPACE}",
            "space.common.batch_size", "128 is larger than the 100", "smaller batches or more images", in_schema=False),
    Mistake(f"{COMMON_HEADER}batch_size = 50_000\n",
            "space.common.batch_size", "50000 is larger than the 49152", "smaller", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[data]\nvalidation = 60_000\n", "data.validation", "60000 is out of bounds", "59900"),
    Mistake(f"{HEADER}{CNN_SPACE}[data]\ntrain_images = 50\n", "data.train_images", "50 is out of bounds", "least 100"),
    Mistake(f"{HEADER}{CNN_SPACE}[data]\nvalidation = 0\n",
            "data.validation", "compares its trials on validation images", "give at least 1", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[data]\ntrain_images = 59_000\n",
            "data.train_images", "59000 is more than the 49152", "take fewer", in_schema=False),
    Mistake(f"seed = -1\n{HEADER}{CNN_SPACE}", "seed", "-1", "greater than or equal to 0"),
    Mistake(f"{HEADER}minutes = -1\n{CNN_SPACE}", "budget.minutes", "-1", "greater than or equal to 0.001"),
    Mistake(f"{HEADER}{CNN_SPACE}[pruner]\nname = 'percentile'\npercentile = 130.0\n",
            "pruner.percentile", "130.0", "less than or equal to 100"),
    Mistake(f"{HEADER}{CNN_SPACE}[finalists]\nschedule = 'constant'\n",
            "finalists.schedule", "'constant'", "'one-cycle'"),
    # Domains that are not valid.
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 1e-2, high = 1e-3 }}\n",
            LEARNING_RATE, "low = 0.01 is not below high = 0.001", "swap them", in_schema=False),
    Mistake(f"{HEADER}[space.cnn]\ndepth = []\n", "space.cnn.depth", "an empty list holds no value", "at least one"),
    Mistake(f"{COMMON_HEADER}family = []\n",
            "space.common.family", "an empty list holds no value", "at least one", in_schema=False),
    Mistake(f"{COMMON_HEADER}optimizer.weight_decay = {{ low = 0, high = 1, log = true }}\n",
            "space.common.optimizer.weight_decay", "low = 0.0 has no logarithm", "a low above 0, or leave out log",
            in_schema=False),
    Mistake(f"{HEADER}[space.cnn]\ndepth = [1, 2, 1]\n", "space.cnn.depth", "names a value twice", "name each once"),
    # 1 and 1.0 are one learning rate.
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = [1, 1.0]\n",
            LEARNING_RATE, "names a value twice", "name each once"),
    Mistake(f"{COMMON_HEADER}family = ['cnn', 'cnn']\n", "space.common.family", "twice", "once", in_schema=False),
    # A range over kernel sizes would sample even ones.
    Mistake(f"{HEADER}[space.cnn]\nkernel_1 = {{ low = 3, high = 7 }}\n",
            "space.cnn.kernel_1", "a range needs numbers", "3, 5, 7"),
    Mistake(f"{HEADER}[space.cnn]\nnorm = {{ low = 'batch', high = 'none' }}\n",
            "space.cnn.norm", "a range needs numbers", "choose from batch, group, none"),
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 1e-3 }}\n",
            LEARNING_RATE, "a range needs low and high", "high is missing"),
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 0.1, high = 1, log = 'yes' }}\n",
            LEARNING_RATE, "log = 'yes' is not a boolean", "true or false"),
    Mistake(f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 0.1, high = 1, log = true, step = 0.1 }}\n",
            LEARNING_RATE, "step = 0.1 does not fit", "none together with log", in_schema=False),
    Mistake(f"{HEADER}[space.cnn]\nwidth_1 = {{ low = 8, high = 64, step = 0.5 }}\n",
            "space.cnn.width_1", "step = 0.5", "whole number"),
    Mistake(f"{HEADER}[space.cnn]\nwidth_1 = {{ low = 8, high = 64, step = 0 }}\n",
            "space.cnn.width_1", "step = 0", "whole number above 0"),
    # Values of another type.
    Mistake(f"name = 3\n[budget]\ntrials = 3\n{CNN_SPACE}", "name", "3", "string"),
    Mistake(f'name = "t"\n[budget]\ntrials = true\n{CNN_SPACE}', "budget.trials", "True", "integer"),
    Mistake(f'name = "t"\n[budget]\ntrials = "4"\n{CNN_SPACE}', "budget.trials", "'4'", "integer"),
    Mistake(f"{HEADER}{CNN_SPACE}[sampler]\ncandidates = 3.5\n", "sampler.candidates", "3.5", "integer"),
    Mistake(f"{HEADER}[space.cnn]\ndepth = ['3']\n", "space.cnn.depth", "'3' is not a whole number", "at least 1"),
    Mistake(f"{HEADER}[space.cnn]\nwidth_1 = {{ low = 16.5, high = 64 }}\n",
            "space.cnn.width_1", "16.5 is not a whole number", "at least 1"),
    Mistake(f"{COMMON_HEADER}optimizer.nesterov = 1\n",
            "space.common.optimizer.nesterov", "1 is not true or false", "give true or false"),
    Mistake(f"{HEADER}[space]\ncnn = 3\n", "space.cnn", "3 is not a table", "write [space.cnn]"),
    Mistake(f"space = 3\n{HEADER}", "space", "3 is not a table", "[space.cnn]"),
    Mistake(f"data = 3\n{HEADER}{CNN_SPACE}", "data", "3 is not a table", "[data]"),
    Mistake(f'name = "t"\nbudget = 3\n{CNN_SPACE}', "budget", "3 is not a table", "[budget]"),
    # Where trials run.
    Mistake(f"{HEADER}{CNN_SPACE}[execution]\nbackend = 'rya'\n", "execution.backend", "no backend 'rya'", "'ray'"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution]\nbackend = 3\n", "execution.backend", "no backend 3", "known: auto"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution]\nray = 'head:6379'\n",
            "execution.ray", "'head:6379' is not a table", "write [execution.ray]"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\nadress = 'head:6379'\n",
            "execution.ray.adress", "unknown key", "'address'"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\naddress = 'ray://head:10001'\n",
            "execution.ray.address", "'ray://head:10001' is an address of Ray Client", "HOST:6379", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\naddress = 'head'\n",
            "execution.ray.address", "'head' is not an address", "HOST:PORT", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\naddress = 'head:70000'\n",
            "execution.ray.address", "'head:70000' is not an address", "HOST:PORT", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\nstreams = 0\n", "execution.ray.streams", "0", "'auto'"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\nresources = {{ gpus = 1 }}\n",
            "execution.ray.resources.gpus", "unknown key", "'gpu'"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\nresources = {{ cpu = 0 }}\n",
            "execution.ray.resources.cpu", "0", "greater than 0"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\nresources = {{ gpu = 1.5 }}\n",
            "execution.ray.resources.gpu", "1.5 is neither a part of one GPU nor", "a whole number", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\nresources = {{ memory = '4 gigs' }}\n",
            "execution.ray.resources.memory", "'4 gigs' is not a size", "'4GiB'"),
    Mistake(f"{HEADER}{CNN_SPACE}[execution.ray]\nresources = {{ memory = '9000TB' }}\n",
            "execution.ray.resources.memory", "'9000TB' is out of bounds", "0 to 1024TiB", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[execution]\nbackend = 'ray'\ndevice = 'cuda'\n",
            "execution.device", "'cuda' needs a GPU", "execution.ray.resources.gpu = 1", in_schema=False),
    # Studies without what every study needs.
    Mistake(f'name = "t"\n[budget]\nepochs = 3\n{CNN_SPACE}',
            "budget", "needs an end", "give trials, minutes or both", in_schema=False),
    Mistake(f"[budget]\ntrials = 3\n{CNN_SPACE}", "name", "is missing", "every study file needs it"),
    Mistake(HEADER, "space", "is missing", "every study file needs it"),
    # Names that cannot be the name of a folder or a part of a URL.
    Mistake(f'name = "a/b"\n[budget]\ntrials = 3\n{CNN_SPACE}', "name", "'a/b' is not a valid name", "letters, digits"),
    Mistake(f'name = "a\\nb"\n[budget]\ntrials = 3\n{CNN_SPACE}',
            "name", r"'a\nb' is not a valid name", "letters, digits"),
    # Finalists.
    Mistake(f"{HEADER}{CNN_SPACE}[finalists]\nensemble = 1\n",
            "finalists.ensemble", "1 is not an ensemble", "give 2 or more", in_schema=False),
    Mistake(f"{HEADER}{CNN_SPACE}[finalists]\nensemble = 10\n",
            "finalists.ensemble", "more than the 9 finalists", "fewer members", in_schema=False),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{m.key}: {m.problem}" for m in MISTAKES])
def test_mistake_is_one_line_and_is_found_by_the_schema(mistake: Mistake) -> None:
    tables = tomllib.loads(mistake.text)
    with pytest.raises(UserError) as caught:
        StudyConfig.from_dict(tables)
    (line,) = caught.value.lines
    assert "\n" not in line
    assert line.startswith(f"{mistake.key}: ")
    assert line.index(mistake.problem) < line.rindex(mistake.remedy)
    assert SCHEMA_VALIDATOR.is_valid(tables) != mistake.in_schema


def test_several_mistakes_are_several_lines() -> None:
    text = (
        f"nmae = 3\n{HEADER}epoch = 3\n[space.common]\nkeep = 'best'\n[space.cnn]\ndept = [1]\nkernel_1 = 4\n"
        "[pruner]\nname = 'non'\n"
    )
    with pytest.raises(UserError) as caught:
        StudyConfig.from_dict(tomllib.loads(text))
    keys = [line.partition(":")[0] for line in caught.value.lines]
    assert sorted(keys) == [
        "budget.epoch",
        "nmae",
        "pruner",
        "space.cnn.dept",
        "space.cnn.kernel_1",
        "space.common.keep",
    ]
