"""Settings: each complaint in full, the way through Hydra's schema, and plain values for JSON."""

import dataclasses
import json
import math

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ValidationError

from eva_dist.config import (
    ArtifactConfig,
    Budget,
    ClusterConfig,
    Config,
    DataConfig,
    Dtype,
    EvaConfig,
    Exchange,
    ModelConfig,
    OnMaxSteps,
    SampleBy,
    SolverConfig,
    SolverName,
    StoreConfig,
    SweepConfig,
    Task,
)
from eva_dist.errors import ConfigError
from jobs.schema import freeze, schema

GROUPS = {
    "model": ModelConfig,
    "data": DataConfig,
    "eva": EvaConfig,
    "solver": SolverConfig,
    "cluster": ClusterConfig,
    "store": StoreConfig,
    "artifact": ArtifactConfig,
    "sweep": SweepConfig,
}
REQUIRED = {"model": {"name_or_path": "m"}, "data": {"path": "d"}}
CONTRACT = """
    model.name_or_path model.revision model.gguf_file model.dtype model.task
    data.path data.split data.text_field data.max_length data.batch_size data.step_size data.num_samples data.shuffle
    data.seed
    eva.r eva.rho eva.budget eva.tau eva.whiten eva.lora_alpha eva.target_modules eva.exclude_modules eva.rank_pattern
    eva.use_label_mask eva.label_mask_value eva.adjust_scaling_factors eva.max_steps eva.on_max_steps
    solver.name solver.oversampling solver.power_steps
    cluster.num_workers cluster.shard_size cluster.exchange cluster.address cluster.timeout_s cluster.max_failures
    cluster.checkpoint_every
    store.url artifact.repo_id artifact.revision artifact.overwrite
""".split()


def make(**changes) -> Config:
    """A valid config with `group__key=value` changed."""
    by_group = {name: dict(REQUIRED.get(name, {})) for name in GROUPS}
    for key, value in changes.items():
        group, _, name = key.partition("__")
        by_group[group][name] = value
    return Config(**{name: GROUPS[name](**values) for name, values in by_group.items()})


def through_hydra(*overrides: str) -> Config:
    settings = OmegaConf.structured(schema())
    settings.merge_with_dotlist(["model.name_or_path=m", "data.path=d", *overrides])
    return freeze(OmegaConf.to_object(settings))


