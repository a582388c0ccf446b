"""The forms that a body may ask its answer to have, by OpenAI's names and by vLLM's."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from protos.tandem.v1 import common_pb2
from router.errors import refusal


class Body(BaseModel):
    """A JSON object that has no unknown fields and no values of a wrong type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]

    def grammar(self) -> common_pb2.Grammar | None:
        return None


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]

    def grammar(self) -> common_pb2.Grammar | None:
        return common_pb2.Grammar(json_object=True)


class NamedSchema(Body):
    """A JSON schema as OpenAI wraps it. It is always kept to, `strict` or not."""

    schema_: Annotated[dict[str, object], Field(alias="schema")]
    name: object = None
    description: object = None
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """A JSON value of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def grammar(self) -> common_pb2.Grammar | None:
        return common_pb2.Grammar(json_schema=json.dumps(self.json_schema.schema_))


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(Body):
    """The forms of an answer as vLLM names them; one of them."""

    json_: Annotated[str | dict[str, object] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    json_object: bool | None = None

    def grammar(self) -> common_pb2.Grammar | None:
        """Raises RequestError for more forms than one."""
        grammars: list[common_pb2.Grammar] = []
        if self.json_ is not None:
            schema = self.json_ if isinstance(self.json_, str) else json.dumps(self.json_)
            grammars.append(common_pb2.Grammar(json_schema=schema))
        if self.regex is not None:
            grammars.append(common_pb2.Grammar(regex=self.regex))
        if self.choice is not None:
            alternatives = "|".join(re.escape(choice) for choice in self.choice)
            grammars.append(common_pb2.Grammar(regex=f"({alternatives})"))
        if self.json_object:
            grammars.append(common_pb2.Grammar(json_object=True))
        if len(grammars) > 1:
            raise refusal("structured_outputs", f"names {len(grammars)} forms; name one")
        return grammars[0] if grammars else None
