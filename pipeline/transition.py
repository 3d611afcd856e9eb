"""Cross-fades: what lies between two looks at a moment. Pure arithmetic; time is an argument.

Knows nothing of threads, models or pictures: a model turns the mix of a moment into style embeddings by itself.
"""

from dataclasses import dataclass

from instantvision.pipeline.config import Mix

# Below this share a preset is neither seen nor told from rounding.
WEIGHT_MIN = 1e-6


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a cross-fade changes: the mix of presets, and the strength in 0..1."""

    mix: Mix
    strength: float


@dataclass(frozen=True, kw_only=True)
class Fade:
    """A cross-fade from one look to another.

    Args:
        start: the look at begin_s.
        target: the look from begin_s + duration_s on.
        begin_s: on the clock that at() is asked by.
        duration_s: 0 is a cut.
    """

    start: Look
    target: Look
    begin_s: float
    duration_s: float

    def at(self, now_s: float) -> Look:
        """The look at `now_s`: exactly `target` from the end on, before the beginning exactly `start`."""
        elapsed_s = now_s - self.begin_s
        if elapsed_s >= self.duration_s:
            return self.target
        return blend(self.start, self.target, max(elapsed_s, 0.0) / self.duration_s)


def blend(start: Look, target: Look, share: float) -> Look:
    """The look `share` of the way, 0..1, from `start` to `target`; every weight and the strength move linearly."""
    if share <= 0:
        return start
    strength = start.strength + share * (target.strength - start.strength)
    # Rounding may not carry it beyond either end: at strength 0 a GPU would record another graph.
    low, high = sorted((start.strength, target.strength))
    return Look(mix=_blend_mixes(start.mix, target.mix, share), strength=min(max(strength, low), high))


def apart(one: Look, other: Look) -> float:
    """How far two looks are from each other: 0 for the same, 1 with no preset in common, or none and full effect."""
    weights, others = dict(one.mix.parts), dict(other.mix.parts)
    differences = [
        abs(weights.get(name, 0.0) - others.get(name, 0.0)) for name in weights.keys() | others.keys()
    ]
    return max(sum(differences) / 2, abs(one.strength - other.strength))


def _blend_mixes(start: Mix, target: Mix, share: float) -> Mix:
    if start == target:
        return target
    weights = {name: (1 - share) * weight for name, weight in start.parts}
    for name, weight in target.parts:
        weights[name] = weights.get(name, 0.0) + share * weight
    # Mix brings the sum back to 1.
    return Mix(tuple((name, weight) for name, weight in weights.items() if weight > WEIGHT_MIN))
