"""Moving an array from one mesh to another: tasks, order, simulated makespan, and a certified bound."""

from passes.cross_mesh.bound import Bound, lower_bound
from passes.cross_mesh.flows import Load
from passes.cross_mesh.plan import Move, Send, least_s, plan_move
from passes.cross_mesh.tiles import BadPlacement, Box, Placement, boxes
from passes.cross_mesh.wiring import BadCards, Wiring, wiring

__all__ = [
    "BadCards",
    "BadPlacement",
    "Bound",
    "Box",
    "Load",
    "Move",
    "Placement",
    "Send",
    "Wiring",
    "boxes",
    "least_s",
    "lower_bound",
    "plan_move",
    "wiring",
]
