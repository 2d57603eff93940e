"""Page section on the setup of a run: images, environment and recipe."""

from __future__ import annotations

from pathprune.report.entries import Results
from pathprune.report.page import Code, Column, Details, Prose, Section, Table


def build_setup_section(results: Results) -> Section:
    """Build the section on the run's images, environment and recipe."""
    return Section(
        "Images, environment and recipe",
        [
            Table(
                f"Images of {results.data}",
                [Column("purpose", is_number=False), Column("split", is_number=False), Column("images")],
                [[split.use, f"`{split.split}`", f"{split.num_images:,}"] for split in results.splits],
            ),
            Prose(
                "No evaluation image was used for mining or calibration. A run stops with an error if the image sets "
                "overlap.",
                "muted",
            ),
            Details(
                "Environment",
                [
                    Table(
                        "Versions and device",
                        [Column("name", is_number=False), Column("value", is_number=False)],
                        [[key, str(value)] for key, value in results.environment.items()],
                    )
                ],
            ),
            Details("Recipe with all defaults", [Code(results.recipe)]),
        ],
    )
