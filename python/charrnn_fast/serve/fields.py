"""What requests hold: their fields, checks with errors for JSON, and the OpenAPI description.

One table of fields makes the checks and the description alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._checks import LARGEST_SEED
from ..language.model import CharLM
from ..language.sampler import REPETITION_WINDOW, check_weight_dtype
from ..language.small_weights import SMALL_DTYPES
from ..runtime import build_info

MOST_ALTERNATIVES = 20
MOST_STOPS = 16
MOST_WINDOW = 1000  # symbols that have a repetition penalty
MOST_SCORED = 1000  # texts of a request
LONGEST_STOP = 1000  # characters
DEFAULT_LENGTH = 500  # as of the command `sample`
JSON_SEED = 2**53  # seeds below are exact in JavaScript, too


class RequestError(Exception):
    """An answer that is an error: its HTTP status, and what stands in its JSON."""

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = {"error": {"message": message, **more}}


def wrong(field: str, takes: str, got: Any) -> RequestError:
    """400: the field, what it takes and what it got."""
    shown = _shown(got)
    return RequestError(
        400, f"{field} must be {takes}, got {shown}", field=field, got=shown, takes=takes
    )


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # a little deeper than what could be read
        return "a value nested too deeply"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for."""

    length: int = 10_000  # symbols of a text
    prime: int = 10_000  # symbols of a prime
    texts: int = 64  # of a request, and drawn at once in all
    score: int = 100_000  # symbols of all texts to score
    body: int = 1_000_000  # bytes
    waiting: int = 128  # requests
    told: int = 1_000_000  # symbols and their alternatives, of all texts of a request


@dataclass(frozen=True)
class Field:
    """A field of a request: check(name, value) gives its value, or raises `wrong`."""

    name: str
    about: str
    schema: Mapping[str, Any]
    check: Callable[[str, Any], Any]
    default: Any


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(least: int, most: int) -> tuple[dict[str, Any], Callable[[str, Any], int]]:
    takes = f"an integer in {least} to {most}"

    def check(name: str, value: Any) -> int:
        if not _is_integer(value) or not least <= value <= most:
            raise wrong(name, takes, value)
        return int(value)

    return {"type": "integer", "minimum": least, "maximum": most}, check


def _number(
    least: float | None = None, above: float | None = None, most: float | None = None
) -> tuple[dict[str, Any], Callable[[str, Any], float]]:
    limits = {"minimum": least, "exclusiveMinimum": above, "maximum": most}
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    schema = {name: limit for name, limit in limits.items() if limit is not None}
    takes = ", ".join(["a finite number", *(f"{words[n]} {x:g}" for n, x in schema.items())])

    def check(name: str, value: Any) -> float:
        fits = isinstance(value, float) or _is_integer(value)
        try:
            number = float(value) if fits else math.nan
        except OverflowError:
            number = math.nan
        if (
            not math.isfinite(number)
            or (least is not None and number < least)
            or (above is not None and number <= above)
            or (most is not None and number > most)
        ):
            raise wrong(name, takes, value)
        return number

    return {"type": "number", **schema}, check


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def _or_null(
    kind: tuple[dict[str, Any], Callable[[str, Any], Any]],
) -> tuple[dict[str, Any], Callable[[str, Any], Any]]:
    schema, check = kind
    return (
        {**schema, "type": [schema["type"], "null"]},
        lambda name, value: None if value is None else check(name, value),
    )


def _texts(
    most: int, longest: int, least: int = 0
) -> tuple[dict[str, Any], Callable[[str, Any], list[str]]]:
    """An array of strings."""
    takes = f"an array of {least} to {most} strings"
    schema = {
        "type": "array",
        "items": {"type": "string", "maxLength": longest},
        "minItems": least,
        "maxItems": most,
    }

    def check(name: str, value: Any) -> list[str]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise wrong(name, takes, value)
        for i, text in enumerate(value):
            if not isinstance(text, str):
                raise wrong(f"{name}[{i}]", "a string", text)
            if len(text) > longest:
                takes_one = f"a string of at most {longest} characters"
                raise wrong(f"{name}[{i}]", takes_one, text)
        return value

    return schema, check


