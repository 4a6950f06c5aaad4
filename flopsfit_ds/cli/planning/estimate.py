"""`estimate-memory`: will it fit, on how many GPUs, and what takes the room."""

from __future__ import annotations

from typing import Annotated

import typer

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.cli.options import AllowImport, AsJson, Overrides

_OF_A_SPEC = {"run", "allow_import"}
_OF_A_SHAPE = {
    "hf_config",
    "like",
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "intermediate",
    "vocab",
    "seq",
    "micro_batch",
    "zero",
    "gpus",
    "accumulation",
    "train",
}
_OF_THE_DECODER = {"layers", "hidden", "heads", "kv_heads", "intermediate", "vocab"}
_OF_A_SHAPE |= {"checkpointing", "precision", "device"}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("estimate-memory")
    def estimate(  # pyright: ignore[reportUnusedFunction]
        context: typer.Context,
        spec: Annotated[
            str | None,
            typer.Argument(metavar="[SPEC]", help="A spec.yaml or a shipped spec; without it, a shape by flags."),
        ] = None,
        overrides: Overrides = None,
        run: Annotated[
            str | None, typer.Option(help="One run of the spec in detail: its id, or the start of it.")
        ] = None,
        quick: Annotated[bool, typer.Option("--quick", help="Closed forms only: at once, without torch.")] = False,
        as_json: AsJson = False,
        allow_import: AllowImport = None,
        hf_config: Annotated[
            str | None,
            typer.Option(help="A config.json of transformers: that model at its own size."),
        ] = None,
        like: Annotated[str | None, typer.Option(help="A published model at its own size, such as qwen3-0.6b.")] = None,
        layers: Annotated[int | None, typer.Option(min=1, help="Blocks.")] = None,
        hidden: Annotated[int | None, typer.Option(min=1, help="Width.")] = None,
        heads: Annotated[int | None, typer.Option(min=1, help="Query heads.")] = None,
        kv_heads: Annotated[
            int | None, typer.Option(min=1, help="Key-value heads; without it, as many as query heads.")
        ] = None,
        intermediate: Annotated[int | None, typer.Option(min=1, help="SwiGLU width, or 8/3 of the width.")] = None,
        vocab: Annotated[int, typer.Option(min=1, help="Vocabulary.")] = 50257,
        seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 2048,
        micro_batch: Annotated[int, typer.Option(min=1, help="Sequences a GPU takes at once.")] = 1,
        accumulation: Annotated[
            int, typer.Option(min=1, help="Micro-batches of a step on the largest number of GPUs.")
        ] = 1,
        zero: Annotated[int | None, typer.Option(min=0, max=3, help="Only this ZeRO stage.")] = None,
        gpus: Annotated[int | None, typer.Option(min=1, help="Only this number of GPUs.")] = None,
        checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute activations.")] = False,
        train: Annotated[
            list[str] | None,
            typer.Option(
                metavar="PATTERN",
                help="Train only parameters of these names, such as '*multi_modal_projector*' of a model of images and "
                "text, of which all is then looked at; may be given again.",
            ),
        ] = None,
        precision: Annotated[str, typer.Option(help="fp32, bf16, or of the built-in decoder bf16-pure.")] = "bf16",
        device: Annotated[str, typer.Option(help="A GPU of the table.")] = "H100-SXM",
    ) -> None:
        """Show what each ZeRO stage and number of GPUs would take of a GPU's memory, and what is recommended.

        Example: flopsfit-ds estimate-memory --layers 32 --hidden 4096 --heads 32 --quick
        """
        from pydantic_core import to_json

        from flopsfit_ds.cli.planning.memory import Flags, answering, point_of_flags, point_of_hf, points_of_spec
        from flopsfit_ds.cli.planning.memory_tables import as_json_values, print_answers

        _refuse_what_would_be_ignored(context, spec)
        trained = tuple(train or ())
        flags = Flags(vocab, seq, micro_batch, accumulation, zero, gpus, checkpointing, precision, device, trained)
        if spec is not None:
            points, warnings = points_of_spec(spec, overrides, allow_import, run)
        elif hf_config is not None or like is not None:
            point, warnings = point_of_hf(hf_config, like, flags)
            points = [point]
        elif layers is None or hidden is None or heads is None:
            raise SpecError("estimate-memory needs a spec, --hf-config, --like, or --layers, --hidden and --heads")
        else:
            points, warnings = [point_of_flags(layers, hidden, heads, kv_heads, intermediate, flags)], []
        with answering(quick, as_json, len(points)) as answer:
            answers = [answer(point) for point in points]
        if as_json:
            print(to_json({"points": [as_json_values(answer) for answer in answers]}, indent=1).decode())
        else:
            print_answers(answers, detail=run is not None or spec is None, warnings=warnings)


def _refuse_what_would_be_ignored(context: typer.Context, spec: str | None) -> None:
    """Flags of a shape beside a spec, and those of a spec without one.

    Raises:
        SpecError: There are some.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    sources_of_a_model = given & {"hf_config", "like"}
    if spec is None and sources_of_a_model and (len(sources_of_a_model) > 1 or given & _OF_THE_DECODER):
        told = ", ".join(
            "--" + name.replace("_", "-") for name in sorted(given & (_OF_THE_DECODER | sources_of_a_model))
        )
        raise SpecError(f"{told}: a shape is said in one way; keep --hf-config, --like, or the flags of the decoder")
    misplaced = sorted(given & (_OF_A_SPEC if spec is None else _OF_A_SHAPE))
    if not misplaced:
        return
    flags = _flags(misplaced)
    if spec is None:
        raise SpecError(f"{flags}: only with a spec; name one")
    raise SpecError(
        f"{flags}: only for a shape without a spec; a spec is changed by overrides, such as model.context_length=4096 "
        "placement.zero_stages=[3] placement.num_gpus=[4] hardware.device=L4"
    )


def _flags(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
