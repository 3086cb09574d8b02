"""What the sections of the page say about counts and training: text, tables and figures, ready for the template."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from headgate.report.embed import Gallery
from headgate.report.numbers import amount, change, percent, points, standard_error, times, whole
from headgate.report.run import Run

if TYPE_CHECKING:
    from headgate.counting import LayerRecord, Total


class Tile(NamedTuple):
    """One number that matters."""

    label: str
    value: str
    note: str = ""


class Row(NamedTuple):
    """A line of the headline's table; `part`: it is contained in the line above."""

    label: str
    dense: str
    gated: str
    change: str
    part: bool = False


# ------------------------------------------------------------------- headline


def headline(run: Run, dense: Run | None, gallery: Gallery) -> dict[str, Any]:
    """Accuracy against the dense counterpart, what was saved, and how training went."""
    from headgate import plots

    counts = run.counts
    context: dict[str, Any] = {
        "title": run.name,
        "network": (run.recipe.get("architecture") or {}).get("name", ""),
        "images": whole(counts.images),
        "curves": _curves(run, dense, gallery),
        "error": percent(standard_error(run.accuracy, counts.images), 2),
    }
    if not run.gated:
        return context | {
            "claim": f"{percent(run.accuracy, 2)} accuracy, dense",
            "against": f"Nothing is gated: every image takes all {_dense_macs(run)}.",
            "tiles": [
                Tile("top-1 accuracy", percent(run.accuracy, 2), f"on {whole(counts.images)} test images"),
                *(
                    Tile(f"{kind}MACs per image", amount(total.dense_macs), "multiply-accumulates")
                    for kind, total in _totals(run, "network")
                ),
            ],
            "rows": [],
        }
    traffic = counts.traffic()
    tiles = [
        Tile("top-1 accuracy", percent(run.accuracy, 2), _versus(run, dense)),
        Tile("fewer MACs, gated layers", times(counts.mac_reduction), f"{percent(counts.density)} density"),
        Tile("fewer MACs, whole network", times(counts.network_mac_reduction), _absolute(run)),
        Tile("off-chip traffic", change(-traffic.saved), "8-bit values, see the table"),
    ]
    return context | {
        "claim": f"{times(counts.mac_reduction)} fewer MACs at {percent(run.accuracy, 2)} accuracy",
        "against": _against(run, dense),
        "tiles": tiles,
        "rows": _rows(run, dense),
        "buffer": f"{traffic.buffer.buffer_bytes // 1024} KiB",
        "binary": any(layer.binary for layer in counts.layers),
        "paths": gallery.show("macs-by-path", plots.macs_by_path(_of_the_gates_kind(run)), _path_label(run)),
    }


def _totals(run: Run, part: str) -> list[tuple[str, Total]]:
    """MACs of the "gated layers" or the "network", each with "binary " or nothing, of the kinds that it has."""
    return [("binary " * binary, total) for label, total, binary in run.counts.totals() if label == part]


def _dense_macs(run: Run) -> str:
    return " and ".join(f"{amount(total.dense_macs)} {kind}MACs" for kind, total in _totals(run, "network"))


def _of_the_gates_kind(run: Run) -> list[LayerRecord]:
    """The layers whose MACs are binary as most gated layers' are, or are not: the two cannot be stacked in one bar."""
    records = run.counts.by_layer()
    gated = [record.binary for record in records if record.shape.gated]
    binary = 2 * sum(gated) > len(gated)
    return [record for record in records if record.binary == binary]


def _versus(run: Run, dense: Run | None) -> str:
    if dense is None:
        return "no dense run to compare with"
    return f"dense {percent(dense.accuracy, 2)}: {points(run.accuracy - dense.accuracy)} points"


def _absolute(run: Run) -> str:
    totals = _totals(run, "network")
    return ", ".join(f"{amount(t.dense_macs)} → {amount(t.executed_macs)} {kind}" for kind, t in totals) + "per image"


def _against(run: Run, dense: Run | None) -> str:
    text = f"That is in the gated layers; {times(run.counts.network_mac_reduction)} in the whole network. "
    if dense is None:
        return text + (
            "No dense run was given and none was found beside this one: what the gates cost in accuracy is not known."
        )
    difference, images = run.accuracy - dense.accuracy, run.counts.images
    text += f"Its dense counterpart reaches {percent(dense.accuracy, 2)}: "
    if points(difference) == "±0.00":
        return text + "the gates cost no accuracy."
    text += f"the gates {'gain' if difference > 0 else 'cost'} {abs(100 * difference):.2f} points."
    errors = (standard_error(run.accuracy, images), standard_error(dense.accuracy, dense.counts.images))
    chance = 2 * math.hypot(*errors)
    if abs(difference) < chance:
        text += f" On {whole(images)} images, differences of up to {100 * chance:.1f} points may be chance."
    return text


