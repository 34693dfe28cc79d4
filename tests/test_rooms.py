"""Who may import whom (design, section 3), what an import costs, and what lies at the top level."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import eva_dist

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eva_dist"
ROOT_MODULES = ("config", "errors", "hashing", "logs", "plan")
LEAVES = ("numerics", "data", "modeling", "distributed")
BELOW = {
    **dict.fromkeys(LEAVES, ()),
    "calibration": LEAVES,
    "methods": ("numerics", "calibration"),
    "preflight": (*LEAVES, "methods", "calibration"),
    "store": (),
    "artifact": ("numerics", "modeling", "methods", "calibration", "store"),
    "cluster": (*LEAVES, "methods", "calibration", "store", "artifact"),
    "run": (*LEAVES, "methods", "calibration", "store", "artifact", "cluster"),
    "transform": ("numerics", "modeling", "methods", "calibration", "store", "artifact", "run"),
    "render": ("artifact",),
    "report": ("store", "artifact", "run", "transform", "render"),
    "gateway": ("store", "artifact", "render", "report"),
    "cli": ("store", "artifact", "cluster", "transform", "render", "report", "gateway"),
}
"""Each room and the rooms that it may import from."""
ROOMS = set(BELOW)
FILES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "jobs").rglob("*.py"))


def parts_of(file: Path) -> str:
    """`eva_dist/numerics/tracker.py` -> `eva_dist.numerics.tracker`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    """Every module that a file imports, wherever in the file; `from a import b` gives a and a.b."""
    found = set()
    package = parts_of(file).split(".") if file.name == "__init__.py" else parts_of(file).split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return found


IMPORTS = {parts_of(file): imports(file) for file in FILES}


def importers(target: str) -> set[str]:
    """The modules that import `target` or something in it."""
    return {name for name, found in IMPORTS.items() if any(i == target or i.startswith(f"{target}.") for i in found)}


def inside(package: str) -> set[str]:
    return {name for name in IMPORTS if name == package or name.startswith(f"{package}.")}


def test_the_parser_sees_imports_of_every_kind():
    assert {"eva_dist.numerics.tracker", "torch", "eva_dist.numerics.tracker.Tracker"} <= (
        IMPORTS["eva_dist.numerics.subspace"]
    )
    assert "eva_dist.cluster.attempts" in IMPORTS["eva_dist.run.sweep"]  # inside a function
    assert len(IMPORTS) > 40


def room(name: str) -> str:
    """Return which room a module is in: a package, or the module itself where it lies at the root."""
    return ".".join(name.split(".")[:2])


def arrows() -> dict[str, set[str]]:
    """Return each room and the rooms that it imports from, function-level imports included.

    `eva_dist/__init__.py` is no room: it is the front door, and names what lies in all of them.
    """
    rooms = {room(name) for name in IMPORTS if name.startswith("eva_dist.")}
    found: dict[str, set[str]] = {each: set() for each in rooms}
    for name, imported in IMPORTS.items():
        if name.startswith("eva_dist."):
            found[room(name)] |= {room(i) for i in imported if room(i) in rooms} - {room(name)}
    return {
        each.removeprefix("eva_dist."): {i.removeprefix("eva_dist.") for i in imported}
        for each, imported in found.items()
    }


def test_a_room_imports_only_from_those_that_lie_below_it():
    allowed = {name: {*BELOW[name], *ROOT_MODULES} for name in ROOMS} | dict.fromkeys(ROOT_MODULES, {*ROOT_MODULES})
    assert {name: up for name, imported in arrows().items() if (up := imported - allowed[name])} == {}


def test_what_lies_below_what_has_no_circle():
    done: set[str] = set()
    while left := ROOMS - done:
        free = {name for name in left if set(BELOW[name]) <= done}
        assert free, f"a circle among {left}"
        done |= free


def test_few_modules_lie_at_the_root():
    assert sorted(file.stem for file in PACKAGE.glob("*.py")) == sorted([*ROOT_MODULES, "__init__"])


