"""Explain the cost of attachments, layer by layer: `Attachment.explain`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hnloader.attention.assembly import Assembly
from hnloader.attention.counting import TEXT_TOKENS, Step, contexts_at, count_step
from hnloader.attention.layout import AttentionSite
from hnloader.attention.model import AttachedModel
from hnloader.attention.plan import PlanName, SidePlan, multiply_adds
from hnloader.attention.stages import AffineStage, ExactStage, LiveStage, Stage
from hnloader.network import SIDES, Side, SideName


@dataclass(frozen=True)
class Row:
    """The cost of one side of one attention layer. Counts are per call of the model.

    Attributes:
        site: Name of the layer.
        block: `down.0`, ..., `mid`, `up.0`, ...
        kind: `self` or `cross`.
        width: Width of the contexts.
        side: `k` or `v`.
        plan: `fold`, `collapse`, `cache`, `live`, `exact` or `none`; docs/plans.md describes them.
        why: Reason for this plan.
        contexts: Number of contexts that the layer receives. None if unknown; the counts are then for one.
        multiply_adds_before: Multiply-adds that plain hooks would add.
        multiply_adds: Multiply-adds that this plan adds.
        multiply_adds_once: Multiply-adds once per fold or new text, counted at the first layer that shares them.
        bytes_before: Bytes of weights and contexts that plain hooks would read and write.
        bytes: Bytes that this plan reads and writes.
        kept_bytes: Memory beyond the model and the file, counted at the first layer that shares it.
        share_before: `multiply_adds_before` relative to the model without hypernetworks. None if unknown.
        share: `multiply_adds` relative to the model without hypernetworks. None if unknown.
    """

    site: str
    block: str
    kind: str
    width: int
    side: SideName
    plan: PlanName
    why: str
    contexts: int | None
    multiply_adds_before: int
    multiply_adds: int
    multiply_adds_once: int
    bytes_before: int
    bytes: int
    kept_bytes: int
    share_before: float | None
    share: float | None


COUNTS = ("multiply_adds_before", "multiply_adds", "multiply_adds_once", "bytes_before", "bytes", "kept_bytes")


@dataclass(frozen=True)
class Explanation:
    """The plans of all attachments of a model, and their cost. `print` shows a table.

    Attributes:
        rows: One row for each side of each layer that an attachment changes.
        step: The call of the model that is counted. None if the layout of the model is unknown.

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths, pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> pipe = load_model(pipeline_folder(), device="cpu").pipeline
        >>> with hnloader.attach(pipe, hypernetwork_paths()["outline"]) as attachment:
        ...     explanation = attachment.explain(batch=2)
        >>> explanation.to_dict()["totals"]["plans"]
        {'fold': 20, 'cache': 20}
    """

    rows: tuple[Row, ...]
    step: Step | None

    def total(self, count: str) -> int:
        """Return the sum of a count over all rows.

        Args:
            count: Name of a count, such as `multiply_adds`.

        Returns:
            The sum.
        """
        return sum(getattr(row, count) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON can hold them.

        Returns:
            `step`, `totals` and `rows`.
        """
        totals: dict[str, Any] = {count: self.total(count) for count in COUNTS}
        totals["plans"] = dict(Counter(row.plan for row in self.rows))
        if self.step is not None:
            totals["share_before"] = totals["multiply_adds_before"] / self.step.multiply_adds
            totals["share"] = totals["multiply_adds"] / self.step.multiply_adds
        return {
            "step": None if self.step is None else asdict(self.step),
            "totals": totals,
            "rows": [asdict(row) for row in self.rows],
        }

    def grouped(self) -> Iterator[tuple[list[Row], list[str]]]:
        """Group the rows that differ in layer and side only.

        Returns:
            An iterator of groups, each with its cells in a table with the columns `HEADER`.
        """
        groups: dict[tuple[object, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.block, row.kind, row.width, row.plan, row.why), []).append(row)
        for rows in groups.values():
            yield rows, self._cells(rows)

    def _cells(self, rows: Sequence[Row]) -> list[str]:
        first, sums = rows[0], {count: sum(getattr(row, count) for row in rows) for count in COUNTS}
        layers = len({row.site for row in rows})
        sides = "".join(sorted({row.side for row in rows}))
        shares = [sum(row.share_before or 0 for row in rows), sum(row.share or 0 for row in rows)]
        return [
            f"{first.block} {first.kind}",
            f"{layers} x {sides}",
            str(first.width),
            first.plan,
            _arrow(*(_count(sums[name]) for name in ("multiply_adds_before", "multiply_adds"))),
            _arrow(*(_size(sums[name]) for name in ("bytes_before", "bytes"))),
            _size(sums["kept_bytes"]),
            "?" if first.share is None else _arrow(*(f"{share:.2%}" for share in shares)),
            first.why,
        ]

    def summary(self) -> str:
        """Return the totals.

        Returns:
            Text of two lines.
        """
        added = _arrow(_count(self.total("multiply_adds_before")), _count(self.total("multiply_adds")))
        lines = [f"multiply-adds per call: {added}; once: {_count(self.total('multiply_adds_once'))}"]
        lines[0] += f"; kept in memory: {_size(self.total('kept_bytes'))}"
        if self.step is None:
            lines.append("counted for one context, since the layout of this model is unknown")
        else:
            shares = [self.total(name) / self.step.multiply_adds for name in ("multiply_adds_before", "multiply_adds")]
            height, width = self.step.size
            lines.append(
                f"share of a call with {self.step.batch} x {height} x {width} latents and {self.step.text_tokens} "
                f"tokens ({_count(self.step.multiply_adds)}): {_arrow(*(f'{share:.2%}' for share in shares))}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [list(HEADER), *(cells for _, cells in self.grouped())]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
        table = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*(line.rstrip() for line in table), "", self.summary()])