def _rows(run: Run, dense: Run | None) -> list[Row]:
    counts, traffic = run.counts, run.counts.traffic()
    records = [record for record in counts.by_layer() if record.shape.gated]
    paths = counts.by_path()
    additions = sum(record.overhead_additions for record in records)
    multiplications = sum(record.overhead_multiplications for record in records)
    operations = [(additions, "additions"), (multiplications, "products")]
    overhead = ", ".join(f"{amount(number)} {what}" for number, what in operations if number) or "none"
    rows = []
    for kind, total in _totals(run, "gated layers"):
        rows += [
            _macs_row(f"{kind}MACs, gated layers", total),
            Row("base path", "", amount(paths[f"{kind}base"]), "", part=True),
            Row(
                "conditional path",
                "",
                amount(paths[f"{kind}conditional"]),
                f"{percent(counts.density)} density",
                part=True,
            ),
        ]
    rows += [
        Row("gate overhead", "", amount(paths["overhead"]), overhead, part=True),
        *(_macs_row(f"{kind}MACs, whole network", total) for kind, total in _totals(run, "network")),
        Row(
            "FLOPs, whole network",
            amount(2 * counts.network_dense_macs),
            amount(2 * counts.network_executed_macs),
            times(counts.total(network=True).reduction),
        ),
        Row(
            "off-chip traffic, bytes",
            amount(traffic.dense_bytes),
            amount(traffic.gated_bytes),
            f"{times(traffic.reduction)}, {change(-traffic.saved)}",
        ),
    ]
    for name, key in (("top-1 accuracy", "accuracy"), ("top-5 accuracy", "top5")):
        mine, other = run.summary.get(key), dense.summary.get(key) if dense is not None else None
        if mine is not None:
            against = f"{points(mine - other)} points" if other is not None else ""
            rows.append(Row(name, percent(other, 2) if other is not None else "–", percent(mine, 2), against))
    return rows


def _macs_row(label: str, total: Total) -> Row:
    return Row(label, amount(total.dense_macs), amount(total.executed_macs), times(total.reduction))


def _path_label(run: Run) -> str:
    paths = ", ".join(f"{path} {amount(macs)}" for path, macs in run.counts.by_path().items())
    return f"Two bars: {_dense_macs(run)} without gates; with gates, by path: {paths}."


def _curves(run: Run, dense: Run | None, gallery: Gallery) -> list[Markup]:
    from headgate import plots

    def names(kind: str) -> set[str]:
        lines = (line for line in run.metrics if line.get("kind") == kind)
        return {key for line in lines for key, value in line.items() if value is not None}

    known = names("train") | names("eval")
    curves = []
    if "loss" in known:
        curves.append(gallery.show("loss", plots.loss_curve(run.metrics), f"Loss while training{_ends(run, 'loss')}."))
    if "accuracy" in known:
        figure = plots.accuracy_curve(run.metrics, None if dense is None else dense.accuracy)
        curves.append(gallery.show("accuracy", figure, f"Accuracy while training{_ends(run, 'accuracy')}."))
    if "mac_reduction" in names("train"):
        figure = plots.reduction_curve(run.metrics, (run.recipe.get("budget") or {}).get("mac_reduction"))
        label = f"MAC reduction of the gated layers while training{_ends(run, 'mac_reduction')}."
        curves.append(gallery.show("reduction", figure, label))
    if {"density", "offset"} <= names("train"):
        label = f"Density and threshold offset T while training{_ends(run, 'density')}."
        curves.append(gallery.show("density", plots.density_curve(run.metrics), label))
    return curves


def _ends(run: Run, name: str) -> str:
    values = [line[name] for line in run.metrics if line.get("kind") == "eval" and line.get(name) is not None]
    return f", from {values[0]:.3g} to {values[-1]:.3g} on the test images" if values else ""


# ----------------------------------------------------------------- by layer


