"""Words and the classes behind them: taken names, wrong bases, near misses, rooms listed without importing."""

import sys
from importlib.metadata import EntryPoint

import pytest

from latentsb import registry
from latentsb.registry import REGISTRIES, Registry, UnknownPartError, files_of, registry_of, rooms


class Tool:
    pass


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRIES", dict(REGISTRIES))
    kind = Registry("tool", Tool)
    monkeypatch.setattr(registry, "REGISTRIES", {"tool": kind})
    yield kind
    REGISTRIES.pop("tool", None)


@pytest.fixture
def room(tmp_path, monkeypatch, tools):
    """A third party's package `toolshed` with two tools, announced by an entry point."""
    package = tmp_path / "toolshed"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_shared.py").write_text("raise ImportError('never imported')\n")
    (package / "hammer.py").write_text(
        "from shed import TOOLS, Tool\n@TOOLS.register('hammer')\nclass Hammer(Tool): pass\n"
    )
    (package / "broken.py").write_text("import a_library_that_is_not_installed\n")
    (package / "forgetful.py").write_text("class Forgetful: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shed = type(sys)("shed")
    shed.TOOLS, shed.Tool = tools, Tool
    monkeypatch.setitem(sys.modules, "shed", shed)
    entry = EntryPoint("tool", "toolshed", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.GROUP else [])
    rooms.cache_clear()
    yield package
    rooms.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "toolshed"]:
        del sys.modules[name]


def named(name: str, module: str = "somewhere") -> type[Tool]:
    return type(name, (Tool,), {"__module__": module})


def test_a_word_names_a_class(tools):
    saw = tools.register("saw")(named("Saw"))
    assert tools["saw"] is saw
    assert tools.word_of(saw) == tools.word_of(saw()) == "saw"
    assert "saw" in tools
    assert list(tools) == ["saw"]
    assert tools.register("saw")(saw) is saw, "the same class may be seen twice"


def test_a_taken_word_names_its_owner(tools):
    tools.register("saw")(named("Saw", "mine"))
    with pytest.raises(ValueError, match=r"tool 'saw' is already mine\.Saw$"):
        tools.register("saw")(named("Chainsaw", "yours"))


def test_one_class_under_two_module_names_is_explained(tools):
    tools.register("saw")(named("Saw", "saw"))
    with pytest.raises(ValueError, match="the same class under two module names"):
        tools.register("saw")(named("Saw", "folder.saw"))


def test_another_base_is_refused(tools):
    with pytest.raises(ValueError, match="Spoon does not derive from Tool"):
        tools.register("spoon")(type("Spoon", (), {}))
    assert "spoon" not in tools


@pytest.mark.parametrize("word", ["Saw", "chain saw", "chain-saw", "2nd", ""])
def test_a_name_is_a_lower_case_word(tools, word):
    with pytest.raises(ValueError, match="a name is a lower-case word"):
        tools.register(word)(named("Saw"))


def test_the_nearest_word_is_offered(tools):
    tools.register("hammer")(named("Hammer"))
    tools.register("saw")(named("Saw"))
    with pytest.raises(
        UnknownPartError, match=r"no tool is called 'hamer'\. Did you mean 'hammer'\? Known: hammer, saw"
    ):
        tools["hamer"]
    with pytest.raises(UnknownPartError) as caught:
        tools["xyz"]
    assert "Did you mean" not in str(caught.value)


def test_a_class_without_a_word(tools):
    with pytest.raises(UnknownPartError, match="Saw is not a registered tool"):
        tools.word_of(named("Saw"))


def test_a_room_is_listed_without_being_imported(room, tools):
    assert tools.names() == ["broken", "forgetful", "hammer"]
    assert files_of("toolshed") == ("broken", "forgetful", "hammer")
    assert not any(name.startswith("toolshed.") for name in sys.modules)


def test_a_part_is_found_although_its_neighbour_is_broken(room, tools):
    assert tools["hammer"].__name__ == "Hammer"
    assert "toolshed.broken" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        tools["broken"]


def test_a_file_that_registers_nothing_is_unknown(room, tools):
    with pytest.raises(UnknownPartError, match="no tool is called 'forgetful'"):
        tools["forgetful"]


def test_a_package_that_does_not_exist_has_no_words():
    assert files_of("latentsb_nowhere") == ()
    assert files_of("latentsb.errors") == ()


def test_our_own_rooms_need_no_installation(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    rooms.cache_clear()
    assert rooms("bridge") == ("latentsb.bridges",)
    assert rooms("autoencoder") == ("latentsb.autoencoders",)
    rooms.cache_clear()


def test_a_base_finds_its_registry(tools):
    assert registry_of(Tool) is tools
    assert registry_of(named("Saw")) is tools
    assert registry_of(int) is None


def test_a_kind_belongs_to_one_registry(tools):
    class Other:
        """Of the same kind."""

    with pytest.raises(ValueError, match="'tool' already"):
        Registry("tool", Other)
    assert Registry("tool", Tool).base is Tool
