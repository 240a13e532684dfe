"""The commands that measure a collection: fit, merge-stats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_options import (
    RankOption,
    WorkspaceArgument,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add these commands to the `manifold` command."""
    app.command(name="fit")(fit)
    app.command(name="merge-stats")(merge_stats)


def fit(
    workspace: WorkspaceArgument,
    model: Annotated[
        Literal["auto", "full", "lowrank", "stationary"] | None,
        typer.Option(
            help="Covariance model; auto compares them on rows left out. [default: full; lowrank for large d or few images]"
        ),
    ] = None,
    rank: RankOption = None,
    precision: Annotated[
        Literal["fast", "exact"], typer.Option(help="float32 products summed in float64, or float64 throughout.")
    ] = "fast",
    class_covariances: Annotated[
        bool | None,
        typer.Option(
            help="Where images have labels, a covariance for each class beside its mean. [default: if they take at most "
            "256 MiB]",
            show_default=False,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Draw spectrum, reproducible directions, power and convergence into a folder.",
        ),
    ] = None,
    drift: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Then compare with the statistics of another workspace.")
    ] = None,
) -> None:
    """Estimate mean and covariance of the latents, and say how far to trust them.

    Example: manifold fit ws --model auto
    """
    from index.fit import fit_workspace, judge_workspace
    from manifold.covariance import LowRankCovariance

    from .console import RESUMES, long_work, out
    from .plain_text import counted

    if drift is not None:
        from .drift import require_comparable

        require_comparable(workspace, drift)
    if plots is not None:
        from .diagnose import require_drawable

        require_drawable(workspace, model)
    with long_work(RESUMES) as progress:
        fitted = fit_workspace(
            workspace,
            model=model,
            rank=rank,
            precision=precision,
            class_covariances=class_covariances,
            progress=progress,
        )
    out.print(
        f"fitted {fitted.count:,} latents of {fitted.d:,} values: total variance {fitted.total_variance:,.4g}, "
        f"{counted(fitted.k, 'eigenvalue')}"
    )
    if "selection" in fitted.metadata:
        out.print(fitted.metadata["selection"])
    if plots is not None and not isinstance(fitted.covariance, LowRankCovariance):
        out.print("a stationary model was chosen, which has no directions: there are no plots of it")
        plots = None
    with long_work(RESUMES) as progress:
        if plots is None:
            sentence = judge_workspace(workspace, progress=progress)
        else:
            from .diagnose import draw_diagnostics

            sentence = draw_diagnostics(workspace, plots, progress=progress)
    out.print(sentence, soft_wrap=True)
    if plots is not None:
        out.print(f"drew what the verdict rests on into {plots}", soft_wrap=True)
    if drift is not None:
        from .drift import compare_workspaces, drift_table

        out.print(drift_table(compare_workspaces(workspace, drift)))


def merge_stats(
    workspaces: Annotated[list[Path], typer.Argument(metavar="WS...", help="Fitted workspaces, or moments files.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Moments file to write.")],
) -> None:
    """Merge the exact moments of several collections, as if they had been one.

    Example: manifold merge-stats ws-a ws-b -o all.safetensors
    """
    from .console import out
    from .merge import merge_statistics

    moments = merge_statistics(workspaces, output)
    out.print(f"merged {moments.count:,} latents of {moments.d:,} values into {output}")
