"""The command `tfcausal serve-client`. Importing it does not import TensorFlow, nor does using it with REST."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfcausal.cli_console import counted, fail, native_messages_held_back
from tfcausal.cli_options import IMAGES, LabelNames, OverwriteFiles, Target, label_names

if TYPE_CHECKING:
    from tfcausal.serving.client.connection import Connection, ModelSpec

EPILOG = """
**Examples**

`tfcausal serve-client digits images/`

`tfcausal serve-client digits images/ --address serving.example:8500 --version 3 --batch 32`

`tfcausal serve-client digits photo.jpg --url http://serving.example:8501 --label stable`

`tfcausal serve-client pets images/ --target dog --labels saved_models/pets/1/assets/labels.txt`
"""


def serve_client(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model on the server.")],
    images: Annotated[list[Path], IMAGES],
    version: Annotated[int | None, typer.Option(help="Its version.", show_default="the latest")] = None,
    label: Annotated[str | None, typer.Option(help="The label of a version, in the server's configuration.")] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where the server is, for gRPC (extra `serving`).", show_default="localhost:8500"
        ),
    ] = None,
    rest: Annotated[bool, typer.Option("--rest", help="Ask by REST, which needs no extra, instead of gRPC.")] = False,
    url: Annotated[
        str | None, typer.Option(help="Where the server is, for REST.", show_default="http://localhost:8501")
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(help="The signature for files.", show_default="explain_image_bytes, else predict_image_bytes"),
    ] = None,
    target: Target = None,
    labels: LabelNames = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of a request.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that an answer may take.")] = 60.0,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write to.", show_default="explanations/MODEL")
    ] = None,
    overwrite: OverwriteFiles = False,
) -> None:
    """Send images to a TensorFlow Serving server, and write what its model sees in them.

    Takes what `tfcausal export` has made. Writes for every image an overlay (PNG) and the raw map (.npy), and at last
    explanations.json with the answers and with what failed. Ends with exit code 1 if an image was not answered.
    """
    from tfcausal.progress import ConsoleProgress
    from tfcausal.serving.client.connection import ModelSpec
    from tfcausal.serving.client.images import Settings, ask_about_files

    if address is not None and (rest or url is not None):
        fail("--address is that of gRPC; --rest and --url go without it.")
    spec = ModelSpec(model, version, label)
    names = None if labels is None else label_names(labels)
    settings = Settings(signature, target, names, batch, overwrite)
    folder = output or Path("explanations", model)
    with _connection(spec, address, url, rest, timeout) as connection, ConsoleProgress() as progress:
        answers = ask_about_files(connection, images, folder, settings, progress)
    asked = counted(len(answers.records) + len(answers.failed))
    typer.echo(f"Answered {len(answers.records)} of {asked}: {folder}")
    if answers.failed:
        raise typer.Exit(1)


def _connection(spec: ModelSpec, address: str | None, url: str | None, rest: bool, timeout: float) -> Connection:
    """The way to the server that was chosen."""
    if rest or url is not None:
        from tfcausal.serving.client.rest import DEFAULT_URL, RestConnection

        return RestConnection(url or DEFAULT_URL, spec, timeout)
    with native_messages_held_back():
        from tfcausal.serving.client.grpc_channel import DEFAULT_ADDRESS, GrpcConnection

        return GrpcConnection(address or DEFAULT_ADDRESS, spec, timeout)
