"""Named, configurable steps: a name in a recipe -> a frozen config that is also a callable.

A registered class is a frozen pydantic model; its fields are the keys it takes in a recipe, its defaults the defaults.
In a recipe it is written as its name (`path`) or as a mapping with its name and its keys (`{name: path, reduce: max}`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Registered(BaseModel):
    """A frozen config with a registered name; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]

    def spec(self) -> dict[str, Any]:
        """What a recipe would say, as plain data: the name and every field, defaults included."""
        return {"name": self.name, **self.model_dump(mode="json")}


T = TypeVar("T", bound=Registered)
C = TypeVar("C", bound=Registered)


class Registry(Generic[T]):
    """Classes derived from `base`, by name; third parties add theirs through an entry-point group.

    An entry point `name = "module:Class"` is imported when its name is asked for. Two classes under one name raise.
    """

    def __init__(self, kind: str, base: type[T], *, entry_point_group: str | None = None) -> None:
        self._kind = kind
        self._base = base
        self._group = entry_point_group
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Class decorator: make the class known as `name`."""

        def add(cls: type[C]) -> type[C]:
            self._add(name, cls)
            return cls

        return add

    def names(self) -> tuple[str, ...]:
        """Every name that can be asked for, sorted; nothing is imported."""
        return tuple(sorted({*self._classes, *self._entry_points()}))

    def get(self, name: str) -> type[T]:
        """The class called `name`; raises ValueError, with the nearest name, if there is none."""
        offered = self._entry_points()
        if name in offered:
            self._load(offered[name])
        if name not in self._classes:
            raise ValueError(f"unknown {self._kind} {name!r}; {_choose(name, self.names())}")
        return self._classes[name]

    def parse(self, spec: str | Mapping[str, Any] | T) -> T:
        """A name, a mapping with a name, or an instance -> an instance; raises ValueError in one line."""
        if isinstance(spec, self._base):
            return spec
        if isinstance(spec, str):
            spec = {"name": spec}
        if not (isinstance(spec, Mapping) and isinstance(spec.get("name"), str)):
            raise ValueError(f"a {self._kind} is a name or a mapping with the key 'name', got {spec!r}")
        cls = self.get(spec["name"])
        try:
            return cls.model_validate({key: value for key, value in spec.items() if key != "name"})
        except ValidationError as error:
            raise ValueError(f"{self._kind} {cls.name!r}: {_in_one_line(error, cls)}") from error

    def _add(self, name: str, cls: type[Any]) -> None:
        if not (isinstance(cls, type) and issubclass(cls, self._base)):
            raise ValueError(f"{self._kind} {name!r}: {cls!r} is not a subclass of {_path(self._base)}")
        known = self._classes.get(name)
        if known is not None and known is not cls:
            raise ValueError(f"{self._kind} {name!r} is registered twice: by {_path(known)} and by {_path(cls)}")
        cls.name = name
        self._classes[name] = cls

    def _entry_points(self) -> dict[str, EntryPoint]:
        offered: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group) if self._group else ():
            other = offered.setdefault(point.name, point)
            if other.value != point.value:
                raise ValueError(f"{self._kind} {point.name!r} is offered twice: by {other.value} and by {point.value}")
        return offered

    def _load(self, point: EntryPoint) -> None:
        try:
            cls = point.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"{self._kind} {point.name!r} could not be imported from entry point {point.value}: {error}"
            ) from error
        self._add(point.name, cls)


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _choose(got: str, allowed: tuple[str, ...]) -> str:
    near = get_close_matches(got, allowed, n=1)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    return f"{suggestion}choose from {', '.join(allowed)}"


def _in_one_line(error: ValidationError, cls: type[Registered]) -> str:
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            keys = tuple(cls.model_fields)
            faults.append(f"unknown key {key!r}; {_choose(key, keys) if keys else 'it takes none'}")
        else:
            faults.append(f"{key}: {fault['msg']}, got {fault['input']!r}" if key else fault["msg"])
    return "; ".join(faults)