def _arrow(before: str, after: str) -> str:
    return f"{before} -> {after}"


def _count(number: float) -> str:
    """Write a number as 0, 640, 1.2 M, 34 G."""
    return _scaled(number, ("", " k", " M", " G", " T"))


def _size(number: float) -> str:
    """Write a number of bytes as 0 B, 640 B, 1.2 MB."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB"))


def _scaled(number: float, units: Sequence[str]) -> str:
    unit = 0
    while number >= 999.5 and unit < len(units) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f}{units[unit]}" if unit == 0 or number >= 99.95 else f"{number:.1f}{units[unit]}"


HEADER = ("block", "layers", "width", "plan", "multiply-adds", "bytes moved", "kept", "share of call", "why")


def explain(
    owner: AttachedModel, batch: int | None, size: int | tuple[int, int] | None, tokens: int | None
) -> Explanation:
    """Describe the plans for the next call; see `Attachment.explain`."""
    assembly = owner.assembly()
    model, shape = owner.model, owner.sample_shape
    if batch is None:
        batch = 2 if shape is None else shape[0]
    if size is None:
        size = shape[-2:] if shape is not None else _own_size(model)  # type: ignore[assignment]
    height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    step = count_step(model, batch, (int(height), int(width)), tokens or owner.tokens or TEXT_TOKENS)
    seen: set[object] = set()
    rows = [_row(model, site, assembly, side, step, seen) for site in assembly.plans for side in SIDES]
    return Explanation(tuple(rows), step)


def _own_size(model: Any) -> int:
    size = getattr(getattr(model, "config", None), "sample_size", None)
    return size if isinstance(size, int) else 64


def _row(
    model: nn.Module, site: AttentionSite, assembly: Assembly, side: SideName, step: Step | None, seen: set[object]
) -> Row:
    plan, projection = assembly.plans[site][side], assembly.projection_of(site, side)
    folded = projection is not None and projection.fold is not None and bool(plan.foldable)
    name, why = _named(plan, folded, "" if projection is None else projection.why_not)
    contexts = contexts_at(model, site, step) if step is not None else None
    rows = contexts or 1
    before = [_plain_cost(link.hypernetwork.side(site.width, side), site.width) for link in plan.chain]
    after = [] if name == "cache" else [_stage_cost(stage) for stage in (plan.stages if folded else plan.live)]
    if projection is not None and projection.state == "kept":
        after = [_Cost(-int(projection.module.weight.numel()), 0, 0)]  # type: ignore[operator]
    once, kept = 0, 0
    if plan not in seen:  # all layers of a plan share it
        seen.add(plan)
        once = sum(each.multiply_adds for each in before) * rows if name == "cache" else _matrix(plan)
        kept = plan.kept_bytes
    for hypernetwork in dict.fromkeys(link.hypernetwork for link in plan.chain):
        if (hypernetwork, site.width, side) not in seen:
            seen.add((hypernetwork, site.width, side))
            kept += hypernetwork.copied_bytes(site.width, side)
    if folded:
        assert projection is not None and projection.fold is not None
        parts = len(projection.plans)
        once += site.width * site.width * (len(projection.fold.weight) // parts)
        kept += projection.fold.bytes // parts
    element = next(model.parameters()).element_size()
    sums = [sum(each.multiply_adds for each in costs) * rows for costs in (before, after)]
    total = None if step is None else step.multiply_adds
    return Row(
        site=site.name,
        block=site.block,
        kind=site.kind,
        width=site.width,
        side=side,
        plan=name,
        why=why,
        contexts=contexts,
        multiply_adds_before=sums[0],
        multiply_adds=sums[1],
        multiply_adds_once=once,
        bytes_before=sum(each.bytes(rows, 4) for each in before),
        bytes=sum(each.bytes(rows, 4 if name == "exact" else element) for each in after),
        kept_bytes=kept,
        share_before=None if total is None else sums[0] / total,
        share=None if total is None else sums[1] / total,
    )


def _matrix(plan: SidePlan) -> int:
    """Count the multiply-adds that make one matrix of each affine stretch of a plan."""
    stages = [stage for stage in (*plan.stages, *plan.tail) if isinstance(stage, AffineStage)]
    stretches = [stage.links for stage in stages] or ([plan.foldable] if plan.foldable else [])
    total = 0
    for links in stretches:
        for link in links:  # all its layers except the first, each times the matrix so far
            linears = [m for m in link.hypernetwork.side(plan.width, plan.side).modules() if isinstance(m, nn.Linear)]
            total += plan.width * sum(linear.weight.numel() for linear in linears[1:])
        total += (len(links) - 1) * plan.width**3
    return total


def _named(plan: SidePlan, folded: bool, why_not: str) -> tuple[PlanName, str]:
    """Return the plan that the projection allows, and the reason."""
    if folded or not plan.foldable:
        return plan.name, plan.why
    if not plan.stages and any(isinstance(stage, AffineStage) for stage in plan.tail):
        return "collapse", f"not folded: {why_not}"
    return "live", f"not folded: {why_not}"


@dataclass(frozen=True)
class _Cost:
    """The cost of a stage: multiply-adds per context, values of its weights, values read and written per context."""

    multiply_adds: int
    weights: int
    moved: int

    def bytes(self, contexts: int, element: int) -> int:
        return element * (self.weights + contexts * self.moved)


def _plain_cost(side: Side, width: int) -> _Cost:
    """Return the cost module by module, then of the product with the strength and the sum."""
    moved, values = 2 * width + 3 * width, width
    for module in side.modules():
        if isinstance(module, nn.Linear):
            moved += module.in_features + module.out_features
            values = module.out_features
        elif not isinstance(module, nn.Dropout) and not list(module.children()):
            moved += 2 * values
    return _Cost(multiply_adds(side), sum(p.numel() for p in side.parameters()), moved)


def _stage_cost(stage: Stage) -> _Cost:
    """Return the cost of a stage for every context; zero for a kept result."""
    if isinstance(stage, AffineStage):
        square = stage.width * stage.width
        return _Cost(square, square + stage.width, 2 * stage.width)
    if isinstance(stage, ExactStage):
        plain = _plain_cost(stage.hypernetwork.side(stage.width, stage.side), stage.width)
        if isinstance(stage, LiveStage):  # the hidden values stay in the CPU's cache
            return _Cost(plain.multiply_adds, plain.weights, 5 * stage.width)
        return plain
    return _Cost(0, 0, 0)