def _stops(name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        if not 1 <= len(value) <= LONGEST_STOP:
            raise wrong(name, f"a string of 1 to {LONGEST_STOP} characters", value)
        return [value]
    texts = _texts(MOST_STOPS, LONGEST_STOP)[1](name, value)
    for i, text in enumerate(texts):
        if not text:
            raise wrong(f"{name}[{i}]", f"a string of 1 to {LONGEST_STOP} characters", text)
    return texts


def _seeds(most: int) -> tuple[dict[str, Any], Callable[[str, Any], list[int] | None]]:
    takes = f"an array of 1 to {most} integers, or null"

    def check(name: str, value: Any) -> list[int] | None:
        if value is None:
            return None
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise wrong(name, takes, value)
        one = _integer(0, LARGEST_SEED)[1]
        return [one(f"{name}[{i}]", seed) for i, seed in enumerate(value)]

    items = _integer(0, LARGEST_SEED)[0]
    return {"type": ["array", "null"], "items": items, "minItems": 1, "maxItems": most}, check


def _prime(most: int, in_bytes: bool) -> tuple[dict[str, Any], Callable[[str, Any], str | bytes]]:
    takes = f"a string of at most {most} characters"
    schema: dict[str, Any] = {"type": "string", "maxLength": most}
    if in_bytes:
        takes += f", or an array of at most {most} bytes, 0 to 255"
        items = _integer(0, 255)[0]
        schema = {"oneOf": [schema, {"type": "array", "items": items, "maxItems": most}]}

    def check(name: str, value: Any) -> str | bytes:
        if isinstance(value, str) and len(value) <= most:
            return value
        is_bytes = in_bytes and isinstance(value, list) and len(value) <= most
        if is_bytes and all(_is_integer(byte) and 0 <= byte <= 255 for byte in value):
            return bytes(value)
        raise wrong(name, takes, value)

    return schema, check


def weight_dtypes(model: CharLM) -> list[str]:
    """What `weight_dtype` may be for a model, its own first."""
    if model.weight_dtype is not None:
        return [model.weight_dtype]
    own = model.rnn.dtype.name
    if own != "float32":
        return [own]
    return [own, *(name for name in SMALL_DTYPES if _draws_with(model, name))]


def _draws_with(model: CharLM, weight_dtype: str) -> bool:
    try:
        check_weight_dtype(weight_dtype, model.rnn)
    except ValueError:
        return False
    return True


def _choice(names: Sequence[str]) -> tuple[dict[str, Any], Callable[[str, Any], str | None]]:
    takes = " or ".join([*map(json.dumps, names), "null"])

    def check(name: str, value: Any) -> str | None:
        if value is not None and value not in names:
            raise wrong(name, takes, value)
        return None if value is None else str(value)

    return {"type": ["string", "null"], "enum": [*names, None]}, check


def sample_fields(model: CharLM, limits: Limits) -> list[Field]:
    """The fields of POST /v1/sample."""
    unit, size = model.vocabulary.unit, len(model.vocabulary)
    in_bytes = model.vocabulary.kind == "bytes"
    return [
        Field(
            "length",
            f"{unit}s to draw",
            *_integer(0, limits.length),
            min(DEFAULT_LENGTH, limits.length),
        ),
        Field("prime", "beginning of the text", *_prime(limits.prime, in_bytes), ""),
        Field(
            "temperature",
            "divides the logits; 0: always the most probable",
            *_number(least=0),
            1.0,
        ),
        Field(
            "top_k",
            f"draw from the k most probable of {size} {unit}s",
            *_or_null(_integer(1, 2**31 - 1)),
            None,
        ),
        Field(
            "top_p",
            f"draw from the fewest {unit}s that reach this probability together",
            *_or_null(_number(above=0, most=1)),
            None,
        ),
        Field(
            "repetition_penalty",
            f"divides the logits of the last {unit}s; 1: none",
            *_number(least=1),
            1.0,
        ),
        Field(
            "repetition_window",
            f"how many {unit}s have the penalty",
            *_integer(1, MOST_WINDOW),
            REPETITION_WINDOW,
        ),
        Field(
            "seed",
            f"null: a random one, below {JSON_SEED}",
            *_or_null(_integer(0, LARGEST_SEED)),
            None,
        ),
        Field("seeds", "one text for each; not with seed", *_seeds(limits.texts), None),
        Field(
            "stop",
            "the text ends before the first of these strings",
            {
                "oneOf": [
                    {"type": "null"},
                    {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP},
                    {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP},
                        "maxItems": MOST_STOPS,
                    },
                ]
            },
            _stops,
            None,
        ),
        Field("weight_dtype", "weights to draw with", *_choice(weight_dtypes(model)), None),
        Field(
            "allow_unknown",
            f"leave out {unit}s of prime that the model does not know, and tell how many",
            {"type": "boolean"},
            _boolean,
            False,
        ),
        Field(
            "alternatives",
            f"report each {unit}'s probability, and this many of the most probable in its place; "
            f"texts x length x (1 + alternatives) is at most {limits.told}",
            *_integer(0, MOST_ALTERNATIVES),
            0,
        ),
        Field(
            "stream",
            "server-sent events as the text is drawn, instead of one answer at its end",
            {"type": "boolean"},
            _boolean,
            False,
        ),
    ]


def score_fields(model: CharLM, limits: Limits) -> list[Field]:
    """The fields of POST /v1/score."""
    return [
        Field(
            "texts",
            f"texts to score, of {limits.score} {model.vocabulary.unit}s together",
            *_texts(MOST_SCORED, limits.score, 1),
            ...,
        ),
        Field(
            "allow_unknown",
            "null for a text with unknown characters, instead of an error",
            {"type": "boolean"},
            _boolean,
            False,
        ),
        Field("weight_dtype", "weights to score with", *_choice(weight_dtypes(model)), None),
    ]


