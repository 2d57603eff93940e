"""Commands for finished models: measure speed, export to other formats, upload to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathprune.cli.arguments import Overwrite
from pathprune.cli.console import console, print_path


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE_OR_FOLDER",
            help="Recipes, run folders or pruned checkpoints to measure; KEY=VALUE changes keys of the recipes.",
        ),
    ],
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,16,64",
    backends: Annotated[
        str | None,
        typer.Option(help="Any of eager,compiled,onnxruntime, separated by commas; by default all that run here."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed forward passes of each model.")] = 20,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default PyTorch's choice.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default an accelerator if there is one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    output: Annotated[Path | None, typer.Option(help="Results folder; by default the recipe's run folder.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare the latency, throughput and memory of dense and pruned models.

    The models take turns on the device, so that other load affects all of them alike. Existing measurements of the same
    models and settings are kept.
    """
    from pydantic import ValidationError

    from pathprune.bench.groups import open_groups
    from pathprune.bench.measure import BenchConfig
    from pathprune.bench.measure import bench as measure
    from pathprune.report.bench import build_bench_page, build_bench_table, compose_bench_notes
    from pathprune.report.render import write_page

    try:
        config = BenchConfig.model_validate(
            {
                "batch_sizes": batch_sizes.split(","),
                "backends": backends.split(",") if backends else None,
                **{"repeats": repeats, "threads": threads, "device": device, "dtype": dtype},
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ValueError(f"--{option}: {first['msg'].lower()}, got {first['input']!r}") from None
    overrides = [target for target in targets if "=" in target]
    groups, folder = open_groups([target for target in targets if "=" not in target], overrides, overwrite=overwrite)
    folder = output or folder
    rows = measure(groups, config, folder=folder)
    write_page(build_bench_page(rows), folder / "bench.html")
    console.print(build_bench_table(rows))
    for words in compose_bench_notes(rows):
        console.print(f"  {words}", soft_wrap=True)
    print_path("Results", folder / "bench.html")


def export(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, or any other model.name of a recipe.")],
    output: Annotated[Path | None, typer.Option(help="Folder to write; by default exported/<checkpoint>.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file.")] = False,
    torch_export: Annotated[bool, typer.Option("--torch-export", help="Write a torch.export program.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Also write float16 files.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also write ONNX with int8 weights.")] = False,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Let the exported files accept any batch size.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size of the exported files and the timings.")] = 1,
    data: Annotated[str, typer.Option(help="Data source of the images to check the files on.")] = "demo",
    split: Annotated[str, typer.Option(help="Split of the data source.")] = "test",
    num_images: Annotated[int, typer.Option(min=1, help="Number of images to check the files on.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Timed batches per file.")] = 30,
) -> None:
    """Export a model to ONNX or torch.export, and check every file on real images.

    Compares the predictions, the size and the latency of each file with those of the model. Give --onnx, --torch-export
    or both.
    """
    from pathprune.export import choose_formats, export_checkpoint
    from pathprune.report.tables import build_export_table

    folder = output or Path("exported") / Path(checkpoint).name
    files = export_checkpoint(
        checkpoint,
        folder,
        formats=choose_formats(onnx=onnx, torch_export=torch_export, half=half, int8=int8),
        source=data,
        split=split,
        num_images=num_images,
        batch_size=batch_size,
        dynamic_batch=dynamic_batch,
        repeats=repeats,
    )
    console.print(build_export_table(files, num_images=num_images, batch_size=batch_size))
    print_path("Files and export.json", folder)


def push(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint that pathprune saved.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing to the branch.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="License of the weights for the model card, such as apache-2.0.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the checkpoint; do not contact the hub.")] = False,
) -> None:
    """Upload a pruned checkpoint and its model card to the Hugging Face hub.

    Compares the uploaded files with the local ones afterwards.
    """
    from pathprune.models.checkpoint import describe_pruned
    from pathprune.models.hub import push_to_hub

    if license:
        describe_pruned(checkpoint, license=license)
    pushed = push_to_hub(
        checkpoint,
        repository,
        private=True if private else None,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
    )
    for file, size in pushed.sizes.items():
        console.print(f"{file}: {size:,} bytes")
    console.print(
        f"Dry run: nothing was sent to {pushed.repository}" if dry_run else f"Pushed: {pushed.url}", soft_wrap=True
    )
