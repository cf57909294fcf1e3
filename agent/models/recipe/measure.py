"""Compares a form's answers with the float model's, and with the truth where there are labels."""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

TASKS = ("classification", "anomaly", "detection")
METRICS = {"classification": "accuracy", "anomaly": "AUC"}
# A detection's cell counts from this score on; objectness^0.6 x probability^0.4, as the agent decodes it.
SCORE_MIN = 0.5
# A written tolerance is the measured difference times this, and the engine's own on top.
MARGIN = 1.5
# What an engine's float arithmetic may differ by: at least this, or this part of the largest value.
ENGINE_DIFFERENCE = 1e-4


@dataclass
class Answers:
    """What is asked of a model: inputs [n, ...], the task, and the truth where it is known."""
    x: np.ndarray
    task: str
    y: np.ndarray | None = None
    # An anomaly's threshold.
    raise_at: float | None = None

    def scores(self, outputs):
        """An anomaly's score per input: the output itself, or the mean squared error of a reconstruction."""
        rows = outputs.reshape(len(self.x), -1).astype(np.float64)
        if rows.shape[1] == 1:
            return rows[:, 0]
        if rows.shape[1] != self.x[0].size:
            raise ValueError(f"an anomaly model answers with 1 value or {self.x[0].size}, found {rows.shape[1]}")
        return ((rows - self.x.reshape(len(self.x), -1)) ** 2).mean(axis=1)

    def classes(self, outputs):
        """The first label per input; per cell of a detection, -1 where nothing is."""
        if self.task == "classification":
            return outputs.reshape(len(self.x), -1).argmax(axis=1)
        objectness, labels = np.maximum(outputs[:, 0], 0), np.maximum(outputs[:, 5:], 0)
        found = objectness**0.6 * labels.max(axis=1) ** 0.4 >= SCORE_MIN
        return np.where(found, labels.argmax(axis=1), -1)

    def quality(self, outputs):
        """Accuracy or AUC; none without labels."""
        if self.y is None or self.task not in METRICS:
            return None
        if self.task == "anomaly":
            return float(roc_auc_score(self.y, self.scores(outputs)))
        return float((self.classes(outputs) == self.y).mean())

    def agreement(self, floats, outputs):
        """The share of the same answers: the same first label; of cells where either finds something, those with the
        same label; the same side of an anomaly's threshold. None for an anomaly without one."""
        if self.task == "anomaly":
            limit = self.raise_at
            return None if limit is None else float(((self.scores(floats) >= limit) == (self.scores(outputs) >= limit)).mean())
        one, other = self.classes(floats), self.classes(outputs)
        counted = (one >= 0) | (other >= 0)
        return float((one == other)[counted].mean()) if counted.any() else 1.0


def engine_tolerance(expected):
    """What another engine may answer instead of a golden sample's expected values."""
    return max(ENGINE_DIFFERENCE, float(f"{float(np.abs(expected).max()) * ENGINE_DIFFERENCE:.1g}"))


def tolerance(expected, outputs):
    """For a form that is held against another form's golden samples."""
    difference = float(np.abs(outputs.astype(np.float64) - expected).max())
    return round_up(MARGIN * difference + engine_tolerance(expected))


def round_up(value, digits=2):
    """The next number of so many digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.{digits}g}")
