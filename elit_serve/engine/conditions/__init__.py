"""What pictures are of, as values. A kind of condition is a file here and a line in `table.py`."""

from elit_serve.engine.conditions.classes import ClassCondition, ClassConditions
from elit_serve.engine.conditions.condition import Condition, Conditions, ConditionSlots
from elit_serve.engine.conditions.table import AnyCondition, condition_problems, conditions_of, open_conditions
from elit_serve.engine.conditions.text import TextCondition, TextConditions

__all__ = [
    "AnyCondition",
    "ClassCondition",
    "ClassConditions",
    "Condition",
    "ConditionSlots",
    "Conditions",
    "TextCondition",
    "TextConditions",
    "condition_problems",
    "conditions_of",
    "open_conditions",
]
