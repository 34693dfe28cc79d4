"""The exception tree: as drawn, and with the kinds that callers catch."""

import inspect
import re

import pytest

from eva_dist import errors

CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
}
LINE = re.compile(r"^    (?P<indent>[│├└─ ]*)(?P<name>\w+Error)(?: \((?P<builtin>\w+)\))?(?: {2,}(?P<meaning>\S.*))?$")


def drawn() -> dict[str, tuple[str | None, str | None, str | None]]:
    """Class name to (parent, builtin parent, meaning), as the module's docstring draws them."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        match = LINE.match(line)
        if match:
            depth = len(match["indent"]) // 4
            path[depth:] = [match["name"]]
            tree[match["name"]] = (path[depth - 1] if depth else None, match["builtin"], match["meaning"])
    return tree


def test_the_drawn_tree_is_the_real_one():
    real = {
        name: tuple(
            next((base.__name__ for base in kind.__bases__ if (base.__name__ in CLASSES) == ours), None)
            for ours in (True, False)
        )
        for name, kind in CLASSES.items()
    }
    real["EvaDistError"] = (None, None)  # its builtin parent is Exception: not worth drawing
    assert {name: (parent, builtin) for name, (parent, builtin, _) in drawn().items()} == real


def test_every_error_says_what_it_means():
    tree = drawn()
    assert all(meaning for name, (_, _, meaning) in tree.items() if name not in ("EvaDistError",))
    assert all(kind.__doc__ and kind.__doc__.endswith((".", "`.")) for kind in CLASSES.values())


@pytest.mark.parametrize("name", CLASSES)
def test_one_base_catches_them_all_and_the_message_is_kept(name):
    with pytest.raises(errors.EvaDistError, match="what went wrong"):
        raise CLASSES[name]("what went wrong")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            ValueError,
            {
                "ConfigError",
                "DataError",
                "DerivationError",
                "LayerError",
                "StreamError",
                "EmptyStreamError",
                "TooFewTokensError",
                "NonFiniteActivationsError",
            },
        ),
        (
            RuntimeError,
            {
                "GangError",
                "PlacementError",
                "ClusterBusyError",
                "WorkerFailedError",
                "WorkerLostError",
                "GangTimeoutError",
                "JobServerError",
                "StoreError",
                "ArtifactNotFoundError",
                "IntegrityError",
            },
        ),
    ],
)
def test_what_a_person_can_mend_is_a_value_error_and_what_broke_a_runtime_error(kind, names):
    assert {name for name, found in CLASSES.items() if issubclass(found, kind)} == names
