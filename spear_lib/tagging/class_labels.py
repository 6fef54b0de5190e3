"""The labels of a manifest's cuts as numbers of classes, read once (ours).

Legend: n cuts, K classes.
"""

import logging
from collections import Counter

import numpy as np

from spear_lib.corpora.labelled_clips import labels_in
from spear_lib.data.manifests import Manifest

logger = logging.getLogger(__name__)

_SHOWN = 5  # unknown labels and cuts that a message names


class LabelTable:
    """Which classes each cut has, read once.

    A label that is not in the class list is dropped and counted; so is one that a cut has twice.

    Args:
      manifest: of the cuts.
      classes: {label: name} in the order of the classes.

    Raises:
      ValueError: no cut has a label of the class list.
    """

    def __init__(self, manifest: Manifest, classes: dict[str, str]) -> None:
        numbers = {label: number for number, label in enumerate(classes)}
        self.num_classes = len(numbers)
        self.unknown: Counter[str] = Counter()
        """Label that is not in the class list -> cuts that have it."""
        self.unlabelled: list[str] = []
        """Ids of cuts without any label of the class list."""
        found: list[int] = []
        ends: list[int] = []
        for fields in manifest.fields():
            labels = dict.fromkeys(labels_in(fields))
            known = [numbers[label] for label in labels if label in numbers]
            self.unknown.update(label for label in labels if label not in numbers)
            if not known:
                self.unlabelled.append(str(fields["id"]))
            found += known
            ends.append(len(found))
        self._classes = np.array(found, dtype=np.int32)
        self._ends = np.array([0, *ends], dtype=np.int64)
        self._report(manifest.describe())

    def _report(self, what: str) -> None:
        some = ", ".join(label for label, _ in self.unknown.most_common(_SHOWN))
        if len(self) and not len(self._classes):
            why = f"theirs are unknown: {some}" if some else "they have none at all"
            raise ValueError(
                f"no cut of {what} has a label of the class list ({self.num_classes} classes): {why}. Give "
                "cuts with labels (prepare.sh stage 1 of egs/audioset makes them) and their class list"
            )
        if self.unknown:
            logger.warning(
                "%s: %d labels on %d cuts are not in the class list and do not count: %s",
                what,
                len(self.unknown),
                self.unknown.total(),
                some,
            )
        if self.unlabelled:
            some = ", ".join(self.unlabelled[:_SHOWN])
            logger.warning("%s: %d cuts have no known label: %s", what, len(self.unlabelled), some)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def of(self, number: int) -> np.ndarray:
        """Classes of a cut, (number of labels,)."""
        return self._classes[self._ends[number] : self._ends[number + 1]]

    def row(self, number: int) -> np.ndarray:
        """(K,) float32, 1 where the cut has the class."""
        target = np.zeros(self.num_classes, dtype=np.float32)
        target[self.of(number)] = 1.0
        return target

    def counts(self, cut_numbers: np.ndarray) -> np.ndarray:
        """(K,) how many of these cuts have each class."""
        chosen = np.zeros(len(self), dtype=np.int64)
        chosen[cut_numbers] = 1
        return np.bincount(
            self._classes, np.repeat(chosen, np.diff(self._ends)), minlength=self.num_classes
        ).astype(np.int64)

    def weights(self, cut_numbers: np.ndarray) -> np.ndarray:
        """(n,) weight of each of these cuts: the sum over its classes of 1000 / (cuts of the class + 0.01).

        So the cuts of a class weigh about the same together, however many they are (icefall)."""
        of_class = 1000.0 / (self.counts(cut_numbers) + 0.01)
        total = np.concatenate(([0.0], np.cumsum(of_class[self._classes])))
        of_cut = total[self._ends[1:]] - total[self._ends[:-1]]
        return of_cut[cut_numbers]
