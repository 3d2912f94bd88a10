"""The base of every recipe section: strict and frozen."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors, and so are values of another type (no "1" for 1, no 1 for true)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
