"""`manifold info`: what a workspace holds, as numbers and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from index.card import INDEX_SCHEMA, has_card, read_card
from index.health import reason_counts
from index.shards import counted_rejects
from index.statistics import UNLABELLED, class_means_path, class_moments_path, load_manifold
from index.workspace import Workspace
from manifold.class_means import ClassMeans
from manifold.covariance import LowRankCovariance
from manifold.diagnostics import diagnose
from manifold.spectrum import SHARES

from .plain_text import counted

__all__ = ["describe_workspace", "description_table", "recall_text", "reject_reasons"]


def describe_workspace(workspace: str | Path | Workspace) -> dict[str, Any]:
    """Collection, encoder and counts of a workspace; its spectrum if fitted, its index if built. JSON values.

    Raises: InputError if there is no workspace; FormatError or MismatchError if its statistics cannot be used.
    """
    opened = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
    manifest = opened.manifest
    recipe = manifest.recipe
    described: dict[str, Any] = {
        "workspace": str(opened.root),
        "collection": recipe.source,
        "complete": manifest.complete,
        "rows": manifest.count,
        "rejects": manifest.rejects,
        "inputs": manifest.inputs,
        "additions": [addition.source for addition in manifest.additions],
        "removed": manifest.removed,
        "shards": len(manifest.shards),
        "latents_bytes": 2 * manifest.count * recipe.encoder.d,
        "encoder": recipe.encoder.to_dict(),
        "d": recipe.encoder.d,
        "crop": recipe.crop,
        "command": manifest.command,
        "spectrum": None,
        "classes": None,
        "index": read_card(opened) if has_card(opened) else None,
    }
    if opened.stats_path.is_file():
        fitted = load_manifold(opened)
        beyond = isinstance(fitted.covariance, LowRankCovariance) and fitted.tail_var > 0
        numbers = diagnose(fitted.covariance, int(fitted.count or 0))
        described["spectrum"] = {
            "eigenpairs": fitted.k,
            "trace": numbers.trace,
            "largest": numbers.largest,
            "components": {f"{share:.0%}": count for share, count in zip(SHARES, numbers.components, strict=True)},
            "participation_ratio": numbers.participation_ratio,
            "effective_rank": numbers.effective_rank,
            "share_beyond": max(1 - float(fitted.eigvals.double().sum()) / numbers.trace, 0.0) if beyond else 0.0,
        }
        described["classes"] = _classes(opened)
    return described


def reject_reasons(workspace: str | Path) -> dict[str, int]:
    """How many inputs were rejected for each reason, the most frequent first.

    Raises: InputError if there is no workspace; FormatError if the list is damaged.
    """
    return reason_counts(counted_rejects(Workspace.open(workspace)))


def _classes(workspace: Workspace) -> dict[str, Any] | None:
    """Labels and their rows, as the fit counted them; None if there are none."""
    path = class_means_path(workspace)
    if not path.is_file():
        return None
    means = ClassMeans.load(path)[0]
    counts = dict(zip(means.labels, means.counts.tolist(), strict=True))
    unlabelled = counts.pop(UNLABELLED, 0)
    return {
        "count": len(counts),
        "fewest_rows": min(counts.values(), default=0),
        "most_rows": max(counts.values(), default=0),
        "unlabelled_rows": unlabelled,
        "own_covariances": class_moments_path(workspace).is_file(),
    }


def description_table(described: dict[str, Any]) -> Table:
    """The same as a table of two columns."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    encoder = described["encoder"]
    shape = " x ".join(str(side) for side in encoder["latent_shape"])
    state = "" if described["complete"] else "  (incomplete: run the encode command again to continue)"
    size = f", {encoder['image_size']} px, {described['crop']}" if encoder["image_size"] else ""
    collections = ", ".join(dict.fromkeys([described["collection"], *described["additions"]]))
    table.add_row("collection", f"{collections}, {counted(described['inputs'], 'input')}")
    rows = counted(described["rows"], "row")
    table.add_row("latents", f"{rows}, {described['latents_bytes'] / 2**20:,.1f} MiB{state}")
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in described.get("reject_reasons", {}).items())
    table.add_row("rejects", f"{described['rejects']:,}{': ' if reasons else ''}{reasons}")
    if described["removed"]:
        table.add_row("removed", f"{described['removed']:,}")
    table.add_row("encoder", f"{encoder['id']} ({encoder['kind']}, {encoder['mode']}, {encoder['dtype']}{size})")
    table.add_row("latent shape", f"{shape}, d = {described['d']:,}")
    spectrum = described["spectrum"]
    if spectrum is None:
        table.add_row("spectrum", "not fitted yet: manifold fit")
    else:
        needed = ", ".join(f"{'over ' if n is None else ''}{n or spectrum['eigenpairs']:,} for {share}"
                           for share, n in spectrum["components"].items())  # fmt: skip
        table.add_row(
            "spectrum", f"total variance {spectrum['trace']:,.4g}, largest eigenvalue {spectrum['largest']:,.4g}"
        )
        table.add_row("directions", f"{needed} of the variance")
        ratio, rank = spectrum["participation_ratio"], spectrum["effective_rank"]
        pairs = counted(spectrum["eigenpairs"], "eigenpair")
        most = "at most " if spectrum["share_beyond"] else ""
        table.add_row("", f"participation ratio {most}{ratio:.3g}, effective rank {most}{rank:.4g}, {pairs} kept")
    classes = described["classes"]
    if classes is not None:
        fewest, most = classes["fewest_rows"], classes["most_rows"]
        rows = counted(most, "row") if fewest == most else f"{fewest:,} to {most:,} rows"
        without = classes["unlabelled_rows"]
        unlabelled = f", {counted(without, 'row')} without a label" if without else ""
        covariance = "a covariance for each" if classes["own_covariances"] else "one covariance within classes"
        table.add_row("classes", f"{classes['count']:,} of {rows}{unlabelled}, {covariance}")
    index = described["index"]
    if index is None:
        table.add_row("index", "not built yet: manifold index")
    elif index["schema"] != INDEX_SCHEMA:
        table.add_row("index", "of another version: build it again with manifold index")
    else:
        kept = f"{counted(index['k'], 'coordinate')} with {index['variance_kept']:.1%} of the variance"
        table.add_row("index", f"{index['kind']}, {kept}, {index['index_bytes'] / 2**20:,.1f} MiB")
        if "recall" in index:
            table.add_row("", recall_text(index["recall"]))
    return table


def recall_text(report: dict[str, Any]) -> str:
    """An index card's recall report in one line: all held-out states together."""
    figures = report["all"]
    low, high = figures["recall_at_10_interval"]
    return (
        f"recall@1 {figures['recall_at_1']:.3f}, recall@10 {figures['recall_at_10']:.3f} ({low:.3f} to {high:.3f}) on "
        f"{figures['queries']} held-out states among {report['count']:,} rows"
    )
