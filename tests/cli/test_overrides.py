"""`eva.key=value` words: typed by their fields, refused with what would do."""

import pytest

from eva_dist.cli.overrides import eva_overrides
from eva_dist.config import EvaConfig, OnMaxSteps
from eva_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("eva.rho=1.25", 1.25),
        ("eva.rho=2", 2.0),
        ("eva.tau=9e-1", 0.9),
        ("eva.r=8", 8),
        ("eva.whiten=true", True),
        ("eva.whiten=False", False),
        ("eva.lora_alpha=32", 32.0),
        ("eva.on_max_steps=accept", OnMaxSteps.accept),
        ("eva.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ('eva.target_modules=["q_proj","v_proj"]', ["q_proj", "v_proj"]),
        (r"eva.target_modules=.*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("eva.target_modules=null", None),
        ("eva.rank_pattern={}", {}),
        ("eva.rank_pattern={q_proj:8, layers.1.down_proj: 4}", {"q_proj": 8, "layers.1.down_proj": 4}),
        ('eva.rank_pattern={"q_proj": 8}', {"q_proj": 8}),
        (r"eva.rank_pattern={'(a|b){1,2}:x\.y': 3, z: 4}", {r"(a|b){1,2}:x\.y": 3, "z": 4}),
    ],
)
def test_values_are_of_their_field_s_type(word, value):
    (found,) = eva_overrides([word]).values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("eva.rho=much", "eva.rho=much must be a number"),
        ("eva.rho=nan", "eva.rho=nan must be a number"),
        ("eva.rho=1_0", "must be a number"),
        ("eva.rho=null", "must be a number"),
        ("eva.r=8.0", "eva.r=8.0 must be a whole number"),
        ("eva.whiten=1", "eva.whiten=1 must be true or false"),
        ("eva.on_max_steps=take", "must be one of error, accept"),
        ("eva.rank_pattern=8", r"must be patterns and whole numbers; e\.g\. 'eva\.rank_pattern=\{q_proj: 8"),
        ("eva.rank_pattern={q_proj}", "must be patterns and whole numbers"),
        ("eva.rank_pattern={q_proj:8,}", "must be patterns and whole numbers"),
        ("eva.rank_pattern={q_proj:8,q_proj:4}", "must be patterns and whole numbers"),
        ("eva.rank_pattern={'q_proj:8}", "must be names, quoted on both sides or not at all"),
        ("eva.target_modules=[a,,b]", "must be null, a list of names or a regex"),
        ("eva.rhoo=2", r"eva\.rhoo=2 is no setting; did you mean eva\.rho\?"),
        ("rho=2", r"rho=2 is no setting; did you mean eva\.rho\?"),
        ("eva.zzz=2", r"eva\.zzz=2 is no setting of EVA"),
        ("eva.rho", r"eva\.rho must be eva\.key=value"),
        (
            "model.name_or_path=gpt2",
            r"model\.name_or_path=gpt2 cannot be derived: the stored vectors are of the source's",
        ),
        ("model=minilm", r"model=minilm cannot be derived"),
        (
            "data.step_size=8",
            r"cannot be derived: the stored vectors are of the source's data; run jobs/precompute\.py",
        ),
        ("solver=covariance", r"source's solver; run"),
        ("cluster.num_workers=2", r"nothing is computed on a cluster here"),
        ("store.url=x", "give --store"),
        ("artifact.repo_id=a/b", "give --repo-id"),
        ("artifact.revision=b", "give --revision"),
        ("artifact.overwrite=true", r"artifact\.overwrite=true has no meaning here"),
        ("resume=never", "resume=never has no meaning here"),
    ],
)
def test_what_is_wrong_is_said(word, complaint):
    with pytest.raises(ConfigError, match=complaint):
        eva_overrides([word])


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        eva_overrides(["eva.rho=x", "eva.tau=0.9", "eva.tau=0.9", "data=b"])
    assert [line.split(" ")[0].rstrip(":") for line in str(error.value).splitlines()] == [
        *("eva.rho=x", "eva.tau=0.9", "data=b"),
    ]


def test_every_field_can_be_given():
    words = {"rank_pattern": "{a:1}", "budget": "params", "on_max_steps": "accept", "whiten": "true", "rho": "1.5"}
    for field in EvaConfig.__dataclass_fields__:
        given = words.get(field, "true" if isinstance(getattr(EvaConfig(), field), bool) else "1")
        assert eva_overrides([f"eva.{field}={given}"]).keys() == {field}
