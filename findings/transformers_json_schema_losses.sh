#!/usr/bin/env bash
# transformers 5.17.0: get_json_schema drops parts of a tool's signature and docstring without a word.
#
# One expects the schema a model is shown to say what the function says: the whole text of each argument, its default,
# the fields of a dataclass, and JSON Schema's own words for "may be null".
# What happens: a line of an argument's text that looks like "Word: text" is taken for the next argument, finds no
# parameter of that name and is dropped with what follows it; defaults are never written; a dataclass becomes an object
# without properties; Optional[int] becomes "nullable": true, a word of OpenAPI that JSON Schema does not have, so a
# validator refuses the null that the function takes.
# Seen: city's description is "The city's name." of "The city's name. / Example: Paris / Not a country."; "default" in
# no property; where is {"type": "object", "description": "The place."}; day is {"type": "integer", "nullable": true,
# ...}, and jsonschema 4.26.0 says "None is not of type 'integer'".
# Why it hurts: apply_chat_template(tools=[function]) uses it, so a tool-use set made from Python functions trains calls
# without the examples, units and fields its author wrote, and a reward or filter that validates arguments by this
# schema counts a correct null as a wrong call.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
python3 -m venv "$t/venv"
"$t/venv/bin/pip" install -q transformers==5.17.0 numpy==2.3.5 jsonschema==4.26.0
"$t/venv/bin/python" - <<'PY'
import json
from dataclasses import dataclass
from typing import Optional

from jsonschema import Draft202012Validator
from transformers.utils import get_json_schema


@dataclass
class Place:
    latitude: float
    longitude: float


def weather(city: str, where: Place, day: Optional[int] = None, unit: str = "celsius"):
    """
    Looks up the weather.

    Args:
        city: The city's name.
            Example: Paris
            Not a country.
        where: The place.
        day: Day of the month.
        unit: The unit.
    """


schema = get_json_schema(weather)["function"]["parameters"]
for name, entry in schema["properties"].items():
    print(name, json.dumps(entry))
seen = schema["properties"]
assert seen["city"]["description"] == "The city's name."
assert not any("default" in entry for entry in seen.values())
assert seen["where"] == {"type": "object", "description": "The place."}
assert seen["day"] == {"type": "integer", "nullable": True, "description": "Day of the month."}
call = {"city": "Oslo", "where": {"latitude": 59.9, "longitude": 10.7}}
assert not list(Draft202012Validator(schema).iter_errors(call))
errors = [error.message for error in Draft202012Validator(schema).iter_errors({**call, "day": None})]
print("day=None:", errors)
assert errors == ["None is not of type 'integer'"]
PY
