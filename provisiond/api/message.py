"""What all messages of the HTTP API share."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A message: unknown fields are refused, errors never repeat the input."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