nan, inf = math.nan, math.inf
R, RHO = "it is the rank of the uniform adapter, 16 is usual", "use 1.0 for no redistribution"
NAMES = "must be null, a list of names or a regex; e.g. 'eva.{}=[q_proj,v_proj]'"
REPO = "must be namespace/name in letters, digits, '-', '_', '.'; e.g. team/my-model"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model__name_or_path", "", "model.name_or_path='' must be a model folder or a hub id; "),
        ("data__path", "", "data.path='' must be a file, a glob or a hub id; set it, or choose a group: data=..."),
        ("data__max_length", 0, "data.max_length=0 must be >= 1; use the length you will train with"),
        ("data__batch_size", 0, "data.batch_size=0 must be >= 1; it is how many samples a worker forwards at once"),
        ("data__step_size", -1, "data.step_size=-1 must be >= 1; it is how many samples make one SVD update"),
        ("data__num_samples", 0, "data.num_samples=0 must be >= 1; use null for all samples"),
        ("data__streaming", True, "data.num_samples=null must be set when data.streaming=true; say how many"),
        ("data__tools_field", "text", "data.tools_field='text' must be a column of its own; use null where there"),
        ("data__role_map", {"human": ""}, "data.role_map.human='' must be the name of a role; e.g. '+data.role_map={"),
        ("data__seed", -1, "data.seed=-1 must be in 0..2**32-1; use 0"),
        ("data__seed", 2**32, "data.seed=4294967296 must be in 0..2**32-1; use 0"),
        ("eva__r", 0, f"eva.r=0 must be >= 1; {R}"),
        ("eva__rho", 0.5, f"eva.rho=0.5 must be >= 1.0; {RHO}"),
        ("eva__rho", nan, f"eva.rho=nan must be >= 1.0; {RHO}"),
        ("eva__rho", inf, f"eva.rho=inf must be >= 1.0; {RHO}"),
        ("eva__budget", "params", "eva.budget='params' must be a Budget; use Budget.ranks or Budget.params"),
        ("eva__tau", 1.1, "eva.tau=1.1 must be in 0..1; it is a cosine, 0.99 is the paper's"),
        ("eva__tau", -0.1, "eva.tau=-0.1 must be in 0..1; it is a cosine, 0.99 is the paper's"),
        ("eva__tau", nan, "eva.tau=nan must be in 0..1; it is a cosine, 0.99 is the paper's"),
        ("eva__max_steps", 0, "eva.max_steps=0 must be >= 1; it bounds the SVD updates, 200 is usual"),
        ("eva__lora_alpha", 0, "eva.lora_alpha=0 must be > 0; r or 2 * r is usual"),
        ("eva__lora_alpha", inf, "eva.lora_alpha=inf must be > 0; r or 2 * r is usual"),
        ("eva__lora_alpha", nan, "eva.lora_alpha=nan must be > 0; r or 2 * r is usual"),
        ("eva__rank_pattern", {"q_proj": 0}, "eva.rank_pattern.q_proj=0 must be >= 1; leave the layer out with "),
        ("eva__target_modules", [], f"eva.target_modules=[] {NAMES.format('target_modules')}"),
        ("eva__target_modules", ["q", 3], f"eva.target_modules=['q', 3] {NAMES.format('target_modules')}"),
        ("eva__exclude_modules", "", f"eva.exclude_modules='' {NAMES.format('exclude_modules')}"),
        ("eva__exclude_modules", {"a": 1}, f"eva.exclude_modules={{'a': 1}} {NAMES.format('exclude_modules')}"),
        ("solver__oversampling", -1, "solver.oversampling=-1 must be >= 0; use null for the tracker's default"),
        ("solver__power_steps", -1, "solver.power_steps=-1 must be >= 1; use null for the tracker's default"),
        ("cluster__num_workers", 0, "cluster.num_workers=0 must be >= 1; use 1 for a single process"),
        ("cluster__timeout_s", 0, "cluster.timeout_s=0 must be > 0 seconds; 1800 is usual"),
        ("cluster__timeout_s", inf, "cluster.timeout_s=inf must be > 0 seconds; 1800 is usual"),
        ("cluster__threads_per_worker", 0, "cluster.threads_per_worker=0 must be >= 1; use null to share the cores"),
        ("cluster__shard_size", 0, "cluster.shard_size=0 must be >= 1; use 1 to keep the whole model on each worker"),
        ("cluster__shard_size", 2, "cluster.num_workers=1 must be a multiple of cluster.shard_size=2: that many work"),
        ("cluster__offload", True, "cluster.offload=true must come with cluster.shard_size >= 2; it is shards that"),
        ("cluster__heartbeat_s", 0, "cluster.heartbeat_s=0 must be > 0 seconds; 60 is usual"),
        ("cluster__max_failures", -1, "cluster.max_failures=-1 must be >= 0; use 0 to stop at the first failure"),
        ("cluster__wait_s", -1, "cluster.wait_s=-1 must be >= 0.0; use 0 to go on at once with what is left"),
        ("cluster__checkpoint_every", -1, "cluster.checkpoint_every=-1 must be >= 0; use 0 for no checkpoints"),
        ("cluster__keep_checkpoints", 0, "cluster.keep_checkpoints=0 must be >= 1; 2 is usual"),
        ("cluster__resources", {"TPU": -1}, "cluster.resources.TPU=-1 must be >= 0; leave it out to ask for none"),
        ("cluster__resources", {"TPU": nan}, "cluster.resources.TPU=nan must be >= 0; leave it out to ask for none"),
        ("store__url", "", "store.url='' must be a folder or a URL; e.g. store.url=file:///srv/eva"),
        ("store__url", "ftp://x", "store.url=ftp://x must be a folder, file:///, s3://, gs://, az:// or abfs://"),
        (
            "store__url",
            "file://host/x",
            "store.url=file://host/x must be a folder, file:///, s3://, gs://, az:// or",
        ),
        ("artifact__repo_id", "team", f"artifact.repo_id=team {REPO}"),
        ("artifact__repo_id", "a/b/c", f"artifact.repo_id=a/b/c {REPO}"),
        ("artifact__repo_id", "team/..", f"artifact.repo_id=team/.. {REPO}"),
        ("artifact__repo_id", "team/a b", f"artifact.repo_id=team/a b {REPO}"),
        ("artifact__revision", "a/b", "artifact.revision=a/b must be letters, digits, '-', '_', '.'; e.g. rho2.0-tau"),
        ("artifact__revision", "", "artifact.revision= must be letters, digits, '-', '_', '.'; e.g. rho2.0-tau0.99"),
    ],
)
def test_a_complaint_names_key_value_range_and_remedy(key, value, message):
    with pytest.raises(ConfigError) as caught:
        make(**{key: value})
    text = str(caught.value)
    assert text.startswith(message)
    assert "\n" not in text and text.count("; ") >= 1