def layers(run: Run, gallery: Gallery) -> dict[str, Any]:
    """Where the MACs went, layer by layer."""
    from headgate import plots

    records = run.counts.by_layer()
    most = max(records, key=lambda record: record.dense_macs - record.executed_macs)
    label = f"Bars: dense and executed MACs of {len(records)} layers; the table below has the numbers."
    if run.gated:
        label += f" Most is saved in {most.name}: {amount(most.dense_macs)} → {amount(most.executed_macs)}."
    figures = [gallery.show("macs-by-layer", plots.macs_by_layer(records), label)]
    facts = []
    if run.gated:
        gated = [record for record in records if record.shape.gated]
        label = "Points: share of input channels used, by layer, from " + ", ".join(
            f"{record.name} {percent(record.channels_used, 0)}" for record in (gated[0], gated[-1])
        )
        figures.append(gallery.show("channels-used", plots.channels_used(records), f"{label}."))
        facts = _channel_facts(gated)
    uncounted = [
        f"{entry.operation} in {entry.name or 'the model'}"
        + (f", {amount(entry.macs)} MACs per image" if entry.macs is not None else "")
        for entry in run.counts.uncounted
    ]
    return {
        "figures": figures,
        "facts": facts,
        "records": [_layer_cells(record) for record in records],
        "uncounted": uncounted,
        "uncalled": list(run.counts.uncalled),
    }


def _channel_facts(gated: Sequence[LayerRecord]) -> list[str]:
    """What the paper says of later and of 1×1 layers, and what is so in this network."""
    facts = []
    third = len(gated) // 3
    if third:
        first, last = percent(_used(gated[:third])), percent(_used(gated[-third:]))
        facts.append(
            f"The first third of the gated layers uses {first} of its channels, the last {last}; in the paper later "
            "layers use fewer than earlier ones."
        )
    ones = [record for record in gated if record.shape.kernel == (1, 1)]
    others = [record for record in gated if record.shape.kernel != (1, 1)]
    if ones and others:
        facts.append(
            f"1×1 layers use {percent(_used(ones))}, larger kernels {percent(_used(others))}; in the paper 1×1 layers "
            "skip more."
        )
    return facts


def _used(records: Sequence[LayerRecord]) -> float:
    """Mean share of channels used, each layer weighted by its dense MACs."""
    return sum(r.channels_used * r.dense_macs for r in records) / sum(r.dense_macs for r in records)


def _layer_cells(record: LayerRecord) -> list[str]:
    shape, gated = record.shape, record.shape.gated
    return [
        record.name,
        "binary, " * record.binary + (f"{record.granularity}, G = {shape.groups}" if gated else "not gated"),
        f"{shape.c_in} → {shape.c_out}" + (f" / {shape.conv_groups}" if shape.conv_groups > 1 else ""),
        f"{shape.kernel[0]}×{shape.kernel[1]}",
        f"{shape.out_size[0]}×{shape.out_size[1]}",
        amount(record.dense_macs),
        amount(record.base_macs) if gated else "",
        amount(record.conditional_macs) if gated else "",
        amount(record.overhead_macs) if gated else "",
        amount(record.executed_macs),
        percent(record.density) if gated else "",
        percent(record.channels_used),
        times(record.mac_reduction),
    ]


# --------------------------------------------------------------- what is behind


def behind(run: Run, dense: Run | None) -> dict[str, Any]:
    """Options, how to do it again, versions, dates."""
    groups: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in run.recipe.items():
        if isinstance(value, Mapping):
            groups[key] = list(_options(value))
        elif value is not None:
            groups["run"].append((key, _text(value)))
    again = f"runs/{run.folder.resolve().name}-again"
    return {
        "options": {name: options for name, options in groups.items() if options},
        "recipe": json.dumps(run.recipe, indent=2, ensure_ascii=False),
        "program": "\n".join(
            (
                "import json",
                "from pathlib import Path",
                "from headgate.train import Recipe, train",
                "",
                f"recipe = json.loads(Path({str(run.folder / 'recipe.json')!r}).read_text())",
                f"train(Recipe.from_dict(recipe), {again!r})",
            )
        ),
        "command": run.summary.get("command"),
        "facts": [
            ("run", str(run.folder)),
            *((("dense counterpart", f"{dense.name} in {dense.folder}"),) if dense is not None else ()),
            ("finished", _date(run.finished)),
            *((("training time", _duration(run.summary["seconds"])),) if "seconds" in run.summary else ()),
            ("trained with", f"torch {run.summary.get('torch', 'of unknown version')}"),
            ("report made", f"{_date(None)} with headgate {_version()}, Python {platform.python_version()}"),
        ],
    }


def _options(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if value is not None and value != [] and value != ():
            yield key, _text(value)


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _date(seconds: float | None) -> str:
    zone = datetime.UTC
    moment = datetime.datetime.now(zone) if seconds is None else datetime.datetime.fromtimestamp(seconds, zone)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _version() -> str:
    try:
        return importlib.metadata.version("headgate")
    except importlib.metadata.PackageNotFoundError:
        return "that is not installed"
