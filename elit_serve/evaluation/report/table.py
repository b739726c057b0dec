"""An evaluation as a table in Markdown: a row for each plan, and below it what the figures mean."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.files.evaluation import Agreement, Evaluation, Scores

FOLLOWING = (
    "Share of pictures, of one set of seeds, that show the word of their prompt for each part of a caption, as "
    "elit-serve caption would read it from their pixels; photographs with its captions would score 1. Class: pictures "
    "whose nearest reference photograph in feature space is of the class of the prompt. In parentheses: "
    "the same pictures beside the other prompts of the set, which is chance."
)


def as_markdown(evaluation: Evaluation) -> str:
    """The table, as text."""
    has_logits = evaluation.floor.inception_score is not None
    header = ["budget", "level", evaluation.metric, "over the floor", "kernel distance", "precision", "recall"]
    header += ["Inception Score"] if has_logits else []
    header += ["nearest-training ratio"]
    floor = evaluation.floor
    lines = [_row(header), _row(["---"] * len(header))]
    lines += [
        _row([f"{plan.budget:.4g}", f"{plan.level:g}", *_cells(plan.scores, floor.frechet.value)])
        for plan in evaluation.plans
    ]
    lines += [_row(["held-out photographs", "", *_cells(floor, floor.frechet.value)]), "", _explained(evaluation)]
    return "\n".join([*lines, *_following(evaluation)]) + "\n"


def _following(evaluation: Evaluation) -> list[str]:
    """A second table, where it was measured whether pictures show what their prompts say."""
    told = [(plan, plan.following) for plan in evaluation.plans if plan.following]
    if not told:
        return []
    parts = list(told[0][1])
    lines = ["", _row(["budget", "level", *parts]), _row(["---"] * (2 + len(parts)))]
    lines += [
        _row([f"{plan.budget:.4g}", f"{plan.level:g}", *(_agreement_text(found[part]) for part in parts)])
        for plan, found in told
    ]
    if evaluation.floor_class is not None and "class" in parts:
        blank = [""] * (len(parts) - 1)
        lines.append(_row(["held-out photographs", "", *blank, _agreement_text(evaluation.floor_class)]))
    return [*lines, "", FOLLOWING]


def _agreement_text(agreement: Agreement) -> str:
    return f"{agreement.share.text(3)} ({agreement.chance:.3f})"


def _explained(evaluation: Evaluation) -> str:
    mix = "in the class mix" if evaluation.class_distribution else "with the captions"
    return (
        f"{evaluation.metric} (Fréchet distance), kernel distance, precision and recall of {evaluation.num_samples} "
        f"samples {mix} of the held-out photographs ({evaluation.held_out}) against "
        f"{evaluation.num_reference} reference photographs, mean of {evaluation.plans[0].repeats} sets of seeds. "
        f"Held-out photographs, as many, score the floor. Intervals: {evaluation.intervals}. Nearest-training ratio: "
        "median distance in feature space to the nearest reference photograph, over that of held-out photographs; "
        "copies would score 0."
    )


def _cells(scores: Scores, floor: float) -> list[str]:
    cells = [
        scores.frechet.text(1),
        f"{scores.frechet.value / floor:.2f}",
        scores.kernel.text(4),
        scores.precision.text(3),
        scores.recall.text(3),
    ]
    if scores.inception_score is not None:
        cells.append(scores.inception_score.text(2))
    return [*cells, scores.nearest_ratio.text(2)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
