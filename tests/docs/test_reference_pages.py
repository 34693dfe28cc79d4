"""Pages that are made of the code: every setting, command and file is on them, in words."""

import dataclasses
import re

import pytest
import typer

from docs.commands_page import commands_page
from docs.rooms_page import ARROWS, EVERY_FILE, allowed_arrows, every_file, fill_in, first_sentence, source_files
from docs.settings_page import ranges, read_docstring, settings_page
from eva_dist.cli.main import app
from eva_dist.config import ClusterConfig, Config, DataConfig, EvaConfig, SolverConfig, config_groups
from eva_dist.preflight.accelerator import Accelerator
from jobs.benchmark import Benchmark
from jobs.plan import PlanSettings
from tests.docs.blocks import ROOT, inline_code
from tests.test_rooms import BELOW, ROOMS

ARCHITECTURE = (ROOT / "docs" / "pages" / "architecture.md").read_text(encoding="utf-8")
DESCRIBED = {
    **config_groups(),
    "plan": PlanSettings,
    "accelerator": Accelerator,
    "benchmark": Benchmark,
    "resume": Config,
}


class TestSettings:
    page = settings_page()

    @pytest.mark.parametrize("group", DESCRIBED)
    def test_every_key_has_words_a_default_and_a_type(self, group):
        words = read_docstring(DESCRIBED[group])[1]
        keys = ["resume"] if group == "resume" else [field.name for field in dataclasses.fields(DESCRIBED[group])]
        for key in keys:
            assert words[key].strip(), f"{group}.{key}: say what it is, under Attributes in its docstring"
        if group != "resume":
            assert words.keys() <= {*keys}, "a docstring speaks of a key that is not there"
            rows = [line for line in self.page.splitlines() if line.startswith(f"| `{group}.")]
            assert {*keys} <= {re.match(r"\| `\w+\.(\w+)`", row)[1] for row in rows}

    @pytest.mark.parametrize(
        ("name", "group", "key", "allowed"),
        [
            ("eva", EvaConfig, "rho", ">= 1.0"),
            ("eva", EvaConfig, "tau", "in 0..1"),
            ("eva", EvaConfig, "rank_pattern", ">= 1"),
            ("data", DataConfig, "seed", "in 0..2**32-1"),
            ("data", DataConfig, "num_samples", "set when data.streaming=true"),
            ("cluster", ClusterConfig, "num_workers", "a multiple of cluster.shard_size=2"),
            ("cluster", ClusterConfig, "resources", "`GPU` a whole number"),
            ("solver", SolverConfig, "keep_covariance", "must come with solver=covariance"),
        ],
    )
    def test_ranges_are_what_the_settings_say_themselves(self, name, group, key, allowed):
        assert allowed in ranges(name, group)[f"{name}.{key}"]

    def test_defaults_are_written_as_on_the_command_line(self):
        assert re.search(r"\| `data.seed`.*\| `0` \|", self.page)
        assert re.search(r"\| `model.name_or_path`.*\| `''` \|", self.page)
        assert re.search(r"\| `eva.whiten`.*\| `false` \|", self.page)
        assert re.search(r"\| `eva.budget`.*\| `ranks`, `params` \| `ranks` \|", self.page)

    def test_every_preset_is_there(self):
        for file in (ROOT / "conf").glob("*/*.yaml"):
            assert f"`{file.parent.name}={file.stem}`" in self.page


class TestCommands:
    page = commands_page()

    def test_every_command_and_every_option_is_there(self):
        def sections(words, command):
            if hasattr(command, "commands"):
                for name, inner in command.commands.items():
                    yield from sections(f"{words} {name}", inner)
            else:
                yield words, command

        found = dict(sections("eva-dist", typer.main.get_command(app)))
        assert len(found) > 15
        for words, command in found.items():
            section = self.page.split(f"# `{words}`\n")[1].partition("\n### ")[0]
            for parameter in command.params:
                assert parameter.help and parameter.help.split("\\[")[0].split()[0] in section, (words, parameter.name)
                for option in (o for o in parameter.opts if o.startswith("-")):
                    assert f"`{option}`" in section, (words, option)


class TestArchitecture:
    def test_every_room_is_named_and_no_other(self):
        tree = re.search(r"```text\neva_dist/\n(.*?)```", ARCHITECTURE, re.DOTALL)[1]
        assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == ROOMS
        at_the_root = {file.name for file in (ROOT / "eva_dist").glob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"^  (\w+\.py)", tree, re.MULTILINE)) == at_the_root
        assert {f"{p.name}" for p in ROOT.iterdir() if p.is_dir()} >= set(re.findall(r"^(\w+)/", tree, re.MULTILINE))

    def test_every_path_on_the_pages_is_there(self):
        path = re.compile(r"(?:eva_dist|jobs|conf|docs|tests)/[\w./-]*")
        named = {(page, span) for page, span in inline_code() if path.fullmatch(span)}
        assert len([span for page, span in named if page.endswith("architecture.md")]) > 20
        assert [(page, span) for page, span in named if not (ROOT / span).exists()] == []

    def test_every_file_is_listed_with_a_line_that_says_what_it_is(self):
        listed = every_file()
        for file in source_files():
            said = first_sentence(file)
            assert 15 < len(said) < 300, f"{file}: its docstring's first paragraph is its line on the page"
            assert f"| `{file.name}` | {said} |" in listed

    def test_the_arrows_are_those_of_the_import_test(self):
        assert allowed_arrows() == BELOW

    def test_both_lists_have_a_place_on_the_page(self):
        assert ARROWS in ARCHITECTURE and EVERY_FILE in ARCHITECTURE
        assert "filled in" not in fill_in(ARCHITECTURE)
