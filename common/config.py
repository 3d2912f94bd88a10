"""The base of every recipe section: strict and frozen."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict


class RuntimeOnly:
    """Marks a field that says how a stage runs and not what it makes: ``deadline_s: Annotated[float, RUNTIME_ONLY]``.

    A finished stage stays current when such a field changes, an unfinished one resumes from where it is. What changes
    the computation (kernels, batch splits, precision, tensors split over GPUs) is not marked, nor is the model behind a
    judge's scores. How much an engine batches at once, which depends on its memory, differs between two runs of one
    recipe anyway.
    """


RUNTIME_ONLY: Final = RuntimeOnly()


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors, and so are values of another type (no "1" for 1, no 1 for true)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """The section as JSON data under its keys in YAML, without the fields marked ``RUNTIME_ONLY``, at any depth."""
        return self.model_dump(mode="json", by_alias=True, exclude=_marked(self))


def _marked(value: Any) -> Any:
    """pydantic's ``exclude`` for the marked fields in a section, a mapping or a list; None where there are none."""
    if isinstance(value, Section):
        fields = type(value).model_fields
        how = {name: True for name, field in fields.items() if RUNTIME_ONLY in field.metadata}
        return how | _within({name: getattr(value, name) for name in fields if name not in how})
    if isinstance(value, Mapping):
        return _within(value)
    return _within(dict(enumerate(value))) if isinstance(value, list | tuple) else {}


def _within(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: inner for key, value in values.items() if (inner := _marked(value))}