def test_an_option_that_the_solver_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="^solver.power_steps=2 has no meaning with solver=covariance; remove it$"):
        make(solver__name=SolverName.covariance, solver__power_steps=2)


def test_all_complaints_come_at_once_in_the_order_of_the_groups():
    with pytest.raises(ConfigError) as caught:
        make(
            model__name_or_path="", data__batch_size=0, eva__rho=0.5, eva__tau=nan, store__url="", artifact__repo_id="x"
        )
    keys = [line.partition("=")[0] for line in str(caught.value).splitlines()]
    assert keys == ["model.name_or_path", "data.batch_size", "eva.rho", "eva.tau", "store.url", "artifact.repo_id"]


@pytest.mark.parametrize(
    "changes",
    [
        {"eva__rho": 1.0, "eva__tau": 0.0, "eva__r": 1, "eva__max_steps": 1},
        {"eva__tau": 1.0, "eva__rho": 1e9, "eva__lora_alpha": 0.5},
        {"data__streaming": True, "data__num_samples": 1, "data__seed": 2**32 - 1},
        {"store__url": "file:///srv/eva", "artifact__repo_id": "team/my-model_1.0", "artifact__revision": "v1"},
        {"cluster__resources": {"CPU": 0}, "solver__oversampling": 0, "solver__power_steps": 1},
        {"eva__target_modules": r".*\.(q|v)_proj", "eva__exclude_modules": ["lm_head"]},
        {"cluster__exchange": Exchange.to_owner, "cluster__num_workers": 2},
        {"cluster__exchange": Exchange.all_gather, "cluster__num_workers": 2},
    ],
)
def test_the_edges_of_the_allowed_ranges_are_allowed(changes):
    assert isinstance(make(**changes), Config)


def test_every_key_of_the_command_contract_exists():
    settings = OmegaConf.structured(schema())
    missing = object()
    assert [key for key in CONTRACT if OmegaConf.select(settings, key, default=missing) is missing] == []


def test_defaults_of_the_schema_are_those_of_the_config():
    assert through_hydra() == make()


def test_rows_go_to_their_owner_by_default():
    assert through_hydra().cluster.exchange is Exchange.to_owner
    assert through_hydra("cluster.exchange=all_gather").cluster.exchange is Exchange.all_gather


