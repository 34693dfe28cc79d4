"""Pages out of Jinja templates: every room has its own beside it, and all share those in `render/templates/`.

Whatever is put into a template is escaped there, unless it is markup already (`Markup`): drawings, and what other
templates made.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eva_dist.render import words

_SHARED = Path(__file__).parent / "templates"


def template_environment(*folders: Path) -> Environment:
    """Return the environment of a room's templates; a name that a template does not know is an error."""
    environment = Environment(
        loader=FileSystemLoader([*folders, _SHARED]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    for filter_ in (words.amount, words.overlap, words.seconds, words.share, words.whole):
        environment.filters[filter_.__name__] = filter_
    return environment


_ENVIRONMENT = template_environment()


def render_shared(name: str, **values: Any) -> Markup:
    """Return one of the shared templates as markup."""
    return Markup(_ENVIRONMENT.get_template(name).render(values))
