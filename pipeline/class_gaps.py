"""Which classes one split has and another lacks, in words: said alike at conversion, training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardline.pipeline.wording import shorten_list


def class_gaps(
    labels: Sequence[str], class_counts: Mapping[str, Sequence[int]], train: str = "train", split: str = ""
) -> list[str]:
    """A line for each gap between the training split and another one: `classes in test but not in train: Dog`.

    Args:
      labels: class names, by label.
      class_counts: records of each class, by split; splits without counts are passed over.
      train: the training split; where there is none of that name, the first split is taken for it.
      split: the split to compare with; "": all others.
    """
    counted = {name: counts for name, counts in class_counts.items() if len(counts)}
    if not counted:
        return []
    train = train if train in counted else next(iter(counted))
    lines = []
    for name in [split] if split else counted:
        if name == train or name not in counted:
            continue
        pairs = list(zip(labels, counted[train], counted[name], strict=True))
        for there, here, missing in (
            (name, train, [label for label, ours, theirs in pairs if theirs and not ours]),
            (train, name, [label for label, ours, theirs in pairs if ours and not theirs]),
        ):
            if missing:
                lines.append(f"classes in {there} but not in {here}: {shorten_list(missing)}")
    return lines
