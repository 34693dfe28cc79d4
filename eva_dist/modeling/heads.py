"""Which class of transformers a model is trained in, by the architecture that its config names.

Layers carry the names that they have in that class, so a class that is guessed wrong makes an artifact of which not a
single tensor loads. A vision-language model, fed text alone, is a causal language model of another auto class.
"""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.models.auto import modeling_auto

from eva_dist.config import Task
from eva_dist.errors import ConfigError

_log = logging.getLogger(__name__)

_HEADS: tuple[tuple[Task, type, Mapping[str, Any]], ...] = (
    (Task.CAUSAL_LM, AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (Task.SEQ_CLS, AutoModelForSequenceClassification, modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    (Task.TOKEN_CLS, AutoModelForTokenClassification, modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    (Task.QUESTION_ANS, AutoModelForQuestionAnswering, modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    (Task.CAUSAL_LM, AutoModelForImageTextToText, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    (Task.CAUSAL_LM, AutoModelForMultimodalLM, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
    (Task.FEATURE_EXTRACTION, AutoModel, modeling_auto.MODEL_MAPPING_NAMES),
)
"""A task, the auto class that loads it, and its class names by model type; the first that fits a config counts."""

_PRETRAINING = (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES)
"""Heads that an encoder is pretrained with and that nobody fine-tunes: without them it is its base model."""

TASKS = tuple(task for task in Task if task is not Task.auto)


def find_task(wanted: Task, config: PreTrainedConfig, key: str) -> Task:
    """Return the task as set, else that of the architecture; `key` is how messages call the model.

    An architecture that we do not know is refused. Encoders with the head of their pretraining, and configs that name
    no architecture at all, are taken for their base model, with a warning.

    Raises:
        ConfigError: the architecture has a head that we do not know.
    """
    if wanted is not Task.auto:
        return wanted
    for task, loader, names in _HEADS:
        if _names_one_of(config, names) or _own_code_has(config, loader):
            return task
    if not config.architectures or any(_names_one_of(config, names) for names in _PRETRAINING):
        _log.warning(
            "%s is %s: its layers are named as in AutoModel, without a head (model.task=FEATURE_EXTRACTION); "
            "set model.task if it is trained with one",
            key,
            ", ".join(config.architectures or ["of no architecture that its config names"]),
        )
        return Task.FEATURE_EXTRACTION
    raise ConfigError(
        f"model.task=auto: {key} is {', '.join(config.architectures)} ({config.model_type}), a head that the job does "
        f"not know, so it cannot tell what its layers are called in training; set model.task to one of: "
        f"{', '.join(task.value for task in TASKS)} ({Task.FEATURE_EXTRACTION.value} names layers as AutoModel does)"
    )


def auto_class(task: Task, config: PreTrainedConfig) -> Any:
    """Return the auto class that loads a model for a task: where there are several, that of its architecture."""
    fits = [(loader, names) for known, loader, names in _HEADS if known is task]
    named = (loader for loader, names in fits if _names_one_of(config, names) or _own_code_has(config, loader))
    listed = (loader for loader, names in fits if config.model_type in names)
    return next(named, None) or next(listed, fits[0][0])


def is_multimodal(loader: Any) -> bool:
    """Tell whether the models of an auto class take other inputs beside text."""
    return loader in (AutoModelForImageTextToText, AutoModelForMultimodalLM)


def _names_one_of(config: PreTrainedConfig, names: Mapping[str, Any]) -> bool:
    known = names.get(config.model_type, ())
    return not {*([known] if isinstance(known, str) else known)}.isdisjoint(config.architectures or ())


def _own_code_has(config: PreTrainedConfig, loader: type) -> bool:
    """Tell whether code that comes with the model (`auto_map`) has its architecture for this auto class."""
    reference = (getattr(config, "auto_map", None) or {}).get(loader.__name__)
    return isinstance(reference, str) and reference.rpartition(".")[2] in (config.architectures or ())
