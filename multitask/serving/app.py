"""The web app around a trained model: one path for each task, a page to try them on, and limits.

Every mistake is answered with a status and a reason, {"detail": "..."}: 413 for a body that is too large, 422
for one that is not what the task takes, 408 for one that does not arrive, 503 while as many rows wait as may
wait, 404 for an unknown task.
"""

# No postponed annotations here: FastAPI evaluates them, and some below are made for one task.
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator, BaseModel

from minbert.errors import InputError
from minbert.fields import LONE_SURROGATE
from minbert.policy import scripts_of
from multitask.config import Serving
from multitask.data.tasks import Task
from multitask.output import described
from multitask.predictor import Predictor, Texts
from multitask.serving.batching import Batches, Full

BODY_SECONDS = 30.0  # seconds in which a request's body must have arrived
PAGE = Path(__file__).with_name("page.html")
Message = MutableMapping[str, Any]


def encodable(text: str) -> str:
    """Return the text. Raises ValueError if it has a lone surrogate, which JSON can express."""
    if LONE_SURROGATE.search(text):
        raise ValueError("contains a lone surrogate")
    return text


Text = Annotated[str, AfterValidator(encodable)]


class Classified(BaseModel):
    label: int | str
    probabilities: dict[str, float]  # of every class
    cut: bool  # the text is longer than the model reads


class Measured(BaseModel):
    value: float
    cut: bool


class Problem(BaseModel):
    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "The body did not arrive in time"},
    413: {"model": Problem, "description": "The body is too large"},
    422: {"model": Problem, "description": "Not what the task takes, or too many rows"},
    503: {"model": Problem, "description": "Too many rows are waiting: try again in a second"},
}


NOT_A_PAIR = dict.fromkeys(("tuple_type", "too_long"), "Input should be a list of two texts")


def create_app(model: Predictor, name: str, limits: Serving) -> FastAPI:
    """Return the app that answers with this model, shown under this name."""
    batches = Batches(partial(answers_of, model), limits.max_batch, limits.queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        batches.close()

    app = FastAPIOffline(title=name, description="", redoc_url=None, lifespan=lifespan)
    app.add_middleware(LimitedBody, most=limits.max_body)
    app.add_exception_handler(Full, when_full)
    app.add_exception_handler(RequestValidationError, when_invalid)
    for task in model.tasks.values():
        add_task(app, task, batches, limits.max_rows)
    page = PAGE.read_text(encoding="utf-8")
    policy = {"content-security-policy": policy_of(page)}

    @app.post("/predict/{task}", include_in_schema=False)
    async def unknown(task: str) -> None:
        try:
            model.task_of(task)
        except InputError as error:
            raise HTTPException(404, str(error)) from None

    @app.get("/tasks", summary="What the model can do")
    async def tasks() -> dict[str, Any]:
        return {"model": name, "tasks": [described(task) for task in model.tasks.values()]}

    @app.get("/health", summary="Whether it answers, and how many rows are waiting")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": name, "waiting": batches.rows}

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers=policy)

    return app


def answers_of(model: Predictor, name: str, texts: Texts) -> list[dict[str, Any]]:
    """Return the answer to each text or pair, as JSON."""
    task = model.task_of(name)
    found, cut = model.answers(name, model.logits(name, texts)), model.are_cut(name, texts)
    if found.probabilities is None:
        return [{"value": value, "cut": one} for value, one in zip(found.values, cut, strict=True)]
    return [
        {"label": label, "probabilities": dict(zip(task.class_names, row, strict=True)), "cut": one}
        for label, row, one in zip(found.values, found.probabilities.tolist(), cut, strict=True)
    ]


def add_task(app: FastAPI, task: Task, batches: Batches, most_rows: int) -> None:
    """Add the path that predicts a task, with its own schema."""
    pairs = len(task.texts) == 2
    row: Any = tuple[Text, Text] if pairs else Text
    example = [["A man eats.", "Someone is eating."]] if pairs else ["A warm, funny film."]
    rows = Body(max_length=most_rows, examples=[example])
    answer = Measured if task.kind.probabilities is None else Classified

    @app.post(
        f"/predict/{task.name}",
        response_model=list[answer],  # type: ignore[valid-type]
        responses=PROBLEMS,
        summary=f"Predict {task.label} from {' and '.join(task.texts)}",
        operation_id=task.name,
    )
    async def predict(texts: Annotated[list[row], rows]) -> JSONResponse:
        return JSONResponse(await batches.answer(task.name, texts))


async def when_full(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"{error}; try again in a second"}, 503, {"retry-after": "1"})


async def when_invalid(request: Request, error: Exception) -> JSONResponse:
    """Say where the first mistake is, without quoting the texts."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = first["loc"][1:]
    if first["type"] == "too_long" and not place:
        reason = "{actual_length:,} rows, more than {max_length:,}".format(**first["ctx"])
    elif not place or first["type"] == "json_invalid":
        reason = "the body is not a list in JSON, sent as application/json"
    else:
        problem = NOT_A_PAIR.get(first["type"], first["msg"])
        reason = f"body{''.join(f'[{part}]' for part in place)}: {problem}"
    return JSONResponse({"detail": reason}, 422)


class LimitedBody:
    """ASGI middleware that reads at most so many bytes of a request's body, for at most `BODY_SECONDS`."""

    def __init__(self, app: Callable[..., Awaitable[None]], most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = int(dict(scope["headers"]).get(b"content-length", 0))
        read = 0
        until: float | None = asyncio.get_running_loop().time() + BODY_SECONDS  # None: all has arrived

        async def limited() -> Message:
            nonlocal read, until
            if length <= self.most:
                try:
                    async with asyncio.timeout_at(until):
                        message = await receive()
                except TimeoutError:
                    raise HTTPException(
                        408, f"the body did not arrive within {BODY_SECONDS:g} seconds"
                    ) from None
                read += len(message.get("body", b""))
                until = until if message.get("more_body") else None
            if max(length, read) > self.most:
                raise HTTPException(413, f"the body has more than {self.most:,} bytes")
            return message

        await self.app(scope, limited, send)


def policy_of(page: str) -> str:
    """Return a content security policy that lets the page's own script run, and nothing else load."""
    return (
        f"default-src 'none'; script-src {scripts_of(page)}; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
