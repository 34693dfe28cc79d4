"""Which of transformers' classes loads a model for a task, by PEFT's name of it."""

_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def auto_class(task_type: object) -> str:
    """Return the class's name; `AutoModel` for a task that is none of PEFT's, or None."""
    return _AUTO_CLASSES.get(str(task_type), "AutoModel")