def checked(fields: Sequence[Field], body: bytes) -> dict[str, Any]:
    """The values of all fields in a body of JSON; RequestError names the first wrong one."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        given = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            400,
            f"the body must be JSON in UTF-8, got invalid JSON: {error}",
            field="body",
            got=_shown(body[:40].decode("utf-8", "replace")),
            takes="JSON in UTF-8",
        ) from None
    if not isinstance(given, dict):
        raise wrong("body", "an object", given)
    names = [field.name for field in fields]
    for name in given:
        if name not in names:
            raise RequestError(
                400,
                f"there is no field {_shown(name)}; there are {', '.join(names)}",
                field=name if len(name) <= 80 else f"{name[:60]}...",
                got=_shown(given[name]),
                takes=f"one of the fields {', '.join(names)}",
            )
    values = {}
    for field in fields:
        if field.name in given:
            values[field.name] = field.check(field.name, given[field.name])
        elif field.default is ...:
            raise RequestError(
                400,
                f"{field.name} must be given",
                field=field.name,
                got="nothing",
                takes=field.about,
            )
        else:
            values[field.name] = field.default
    return values


# ---- the description ----


def _object(fields: Sequence[Field]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            f.name: {
                "description": f.about,
                **f.schema,
                **({} if f.default is ... else {"default": f.default}),
            }
            for f in fields
        },
        "required": [f.name for f in fields if f.default is ...],
        "additionalProperties": False,
    }


def _of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_STRING, _INTEGER, _NUMBER = ({"type": kind} for kind in ("string", "integer", "number"))
_ERRORS = {
    "400": "a field is wrong: the error names it, what it got and what it takes",
    "401": "the token is missing or wrong",
    "403": "the request comes from another site",
    "408": "the body did not come in time",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "421": "the Host header names another host",
    "429": "too many requests wait; Retry-After says for how many seconds to stay away",
    "500": "the texts could not be drawn",
    "503": "the server is shutting down",
}


def openapi(model: CharLM, limits: Limits, with_token: bool) -> dict[str, Any]:
    """The description of all routes by OpenAPI 3.1."""
    symbol = _of(
        symbol={**_INTEGER, "description": "code point, or byte of a model of bytes"},
        probability={**_NUMBER, "description": "before temperature, top_k and top_p"},
        alternatives={
            "type": "array",
            "description": "the likeliest: symbol and probability, best first",
            "items": {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
        },
    )
    text = _of(
        seed=_INTEGER,
        text={**_STRING, "description": "prime and what was drawn"},
        reason={**_STRING, "enum": ["length", "stop"]},
    )
    text["properties"]["symbols"] = {"type": "array", "items": symbol}
    score = _of(nats={"type": ["number", "null"]}, characters=_INTEGER)
    schemas = {
        "SampleRequest": _object(sample_fields(model, limits)),
        "SampleAnswer": _of(
            texts={"type": "array", "items": text},
            left_out={**_INTEGER, "description": "unknown characters of prime"},
        ),
        "ScoreRequest": _object(score_fields(model, limits)),
        "ScoreAnswer": _of(scores={"type": "array", "items": score}),
        "Error": _of(error={"type": "object", "properties": {"message": _STRING}}),
        "Model": {"type": "object"},
        "Health": _of(status=_STRING, running=_INTEGER, waiting=_INTEGER),
    }

    def answer(about: str, name: str) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{name}"}
        return {"description": about, "content": {"application/json": {"schema": schema}}}

    def failures(*statuses: str) -> dict[str, Any]:
        needed = ["401", *statuses] if with_token else list(statuses)
        return {status: answer(_ERRORS[status], "Error") for status in sorted(needed)}

    def post(operation: str, about: str, name: str) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{name}Request"}
        refused = ("400", "403", "408", "413", "415", "421", "429", "500", "503")
        return {
            "operationId": operation,
            "summary": about,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            },
            "responses": {"200": answer("done", f"{name}Answer"), **failures(*refused)},
        }

    sample = post("sample", "Draw texts", "Sample")
    sample["responses"]["200"]["content"]["text/event-stream"] = {
        "schema": {
            **_STRING,
            "description": "events `start`, `text`, `end`, `done` and `error`, each with JSON",
        }
    }
    model_route = {
        "operationId": "model",
        "summary": "The model and the limits of requests",
        "responses": {"200": answer("the model", "Model"), **failures("403", "421")},
    }
    health = {
        "operationId": "health",
        "summary": "Whether the server takes requests, and how many there are",
        "security": [],
        "responses": {
            "200": answer("it does", "Health"),
            "503": answer("it is shutting down", "Health"),
        },
    }
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "charrnn-fast serve",
            "version": str(build_info()["version"]),
            "description": "Texts drawn from a character-level language model",
        },
        "paths": {
            "/v1/sample": {"post": sample},
            "/v1/score": {"post": post("score", "Log-probabilities of texts", "Score")},
            "/v1/model": {"get": model_route},
            "/health": {"get": health},
        },
        "components": {"schemas": schemas},
    }
    if with_token:
        scheme = {"type": "http", "scheme": "bearer"}
        result["components"]["securitySchemes"] = {"token": scheme}
        result["security"] = [{"token": []}]
    return result
