"""Registries of named, configurable steps.

A registered class is a frozen pydantic model that can be called. Its fields are the options that a recipe may set, and
their defaults. A recipe names a step (`path`), or gives a mapping with its name and options
(`{name: path, reduce: max}`).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class RegisteredConfig(BaseModel):
    """A frozen config with a registered name; unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    code_hash: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # now, and not when asked: a file may be edited while its old code runs
        bases = "".join(getattr(base, "code_hash", "") for base in cls.__bases__)
        cls.code_hash = hashlib.blake2b(bases.encode() + _read_code(cls), digest_size=12).hexdigest()

    @classmethod
    def summary(cls) -> str:
        """Return the first paragraph of the docstring on one line."""
        return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())

    def spec(self) -> dict[str, Any]:
        """Return the config as a recipe states it: the name and every field, defaults included, as plain data."""
        return {"name": self.name, **self.model_dump(mode="json")}

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what the step computes, as plain data: `spec`, and a hash of its code.

        The code is the source of the packages that define the class and its bases, or of their modules where these are
        in no package. A class without source, such as one defined in an interpreter, is identified by its bytecode.
        """
        return {**self.spec(), "code": self.code_hash}


def _read_code(cls: type) -> bytes:
    """Return the source of the package or module that defines `cls`, or the bytecode of its methods without source."""
    try:
        return _read_sources(Path(inspect.getfile(cls)), is_package="." in cls.__module__)
    except (OSError, TypeError):
        functions = [value for value in vars(cls).values() if inspect.isfunction(value)]
        return b"".join(function.__code__.co_code for function in functions)


@cache
def _read_sources(file: Path, *, is_package: bool) -> bytes:
    """Return the content of a module's file, or of all modules in its folder: the class may call any of them."""
    if is_package or file.name == "__init__.py":
        return b"".join(module.read_bytes() for module in sorted(file.parent.glob("*.py")))
    return file.read_bytes()


T = TypeVar("T", bound=RegisteredConfig)
C = TypeVar("C", bound=RegisteredConfig)


class Registry(Generic[T]):
    """Subclasses of `base` by name; third parties add theirs through an entry-point group.

    `built_in` names the modules that register the package's own classes; they are imported with the first look-up. An
    entry point `name = "module:Class"` is imported when its name is first asked for. A name belongs to one class.
    """

    def __init__(
        self, kind: str, base: type[T], *, built_in: Sequence[str] = (), entry_point_group: str | None = None
    ) -> None:
        self._kind = kind
        self._base = base
        self._built_in = built_in
        self._group = entry_point_group
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Return a class decorator that registers the class as `name`."""

        def decorate(cls: type[C]) -> type[C]:
            self._add(name, cls)
            return cls

        return decorate

    def list_names(self) -> tuple[str, ...]:
        """Return all names, sorted, without importing any entry point."""
        self._import_built_in()
        return tuple(sorted({*self._classes, *self._find_entry_points()}))

    def get(self, name: str) -> type[T]:
        """Return the class called `name`; raises ValueError that suggests the closest name."""
        self._import_built_in()
        points = self._find_entry_points()
        if name in points:
            self._load(points[name])
        if name not in self._classes:
            raise ValueError(f"unknown {self._kind} {name!r}; {_suggest(name, self.list_names())}")
        return self._classes[name]

    def parse(self, spec: str | Mapping[str, Any] | T) -> T:
        """Return the instance that a name, a mapping with a name, or an instance stands for.

        Raises ValueError, in one line, for unknown names, unknown options and invalid values.
        """
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
            raise ValueError(f"{self._kind} {cls.name!r}: {_format_in_one_line(error, cls)}") from error

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the JSON schema of a spec. `Annotated[Any, registry]` gives it to a field of specs."""
        names, mappings = [], []
        for name in self.list_names():
            cls = self.get(name)
            summary = cls.summary()
            options = deepcopy(handler.resolve_ref_schema(handler(cls.__pydantic_core_schema__)))
            options["properties"] = {"name": {"const": name, "description": summary}, **options.get("properties", {})}
            names.append({"const": name, "description": summary})
            options["required"] = ["name", *options.get("required", ())]
            mappings.append({**options, "title": f"{name}, with options", "description": summary})
        return {"anyOf": [*names, *mappings]}

    def _add(self, name: str, cls: type[Any]) -> None:
        if not (isinstance(cls, type) and issubclass(cls, self._base)):
            raise ValueError(
                f"{self._kind} {name!r}: {cls!r} is not a subclass of {_format_path(self._base)}; make it one"
            )
        other = self._classes.get(name)
        if other is not None and other is not cls:
            raise ValueError(
                f"{self._kind} {name!r} is registered twice: by {_format_path(other)} and by {_format_path(cls)}; "
                "rename one of them"
            )
        cls.name = name
        self._classes[name] = cls

    def _import_built_in(self) -> None:
        for module in self._built_in:
            import_module(module)

    def _find_entry_points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group) if self._group else ():
            other = points.setdefault(point.name, point)
            if other.value != point.value:
                raise ValueError(
                    f"{self._kind} {point.name!r} is offered by two entry points: {other.value} and {point.value}; "
                    "uninstall one of their packages"
                )
        return points

    def _load(self, point: EntryPoint) -> None:
        try:
            cls = point.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"{self._kind} {point.name!r} could not be imported from entry point {point.value}: {error}; fix or "
                "uninstall its package"
            ) from error
        self._add(point.name, cls)


def _format_path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _suggest(got: str, allowed: tuple[str, ...]) -> str:
    closest = get_close_matches(got, allowed, n=1)
    suggestion = f"did you mean {closest[0]!r}? " if closest else ""
    return f"{suggestion}choose from {', '.join(allowed)}"


def _format_in_one_line(error: ValidationError, cls: type[RegisteredConfig]) -> str:
    messages = []
    for details in error.errors():
        key = ".".join(str(part) for part in details["loc"])
        if details["type"] == "extra_forbidden":
            keys = tuple(cls.model_fields)
            messages.append(f"unknown key {key!r}; {_suggest(key, keys) if keys else 'it takes no options'}")
        else:
            messages.append(f"{key}: {details['msg']}, got {details['input']!r}" if key else details["msg"])
    return "; ".join(messages)
