"""Explain which layers compute hypernetworks for free, which do not and why, and what it costs."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hnloader.attention.assembly import Assembly
from hnloader.attention.counting import TEXT_TOKENS, Step, contexts_at, count_decoder_step, count_step
from hnloader.attention.decoders import output_width
from hnloader.attention.layout import AttentionSite, is_decoder
from hnloader.attention.model import AttachedModel
from hnloader.attention.plan import PlanName, SidePlan, multiply_adds
from hnloader.attention.projection import Projection
from hnloader.attention.stages import AffineStage, ExactStage, MaskedStage, Stage
from hnloader.attention.text_cache import TextCache
from hnloader.network import SIDES, SideName
from hnloader.scopes import Kind
from hnloader.units import count_text, size_text

_TOKENS = 128
FREE: frozenset[PlanName] = frozenset({"fold", "cache", "none"})


@dataclass(frozen=True)
class Row:
    """The plan of a side of an attention layer, the reason for it, and its cost.

    Attributes:
        site: Name of the layer.
        block: `down.0`, ..., `mid`, `up.0`, ...; `layer.0`, ... in a language model.
        kind: `self` or `cross`.
        width: Width of the contexts.
        side: `k` or `v`.
        plan: `fold`, `collapse`, `cache`, `live`, `exact` or `none`; docs/plans.md describes them.
        why: Reason for this plan.
        multiply_adds: Multiply-adds that it adds to a call. Negative if `to_k` or `to_v` does not run. None if the
            layout of the model is unknown.
        multiply_adds_per_text: Multiply-adds for each new text, counted at the first layer that shares them.
        kept_bytes: Most memory beyond the model and the file, counted at the first layer that shares it.
    """

    site: str
    block: str
    kind: Kind
    width: int
    side: SideName
    plan: PlanName
    why: str
    multiply_adds: int | None
    multiply_adds_per_text: int
    kept_bytes: int

    @property
    def section(self) -> str:
        """`down`, `mid` or `up`; `layer` in a language model."""
        return self.block.partition(".")[0]


@dataclass(frozen=True)
class Explanation:
    """The plans of everything that is attached to a model, and their cost. `print` shows an overview.

    Attributes:
        rows: One row for each side of each layer that an attachment changes, with `site`, `block`, `kind`, `width`,
            `side`, `plan`, `why`, `multiply_adds`, `multiply_adds_per_text` and `kept_bytes`.
        step: The call that is counted, with `batch`, `size`, `text_tokens`, and the model's own `multiply_adds`.

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths, pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> pipe = load_model(pipeline_folder(), device="cpu").pipeline
        >>> with hnloader.attach(pipe, hypernetwork_paths()["outline"]) as attachment:
        ...     print(attachment.explain(batch=2))
        Free:
               0 %  all 10 self-attention layers: fold, no activation and no norm
           -4.64 %  all 10 cross-attention layers: cache, to_k and to_v run once for each text
        Not free:
                    none
        Cost with 2 x 16 x 16 latents and 77 tokens:
           -4.64 %  of the model's 737 M multiply-adds in each call
           +2.10 %  once for each new text
            852 kB  of memory for self-attention
            5.7 MB  of memory for cross-attention, with 4 texts at most
    """

    rows: tuple[Row, ...]
    step: Step

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON can hold them.

        Returns:
            `step`, `rows`, and `totals`: how many rows have each of the `plans`, the sums of the rows, and the `share`
            of the model's multiply-adds that a call adds.
        """
        known, added = self.step.multiply_adds, _added(self.rows)
        totals = {
            "plans": dict(Counter(row.plan for row in self.rows)),
            "multiply_adds": None if known is None else added,
            "share": None if known is None else added / known,
            "multiply_adds_per_text": self._per_text(),
            "kept_bytes": sum(row.kept_bytes for row in self.rows),
        }
        return {"step": asdict(self.step), "totals": totals, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        return "\n".join(
            [
                "Free:",
                *self._grouped([row for row in self.rows if row.plan in FREE]),
                "Not free:",
                *self._grouped([row for row in self.rows if row.plan not in FREE]),
                f"Cost with {self.step}:",
                *self._cost(),
            ]
        )

    def _grouped(self, rows: Sequence[Row]) -> list[str]:
        """Return a line for each kind of attention, plan and reason."""
        sides: dict[object, str] = defaultdict(str)
        groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in rows:
            sides[row.site, row.plan, row.why] += row.side
        for row in rows:
            groups[sides[row.site, row.plan, row.why], row.plan, row.why, row.kind].append(row)
        lines = [
            _line(self._percent(_added(group)), f"{self._layers(group, side)}: {plan}, {why}")
            for (side, plan, why, _), group in groups.items()
        ]
        return lines or [_line("", "none")]

    def _layers(self, rows: Sequence[Row], sides: str) -> str:
        """Name layers of a kind, such as `6 of 16 self-attention layers (down, up.1)`."""
        kind = rows[0].kind
        every = {row.site: row for row in self.rows if row.kind == kind}
        found = {row.site: row for row in rows}
        side = {"k": "the keys of ", "v": "the values of "}.get(sides, "")
        if len(found) == len(every):
            return f"{side}all {len(every)} {kind}-attention layers"
        partial = {row.section for row in every.values() if row.site not in found}
        blocks = dict.fromkeys(row.block if row.section in partial else row.section for row in rows)
        return f"{side}{len(found)} of {len(every)} {kind}-attention layers ({', '.join(blocks)})"

    def _cost(self) -> list[str]:
        lines = []
        if self.step.multiply_adds is None:
            lines.append(_line("?", "multiply-adds in each call: the layout of the model is unknown"))
        else:
            model = count_text(self.step.multiply_adds)
            lines.append(_line(self._percent(_added(self.rows)), f"of the model's {model} multiply-adds in each call"))
            if self._per_text():
                lines.append(_line(self._percent(self._per_text()), "once for each new text"))
        for kind, limit in (("self", ""), ("cross", f", with {TextCache.LIMIT} texts at most")):
            kept = sum(row.kept_bytes for row in self.rows if row.kind == kind)
            if kept:
                lines.append(_line(size_text(kept), f"of memory for {kind}-attention{limit}"))
        return lines

    def _per_text(self) -> int:
        return sum(row.multiply_adds_per_text for row in self.rows)

    def _percent(self, added: int) -> str:
        """Return multiply-adds relative to the model's, empty if these are unknown."""
        if self.step.multiply_adds is None:
            return ""
        return f"{100 * added / self.step.multiply_adds:+.2f} %" if added else "0 %"


def _line(number: str, text: str) -> str:
    return textwrap.fill(f"{number:>10}  {text}", 100, subsequent_indent=" " * 14)


def _added(rows: Sequence[Row]) -> int:
    return sum(row.multiply_adds or 0 for row in rows)


def explain(
    owner: AttachedModel, batch: int | None, size: int | tuple[int, int] | None, tokens: int | None
) -> Explanation:
    """Describe the next call of a model; see `Attachment.explain`."""
    assembly = owner.assembly()
    step = _step(owner, batch, size, tokens)
    rows = _Rows(owner.model, assembly, step)
    return Explanation(tuple(rows.row(site, side) for site in assembly.plans for side in SIDES), step)


def _step(owner: AttachedModel, batch: int | None, size: int | tuple[int, int] | None, tokens: int | None) -> Step:
    model, (shape, text) = owner.model, owner.shapes
    if is_decoder(owner.sites):
        rows, length = (1, _TOKENS) if shape is None else shape
        return count_decoder_step(model, batch or rows, tokens or length)
    if batch is None:
        batch = 2 if shape is None else shape[0]
    if size is None:
        own: Any = getattr(getattr(model, "config", None), "sample_size", None) or 64
        size = own if shape is None else shape[-2:]  # type: ignore[assignment]
    height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    tokens = tokens or (TEXT_TOKENS if text is None else text[-2])
    return count_step(model, batch, (int(height), int(width)), tokens)


class _Rows:
    """Makes the rows of an assembly."""

    def __init__(self, model: nn.Module, assembly: Assembly, step: Step) -> None:
        self._model, self._assembly, self._step = model, assembly, step
        self._counted: set[object] = set()
        self._text = step.batch * step.text_tokens
        parameter = next(model.parameters())
        self._element, self._on_cpu = parameter.element_size(), parameter.device.type == "cpu"

    def row(self, site: AttentionSite, side: SideName) -> Row:
        """Return the row of a side of a layer."""
        plan, projection = self._assembly.plans[site][side], self._assembly.projection_of(site, side)
        name, why = _named(plan, projection)
        added = None
        if self._step.multiply_adds is not None:
            added = _per_context(plan, projection) * contexts_at(self._model, site, self._step)
        per_text, kept = self._once(plan)
        return Row(
            site=site.name,
            block=site.block,
            kind=site.kind,
            width=site.width,
            side=side,
            plan=name,
            why=why,
            multiply_adds=added,
            multiply_adds_per_text=per_text,
            kept_bytes=kept + self._kept(plan, projection),
        )

    def _once(self, plan: SidePlan) -> tuple[int, int]:
        """Return the multiply-adds for each text and the memory that all layers of a plan share."""
        if not self._first(plan):
            return 0, 0
        used = dict.fromkeys((link.hypernetwork, link.scope) for link in plan.chain)
        copies = [each for each in used if self._first((each, plan.side))]
        kept = plan.kept_bytes + sum(owner.copied_bytes(scope, plan.side) for owner, scope in copies)
        if plan.name != "cache":
            return 0, kept
        tensors = 1 + (self._on_cpu and self._first("the copy of a text"))
        per_context = sum(multiply_adds(link.side(plan.side)) for link in plan.chain)
        return self._text * per_context, kept + self._of_texts(tensors * plan.width)

    def _kept(self, plan: SidePlan, projection: Projection | None) -> int:
        """Return the memory that a layer takes."""
        if projection is None:
            return 0
        if projection.fold is not None and plan.foldable and self._first(projection):
            return projection.fold.bytes
        kept = output_width(projection.module) // len(projection.plans) if projection.state == "kept" else 0
        return self._of_texts(kept)

    def _of_texts(self, values: int) -> int:
        return TextCache.LIMIT * self._text * values * self._element

    def _first(self, key: object) -> bool:
        """Return True at the first question for a key."""
        known = key in self._counted
        self._counted.add(key)
        return not known


def _named(plan: SidePlan, projection: Projection | None) -> tuple[PlanName, str]:
    """Return the plan that the projection allows, and the reason."""
    if projection is None:
        return plan.name, plan.why
    if projection.state == "kept":
        return plan.name, "to_k and to_v run once for each text"
    if plan.name == "cache" and projection.why_not:
        return plan.name, f"{plan.why}, but to_k and to_v run in each call: {projection.why_not}"
    if not plan.foldable or projection.fold is not None:
        return plan.name, plan.why
    collapsed = not plan.stages and any(isinstance(stage, AffineStage) for stage in plan.tail)
    return "collapse" if collapsed else "live", f"not folded: {projection.why_not}"


def _per_context(plan: SidePlan, projection: Projection | None) -> int:
    """Return the multiply-adds that a side adds for each context."""
    if projection is None or not plan.chain:
        return 0
    parts, product = len(projection.plans), plan.width * output_width(projection.module)
    if projection.state == "kept":
        return -product // parts
    stages = plan.stages if projection.fold is not None else plan.live
    added = 0 if plan.name == "cache" else sum(map(_of_stage, stages))
    # The hook on a fused projection runs it for each side, and so do parts that take turns.
    repeats = parts > 1 and (projection.state == "hook" or (bool(stages) and projection.rows.groups > 1))
    return added + product if repeats else added


def _of_stage(stage: Stage) -> int:
    if isinstance(stage, AffineStage):
        return stage.width * stage.width
    if isinstance(stage, MaskedStage):
        return _of_stage(stage.stage)
    assert isinstance(stage, ExactStage)
    return multiply_adds(stage.stored)
