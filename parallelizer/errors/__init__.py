"""Every error a user can meet, in one place."""

from parallelizer.errors.annotations import AnnotationError, ContradictionError, ModeError, ReshardWarning
from parallelizer.errors.base import ParallelizerError
from parallelizer.errors.layouts import LayoutFitError, UnknownDimError, UnknownLayoutError
from parallelizer.errors.microbatches import BatchInputsError, MicrobatchCountError, MicrobatchRefusedError
from parallelizer.errors.pins import (
    BadPinError,
    MeshMismatchError,
    MeshSizeError,
    NotDivisibleError,
    UnknownAxisError,
    UnknownPathError,
)
from parallelizer.errors.profiles import BadProfileError
from parallelizer.errors.rules import BadRuleError, BadTripsError, DuplicateRuleError, UnknownLoopError
from parallelizer.errors.running import (
    AheadOfTimeError,
    CompilationError,
    PlanFileError,
    PlanMismatchError,
    ShapeMismatchError,
    TooFewDevicesError,
)
from parallelizer.errors.search import (
    DoesNotFitError,
    NotTraceableError,
    SearchTimeError,
    UnknownNameError,
    UnknownPrimitiveError,
    UnknownTopologyError,
)
from parallelizer.errors.transfers import (
    TransferInputError,
    TransferMeshError,
    TransferNotRunnableError,
    TransferShardingError,
)

__all__ = [
    "AheadOfTimeError",
    "AnnotationError",
    "BadPinError",
    "BadProfileError",
    "BadRuleError",
    "BadTripsError",
    "BatchInputsError",
    "CompilationError",
    "ContradictionError",
    "DoesNotFitError",
    "DuplicateRuleError",
    "LayoutFitError",
    "MeshMismatchError",
    "MeshSizeError",
    "MicrobatchCountError",
    "MicrobatchRefusedError",
    "ModeError",
    "NotDivisibleError",
    "NotTraceableError",
    "ParallelizerError",
    "PlanFileError",
    "PlanMismatchError",
    "ReshardWarning",
    "SearchTimeError",
    "ShapeMismatchError",
    "TooFewDevicesError",
    "TransferInputError",
    "TransferMeshError",
    "TransferNotRunnableError",
    "TransferShardingError",
    "UnknownAxisError",
    "UnknownDimError",
    "UnknownLayoutError",
    "UnknownLoopError",
    "UnknownNameError",
    "UnknownPathError",
    "UnknownPrimitiveError",
    "UnknownTopologyError",
]
