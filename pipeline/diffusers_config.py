"""Reading the config.json of a diffusers checkpoint without guessing.

Knows nothing of torch or of any one network. A key or value that we do not implement is refused by name:
ignoring it would run another network than the one that was trained.
"""

from collections.abc import Collection, Mapping
from typing import Any

from instantvision.pipeline.errors import WeightsError


def implemented_values(
    config: Mapping[str, Any], *, class_name: str, keys: Collection[str], fixed: Mapping[str, object]
) -> dict[str, Any]:
    """Pick from a configuration the keys we implement, and make sure that the others do not matter.

    Args:
        config: a checkpoint's config.json.
        class_name: diffusers' class that the checkpoint must belong to, where it says so.
        keys: taken over, lists as tuples.
        fixed: keys that may be there with this value only; null, false and 0 count as the same.

    Returns:
        The values of `keys`, as far as they are there.

    Raises:
        WeightsError: another class, an unknown key or another value of a fixed key.
    """
    found = config.get("_class_name", class_name)
    if found != class_name:
        raise WeightsError(f"the checkpoint is of class {found}, expected {class_name}: use another folder")
    values = {}
    for key, value in config.items():
        if key in keys:
            values[key] = tuple(value) if isinstance(value, list) else value
        elif key not in fixed and not key.startswith("_"):
            raise WeightsError(
                f"{class_name} has {key}={value!r}, a key we do not know: use another checkpoint"
            )
        elif key in fixed and value != fixed[key] and (value or fixed[key]):
            raise WeightsError(
                f"{class_name} has {key}={value!r}, we implement {fixed[key]!r} only: use another checkpoint"
            )
    return values