def test_every_import_of_ours_leads_somewhere():
    """Imports inside functions, too: a type checker that lets missing libraries pass lets these pass with them."""
    for name, imported in IMPORTS.items():
        for target in (i for i in imported if i.startswith(("eva_dist.", "jobs."))):
            module = importlib.import_module(target if target in IMPORTS else target.rpartition(".")[0])
            assert target in IMPORTS or hasattr(module, target.rpartition(".")[2]), (name, target)


def test_numerics_import_torch_and_nothing_of_ours_but_themselves():
    for name in inside("eva_dist.numerics"):
        ours = {i for i in IMPORTS[name] if i.startswith("eva_dist") and not i.startswith("eva_dist.numerics")}
        assert ours <= {"eva_dist"}, name
        outside = {i.partition(".")[0] for i in IMPORTS[name]} - set(sys.stdlib_module_names) - {"eva_dist"}
        assert outside <= {"torch"}, name


@pytest.mark.parametrize(("target", "where"), [("ray", "eva_dist.cluster"), ("hydra", "jobs"), ("omegaconf", "jobs")])
def test_ray_and_hydra_are_imported_in_one_place_only(target, where):
    assert importers(target) and importers(target) <= inside(where)


def test_one_file_of_the_package_imports_peft():
    assert importers("peft") & inside("eva_dist") == {"eva_dist.modeling.peft_rules"}


def test_the_package_knows_nothing_of_jobs():
    assert importers("jobs") <= inside("jobs")
    assert importers("tests") == set()


@pytest.mark.parametrize(
    "pure", ["eva_dist.calibration.controller", "eva_dist.plan", "eva_dist.config", "eva_dist.errors"]
)
def test_decisions_need_neither_a_model_nor_a_process_group(pure):
    assert not any(i.startswith(("torch.distributed", "transformers", "eva_dist.modeling")) for i in IMPORTS[pure])
    assert not any(
        i.startswith(("eva_dist.distributed", "eva_dist.data", "eva_dist.calibration.engine")) for i in IMPORTS[pure]
    )


def calls(file: Path) -> set[str]:
    """The dotted names of what a file calls, and the keywords that it sets."""
    found = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return {ast.unparse(n.func) for n in found} | {ast.unparse(keyword) for n in found for keyword in n.keywords}


def test_nothing_is_unpickled_and_no_text_is_run():
    """What an artifact, a store or a server sends stays data; a driver and its own worker are one program."""
    for module in ("marshal", "shelve", "dill", "cloudpickle", "joblib"):
        assert importers(module) == set()
    assert importers("pickle") == {"eva_dist.cluster.one_process", "eva_dist.cluster.worker_process"}
    running = {"eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load"}
    for file in FILES:
        assert not calls(file) & {*running, "trust_remote_code=True"}, file


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh process after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


def test_importing_the_package_is_light():
    loaded = loaded_after("import eva_dist")
    assert "eva_dist" in loaded and not loaded & {"torch", "ray", "peft", "transformers", "hydra", "numpy"}


def test_the_in_process_face_needs_no_ray_hydra_or_datasets():
    loaded = loaded_after("import eva_dist; eva_dist.get_eva_state_dict; eva_dist.load_eva_state_dict")
    assert {"torch", "peft"} <= loaded and not loaded & {"ray", "hydra", "omegaconf", "datasets", "matplotlib"}


def test_everything_that_is_exported_can_be_imported():
    exporting = [parts_of(file) for file in FILES if "__all__" in file.read_text()]
    assert "eva_dist" in exporting
    for name in exporting:
        module = importlib.import_module(name)
        assert module.__all__ and all(getattr(module, exported) is not None for exported in module.__all__), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'eva_dist' has no attribute 'nonsense'"):
        eva_dist.nonsense  # noqa: B018


def test_the_top_level_holds_what_the_design_allows():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    folders = {"eva_dist", "jobs", "conf", "tests", "docs", "docker"}
    files = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt"}
    assert {name for name in top if not name.startswith(".")} <= folders | files
    assert {"eva_dist", "jobs", "conf", "tests", "pyproject.toml", "README.md"} <= top


def test_files_and_folders_are_those_of_the_design():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} == ROOMS
    assert not [name for name in IMPORTS if name.rpartition(".")[2] in ("utils", "helpers", "common", "manager")]
