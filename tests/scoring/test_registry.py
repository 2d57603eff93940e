"""Tests of criteria by name: in recipes, from third parties, and the errors for typos."""

from pathlib import Path
from typing import ClassVar

import pytest

from pathprune.scoring import Criterion, PathCriterion, criteria, get_criterion, list_criteria, parse_criterion
from pathprune.scoring.registry import RegisteredConfig, Registry


class Step(RegisteredConfig):
    size: int = 1
    label: ClassVar[str] = "step"


def make_registry(**settings) -> Registry[Step]:
    registry = Registry("step", Step, **settings)
    registry.register("walk")(type("Walk", (Step,), {"__module__": "legs"}))
    registry.register("run")(type("Run", (Step,), {"__module__": "legs"}))
    return registry


def test_every_built_in_criterion_is_listed_and_its_spec_parses_to_itself():
    names = list_criteria()
    assert {"path", "path-class", "variance", "variance-weighted", "magnitude-l1", "magnitude-l2"} < set(names)
    assert {"taylor", "hessian", "lamp", "fpgm", "random"} < set(names)
    for name in names:
        criterion = parse_criterion(name)
        assert criterion.name == name
        assert type(criterion) is get_criterion(name)
        assert criterion.__doc__
        assert parse_criterion(criterion.spec()) == criterion


def test_options_survive_a_round_trip_through_the_spec():
    spec = {"name": "path", "importance": "count", "reduce": "max", "classes": [1, "cat"], "class_weights": {1: 2}}
    criterion = parse_criterion(spec)
    assert criterion == PathCriterion(importance="count", reduce="max", classes=(1, "cat"), class_weights={1: 2.0})
    assert criterion.spec() == {**spec, "class_weights": {"1": 2.0}}
    assert parse_criterion(criterion) is criterion


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tayler", "unknown criterion 'tayler'; did you mean 'taylor'? choose from energy, fpgm, hessian, lamp"),
        ("xyz", "unknown criterion 'xyz'; choose from energy"),
        (3, "a criterion is a name or a mapping with the key 'name', got 3"),
        ({"importance": "mass"}, "a criterion is a name or a mapping with the key 'name', got {'importance'"),
        ({"name": "path", "redcue": "max"}, "criterion 'path': unknown key 'redcue'; did you mean 'reduce'? choose"),
        ({"name": "random", "seed": 3}, "criterion 'random': unknown key 'seed'; it takes no options"),
        ({"name": "path", "reduce": "min"}, "criterion 'path': reduce: Input should be 'mean' or 'max', got 'min'"),
        ({"name": "path", "tokens": "class"}, "criterion 'path': unknown key 'tokens'; choose from importance"),
        ({"name": "path", "class_weights": {"cat": -1}}, "class_weights.cat: Input should be greater than or equal"),
    ],
)
def test_invalid_criteria_are_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match="criterion") as caught:
        parse_criterion(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_criterion("path").reduce = "max"


def test_a_name_belongs_to_one_class():
    registry = make_registry()
    with pytest.raises(ValueError, match=r"step 'walk' is registered twice: by legs\.Walk and by legs\.Crawl"):
        registry.register("walk")(type("Crawl", (Step,), {"__module__": "legs"}))
    walk = registry.get("walk")
    assert registry.register("walk")(walk) is walk  # the same class twice is no conflict


def test_only_subclasses_are_registered():
    with pytest.raises(ValueError, match=r"criterion 'step': .*Step.* is not a subclass of .*Criterion"):
        Registry("criterion", Criterion).register("step")(Step)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that installs a distribution with entry points and the class `third_party.Hop`."""

    def install(**points: str) -> None:
        info = tmp_path / "third_party-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[steps.third]\n{lines}\n[pathprune.criteria]\n{lines}")
        (tmp_path / "third_party.py").write_text(
            "from pathprune.scoring import Criterion\n"
            "class Hop(Criterion):\n"
            "    height: float = 1.0\n"
            "    def __call__(self, context):\n"
            "        return {site.name: site.down.weight[0] * 0 + self.height for site in context.adapted.sites}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(criteria._CRITERIA, "_classes", dict(criteria._CRITERIA._classes))  # forget it afterwards

    return install


def test_a_third_partys_criterion_is_found_by_its_entry_point(third_party):
    third_party(hop="third_party:Hop")
    assert "hop" in list_criteria()
    criterion = parse_criterion({"name": "hop", "height": 2})
    assert criterion.spec() == {"name": "hop", "height": 2.0}
    assert isinstance(criterion, Criterion)


def test_a_third_party_cannot_reuse_a_built_in_name(third_party):
    third_party(walk="third_party:Hop")
    registry = Registry("step", RegisteredConfig, entry_point_group="steps.third")
    registry.register("walk")(Step)
    with pytest.raises(ValueError, match=r"step 'walk' is registered twice: by .*Step and by third_party\.Hop"):
        registry.get("walk")


def test_a_broken_entry_point_fails_only_when_asked_for(third_party):
    third_party(hop="third_party:Missing", skip="nowhere:Skip")
    registry = make_registry(entry_point_group="steps.third")
    assert registry.list_names() == ("hop", "run", "skip", "walk")
    assert registry.parse("walk").size == 1
    for name, value in (("hop", "third_party:Missing"), ("skip", "nowhere:Skip")):
        with pytest.raises(ValueError, match=f"step '{name}' could not be imported from entry point {value}"):
            registry.get(name)
