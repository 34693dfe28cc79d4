"""Rows -> token minibatches: deterministic, sharded by sample, a pure function of (config, step).

| word | means |
|---|---|
| row | one usable (non-blank) record of the data set: its text, or its chat messages, and its prompt |
| sample | a row rendered to one text, with the character spans whose tokens are masked in the labels |
| step | `data.step_size` samples, whatever the number of workers; the unit of one SVD update |
| minibatch | what one worker forwards at once: B samples of T tokens, right-padded |
| window | the minibatches of one step, or of several that are forwarded together |
| epoch | one use of every row; each epoch has its own order, from `data.seed` and its number |

    open_rows -> Rows -> sample_from_row -> Sample -> TokenStream.window -> Window
                     `-> check_rows: what would go wrong or missing in a pass, before one starts

| file | holds |
|---|---|
| `source` | what `data.path` names, and what is said when it cannot be read |
| `only_fields` | builders of `datasets` that read the columns in use |
| `rows` | one reading of all rows: usable ones, digest, roles |
| `chat_rows`, `chat_template` | what a chat is made of; how a template renders it, and where its turns stand |
| `samples`, `stream` | a row as text with masked spans; samples as minibatches |
| `label_check` | rows without a token that counts, columns that a template does not get |
| `loader` | somebody else's dataloader as a stream |

Nothing here keeps a position: any worker can ask for any step, twice or out of order,
and a run resumes by asking for the step it stopped at.
"""

from eva_dist.data.label_check import check_rows
from eva_dist.data.rows import Rows, open_rows
from eva_dist.data.samples import Sample, sample_from_row
from eva_dist.data.stream import Batching, TokenStream, Window, WorkerStream

__all__ = [
    "Batching",
    "Rows",
    "Sample",
    "TokenStream",
    "Window",
    "WorkerStream",
    "check_rows",
    "open_rows",
    "sample_from_row",
]