def test_what_was_typed_arrives_as_frozen_plain_values():
    config = through_hydra(
        "eva.target_modules=[q_proj,v_proj]",
        "eva.exclude_modules=.*mlp.*",
        "eva.rank_pattern={q_proj: 4, '.*v_proj': 8}",
        "eva.on_max_steps=accept",
        "eva.rho=1",
        "eva.budget=params",
        "model.dtype=bfloat16",
        "model.task=SEQ_CLS",
        "model.config_overrides={num_hidden_layers: 2}",
        "data.sample_by=line",
        "solver.name=incremental",
        "cluster.resources={CPU: 2}",
        "data.num_samples=7",
    )
    assert config == make(
        eva__target_modules=["q_proj", "v_proj"],
        eva__exclude_modules=".*mlp.*",
        eva__rank_pattern={"q_proj": 4, ".*v_proj": 8},
        eva__on_max_steps=OnMaxSteps.accept,
        eva__rho=1.0,
        eva__budget=Budget.params,
        model__dtype=Dtype.bfloat16,
        model__task=Task.SEQ_CLS,
        model__config_overrides={"num_hidden_layers": 2},
        data__sample_by=SampleBy.line,
        solver__name=SolverName.incremental,
        cluster__resources={"CPU": 2.0},
        data__num_samples=7,
    )
    assert type(config.eva.target_modules) is list and type(config.eva.rank_pattern) is dict
    assert type(config.model.config_overrides) is dict and type(config.eva.rho) is float


@pytest.mark.parametrize("typed", ["null", "all-linear", "[a]"])
def test_target_modules_may_be_nothing_a_word_or_a_list(typed):
    value = through_hydra(f"eva.target_modules={typed}").eva.target_modules
    assert value == {"null": None, "all-linear": "all-linear", "[a]": ["a"]}[typed]


def test_the_schema_refuses_unknown_keys_and_wrong_types():
    for override, kind in [
        ("eva.rh=2", ConfigAttributeError),
        ("eva.r=many", ValidationError),
        ("solver.name=magic", ValidationError),
        ("eva.budget=bytes", ValidationError),
        ("data.shuffle=perhaps", ValidationError),
    ]:
        with pytest.raises(kind):
            through_hydra(override)


def test_freezing_validates():
    with pytest.raises(ConfigError, match="eva.tau=2.0 must be in 0..1"):
        through_hydra("eva.tau=2")


def test_to_dict_is_json_and_holds_every_setting():
    config = make(
        model__dtype=Dtype.float16,
        eva__target_modules=["q"],
        eva__rank_pattern={"q": 2},
        eva__budget=Budget.params,
        data__tools_field="functions",
        data__role_map={"human": "user"},
    )
    plain = config.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["model"]["dtype"] == "float16" and plain["eva"]["on_max_steps"] == "error"
    assert plain["eva"]["budget"] == "params"
    assert plain.pop("resume") == "auto"
    assert {f"{g}.{k}" for g, keys in plain.items() for k in keys} == {
        f"{name}.{f.name}" for name, group in GROUPS.items() for f in dataclasses.fields(group)
    }


def test_settings_that_came_later_are_said_only_where_they_are_set():
    """Else every artifact that was ever published would name them when it is made again."""
    assert not {"tools_field", "role_map"} & make().to_dict()["data"].keys()
    assert make(data__role_map={"human": "user"}).to_dict()["data"]["role_map"] == {"human": "user"}


def test_roles_are_mapped_on_the_command_line():
    names = through_hydra("data.role_map={human: user, gpt: assistant}").data.role_map
    assert names == {"human": "user", "gpt": "assistant"}


def test_two_configs_share_no_default_and_neither_can_be_changed():
    a, b = make(), make()
    assert a == b and a != make(eva__r=8)
    a.eva.rank_pattern["q"] = 4
    assert b.eva.rank_pattern == {} == EvaConfig().rank_pattern
    for target, name in [(a, "eva"), (a.eva, "r"), (a.cluster, "num_workers")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, name, None)
