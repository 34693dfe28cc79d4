"""Whether rows keep tokens that count, looked at before anything starts.

A row whose prompt fills `data.max_length`, or in which no assistant speaks, adds nothing to the statistics. Some such
rows are a matter for a warning; data of nothing else are refused. The rows are not all tokenised for that: a sample of
them tells how it is, and only where none of it keeps a token are the others looked at, until one does. What a pass
really loses is counted while it runs.
"""

import logging
from dataclasses import dataclass

from eva_dist.data.chat_template import takes_tools, template_variables
from eva_dist.data.source import tools_field
from eva_dist.data.stream import TokenStream
from eva_dist.errors import DataError

_log = logging.getLogger(__name__)

_LOOKED_AT = 256
_ROWS_AT_ONCE = 64
_FOR_TEMPLATES = frozenset({"documents", "chat_template_kwargs"})
"""Columns that trainers hand to a chat template, beside those that have the name of one of its variables."""


@dataclass(frozen=True)
class _Lost:
    """Of `rows` rows, those without a token that counts: `cut` lie behind the limit, `silent` have no such words."""

    rows: int = 0
    cut: int = 0
    silent: int = 0

    @property
    def total(self) -> int:
        return self.cut + self.silent


def check_rows(stream: TokenStream) -> None:
    """Look for what would go wrong, or go missing without a word, in the midst of a pass.

    Raises:
        DataError: the chat template cannot render some kind of row, or no row keeps a token that counts.
    """
    _warn_of_idle_columns(stream)
    if not stream.sample(0).has_labels:
        return
    rows = stream.rows
    if rows.roles and "assistant" not in rows.roles:
        raise DataError(
            f"data.text_field={stream.config.text_field} holds no turn of role assistant; roles are "
            f"{', '.join(rows.roles)}; name the one that answers with data.role_map, e.g. '+data.role_map={{human: "
            "user, gpt: assistant}', or let every token count with eva.use_label_mask=false"
        )
    for row in rows.of_each_shape:
        stream.sample(row)
    lost = _Lost()
    while lost.rows < len(rows) and (lost.rows < _LOOKED_AT or lost.total == lost.rows):
        lost = _look_at_more(stream, lost)
    if lost.total == lost.rows:
        raise _nothing_left(stream, lost)
    if lost.total:
        _log.warning(
            "%d of %s%d rows keep no token that counts: %s",
            lost.total,
            "the " if lost.rows == len(rows) else "the first ",
            lost.rows,
            _reasons_of_loss(stream, lost),
        )


def _warn_of_idle_columns(stream: TokenStream) -> None:
    """Name columns that a chat template has a use for, but that are not handed to it.

    Raises:
        DataError: `data.tools_field` is set, and the template takes no tools.
    """
    rows, config = stream.rows, stream.config
    if not rows.roles:
        return
    if rows.tools_digest is not None and not takes_tools(stream.tokenizer):
        if config.tools_field is not None:
            raise DataError(
                f"data.tools_field={config.tools_field} must come with a chat template that takes tools; that of "
                "model.name_or_path takes none; use a model whose template does, or data.tools_field=null"
            )
        _log.warning(
            "column %s of data.path=%s is left out: the tokenizer's chat template takes no tools",
            tools_field(config),
            config.path,
        )
    takes = template_variables(stream.tokenizer.get_chat_template()) | _FOR_TEMPLATES
    if idle := [name for name in rows.unused if name in takes]:
        _log.warning(
            "columns of data.path=%s that are not handed to the chat template, though it may have a use for them: %s",
            config.path,
            ", ".join(idle),
        )


def _look_at_more(stream: TokenStream, lost: _Lost) -> _Lost:
    """Return what is lost when more rows have been looked at, in the order in which a pass takes them."""
    numbers = range(lost.rows, min(lost.rows + _ROWS_AT_ONCE, len(stream.rows)))
    samples = [stream.sample(stream.row_index(n)) for n in numbers]
    without = [s for s, tokens in zip(samples, stream.counting_tokens(samples), strict=True) if not tokens]
    silent = sum(sample.is_all_masked for sample in without)
    return _Lost(lost.rows + len(samples), lost.cut + len(without) - silent, lost.silent + silent)


def _reasons_of_loss(stream: TokenStream, lost: _Lost) -> str:
    limit = stream.config.max_length
    cut = f"in {lost.cut} all that counts lies behind data.max_length={limit} (raise it, or shorten the prompts)"
    silent = f"in {lost.silent} no assistant says anything" if stream.rows.roles else f"{lost.silent} are empty"
    return "; ".join(reason for count, reason in ((lost.cut, cut), (lost.silent, silent)) if count)


def _nothing_left(stream: TokenStream, lost: _Lost) -> DataError:
    config = stream.config
    if not lost.cut:
        what = "says anything in a turn of role assistant" if stream.rows.roles else "has words behind its prompt"
        return DataError(
            f"data.text_field={config.text_field}: none of the {lost.rows} rows of data.path={config.path} {what}; "
            "give other data, or let every token count with eva.use_label_mask=false"
        )
    return DataError(
        f"data.max_length={config.max_length} must leave room for what follows the prompts: none of the {lost.rows} "
        f"rows of data.path={config.path} keeps a token that counts; raise it, shorten the prompts, or let every token "
        "count with eva.use_label_mask=false"
    )
