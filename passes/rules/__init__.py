"""Sharding rules, one file per family; importing the package fills the registry."""

from passes.rules import contraction, declared, elementwise, generated, indexing, linalg, movement, reduction, windows
from passes.rules.notation import Rule, RuleError, parse
from passes.rules.registry import View, has_rule, known_primitives, registered_for, rule, rule_for, rule_name, view_of

__all__ = [
    "Rule", "RuleError", "View", "contraction", "declared", "elementwise", "generated", "has_rule", "indexing",
    "known_primitives", "linalg", "movement", "parse", "reduction", "registered_for", "rule", "rule_for", "rule_name",
    "view_of", "windows",
]  # fmt: skip
