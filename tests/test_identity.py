"""What identifies a run: the values that change its numbers, and nothing else."""

import json

import pytest
from test_main import small

from experiments import clothing
from experiments import config as configs
from experiments import workdir as workdirs
from experiments.config import ConfigError


@pytest.fixture
def config():
    return configs.resolve(small(clothing.get_config()))


def changed(config, field, value):
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.update_from_flattened_dict({field: value})
    return other


UNRELATED = {
    "about": "a header without its typo",
    "data.published": "https://elsewhere",
    "data.root": "/elsewhere",
    "eval.figure": False,
    "checkpoint.every_steps": 7,
    "checkpoint.keep": 5,
    "checkpoint.keep_best": True,
}
RELATED = {
    "model.alpha": 1.0,
    "model.tau": 3.0,
    "model.hidden": 9,
    "train.epochs": 3,
    "train.batch_size": 65,
    "train.patience": 2,
    "data.split_seed": 7,
    "data.modes": ("graph",),
    "data.name": "mine",
    "eval.cutoffs": (5, 10),
    "seeds": (0, 1),
    "parallel": "jit",
    "shard_items": True,
}


@pytest.mark.parametrize("field", UNRELATED)
def test_what_changes_no_number_does_not_stop_a_resume(field, config, tmp_path):
    workdirs.begin(tmp_path, configs.plain(config))
    other = changed(config, field, UNRELATED[field])
    assert configs.plain(other) != configs.plain(config)
    workdirs.check(tmp_path, configs.plain(other), overwrite=False)
    assert workdirs.hash_of(other) == workdirs.hash_of(config)


@pytest.mark.parametrize("field", RELATED)
def test_what_changes_the_numbers_is_named(field, config, tmp_path):
    workdirs.begin(tmp_path, configs.plain(config))
    other = changed(config, field, RELATED[field])
    with pytest.raises(ConfigError, match=rf"another config \({field} differ\)"):
        workdirs.check(tmp_path, configs.plain(other), overwrite=False)
    workdirs.check(tmp_path, configs.plain(other), overwrite=True)
    assert workdirs.hash_of(other) != workdirs.hash_of(config)


def test_every_field_is_one_value_of_the_run(config):
    """No tables: a corrected tuned value of another data set is no change of this run."""
    for field, value in configs.identity(configs.plain(config)).items():
        assert value is None or isinstance(value, str | int | float | list), field
        assert not isinstance(value, list) or all(isinstance(v, str | int) for v in value), field


def test_a_tuned_value_identifies_a_run_as_if_a_flag_had_set_it(config):
    named = small(clothing.get_config())
    named.model.update(tau=config.model.tau, l2=config.model.l2)
    assert workdirs.hash_of(configs.resolve(named)) == workdirs.hash_of(config)


@pytest.mark.parametrize("text", ["[]", '{"metrics": {', "null", '{"metrics": []}', "3", "{}"])
def test_a_damaged_result_ends_in_one_line(text, config, tmp_path):
    workdirs.begin(tmp_path, configs.plain(config))
    path = tmp_path / workdirs.RESULTS_FILE
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"results\.json: is damaged .*delete it") as error:
        workdirs.finished_results(tmp_path, config)
    assert "\n" not in str(error.value)
    path.write_text('{"metrics": {}}')
    assert workdirs.finished_results(tmp_path, config) == {"metrics": {}}


@pytest.mark.parametrize("text", ["[]", '{"model": {', "null", "3"])
def test_a_damaged_config_is_that_of_no_run(text, config, tmp_path):
    workdirs.begin(tmp_path, configs.plain(config))
    assert workdirs.config_of(tmp_path) == json.loads(config.to_json())
    (tmp_path / workdirs.CONFIG_FILE).write_text(text)
    assert workdirs.config_of(tmp_path) is None
    assert workdirs.finished_results(tmp_path, config) is None
