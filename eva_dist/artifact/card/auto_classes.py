"""Which of transformers' classes loads a model: the one that the run names, else that of PEFT's name for the task."""

_OF_TASK = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
_NAMED = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM")


def auto_class(task_type: object, named: object = None) -> str:
    """Return the class's name; `AutoModel` for a task that is none of PEFT's, or None.

    Args:
        task_type: of the manifest's `model`.
        named: its `auto_class`, where a task has several; it may come from anywhere, so no other name is repeated.
    """
    return str(named) if named in _NAMED else _OF_TASK.get(str(task_type), "AutoModel")
