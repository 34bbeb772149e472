"""Serves a saved model over HTTP.

pip install ".[serve]"
python -m experiments.serve --model=models/shop
curl localhost:8000/recommend --json '{"users": ["ann"], "k": 5}'

`jaxcold.serving` lists the requests. The service listens on this machine alone; --address=0.0.0.0
opens it to others, and it has no authentication. Ctrl-C ends it.
"""

import contextlib
import pathlib
from collections.abc import Sequence

from absl import app, flags

from experiments import main
from experiments.recommend import load

EXAMPLE = "python -m experiments.serve --model=DIR"

if __name__ == "__main__":
    _MODEL = flags.DEFINE_string("model", None, "Folder of a saved model.")
    _ADDRESS = flags.DEFINE_string("address", "127.0.0.1", "Address to listen on.")
    _PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.", lower_bound=1)


def serve(folder: pathlib.Path, address: str, port: int) -> None:
    """Serves the model of a folder until it is interrupted.

    Raises:
        DataError: if the folder holds no model that can be served, or the extra is absent.
    """
    from jaxcold.serving import create_app
    from jaxcold.types import DataError

    application = create_app(load(folder))
    try:
        import uvicorn
    except ImportError:
        raise DataError('serving needs uvicorn; pip install ".[serve]"') from None
    print(f"{folder}: http://{address}:{port}/health; Ctrl-C ends it", flush=True)
    uvicorn.run(
        application,
        host=address,
        port=port,
        log_level="warning",
        access_log=False,
        limit_concurrency=256,  # connections; others are answered with 503 at once
        timeout_keep_alive=5,
    )


def _command(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        return main.stop(f"argument {argv[1]!r} is not understood; flags begin with --")
    if not _MODEL.value:
        return main.stop(f"--model is required; for example {EXAMPLE}")
    folder = pathlib.Path(_MODEL.value)

    def job() -> None:
        with contextlib.suppress(KeyboardInterrupt):  # ends it
            serve(folder, _ADDRESS.value, _PORT.value)

    return main.answer(job, ValueError)


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
