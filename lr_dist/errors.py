"""Every error that lr-dist raises on purpose.

Each class subclasses `LRDistError` and the builtin that fits, so `except ValueError` keeps working. A message
says what was wrong, shows the value, and says what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterable

# The maximum length of a value in a message; longer for a path, because its end matters most.
SHORT, PATH = 80, 1000


def shown(value: object, limit: int = SHORT) -> str:
    """`value` as an error's message shows it: its repr, cut at `limit` characters."""
    try:
        text = repr(value)
    except Exception:
        # Python refuses to print whole numbers of more than 4,300 digits, and a user's `__repr__` may raise anything.
        return f"<a {type(value).__name__} that cannot be shown>"
    # Lone surrogates, as in some file names, cannot be printed.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(values: Iterable[object]) -> str:
    """`shown` of up to ten values, and how many more there are."""
    items = list(values)
    more = f" and {len(items) - 10} more" if len(items) > 10 else ""
    return ", ".join(map(shown, items[:10])) + more


class LRDistError(Exception):
    """Base of all errors of lr-dist."""


class MissingExtraError(LRDistError, ImportError):
    """An optional library is needed and not installed; the message names the extra."""


# Distributions -------------------------------------------------------------------------------------------


class InvalidDistributionError(LRDistError, ValueError):
    """An invalid distribution: unknown family or key, missing value, malformed text."""


class InvalidRateError(InvalidDistributionError):
    """An invalid learning rate or factor: negative, NaN, infinite or not a number."""


class ZeroRateError(InvalidRateError):
    """A rate of exactly 0 (a frozen layer) where a logarithm is needed, as in a geometric mean."""


class InvalidPlanError(InvalidDistributionError):
    """An invalid rate plan: a phase without a length, lengths that leave no steps, malformed text."""


class LayerCountError(LRDistError, ValueError):
    """A number of layers for which a distribution has no rates."""


# Layers and groups ---------------------------------------------------------------------------------------


class LayersNotFoundError(LRDistError, ValueError):
    """No stack of transformer layers was found in the model, or several that are not applied one after the other."""


class UnplacedParametersError(LRDistError, ValueError):
    """Parameters whose depth is not known; the message names them and shows the override."""


class InvalidOverrideError(LRDistError, ValueError):
    """An override (regex -> group) that is malformed, names no group of the model, or matches nothing."""


class InvalidStacksError(LRDistError, ValueError):
    """An invalid `stacks` argument: malformed, not names of submodules, or one submodule inside another."""


class UnsupportedWeightsError(LRDistError, TypeError):
    """Weights without usable numbers: on the meta device, quantised, sharded, or NaN."""


class UnsupportedOptimizerError(LRDistError, TypeError):
    """An optimizer whose parameter groups cannot have different rates."""


class UnsupportedSchedulerError(LRDistError, TypeError):
    """A learning-rate scheduler that is not on the tested list."""


class InvalidScheduleError(LRDistError, ValueError):
    """Invalid options of a schedule: an invalid number of epochs or steps, an unknown group, empty bounds."""


class InvalidLossError(LRDistError, ValueError):
    """A loss below 0, for which no factor of the rate is defined."""


class InvalidNoDecayError(LRDistError, ValueError):
    """A no_decay regex that is malformed or matches no parameter."""


class InvalidGroupPrefixError(LRDistError, ValueError):
    """An invalid prefix for group names: empty, or with a slash."""


class NothingToTrainError(LRDistError, ValueError):
    """A model or optimizer in which every layer is frozen."""


class OptimizerCoverageError(LRDistError, ValueError):
    """Parameters of the transformer in no optimizer or in several, or an optimizer with parameters without a depth."""


class UnsupportedTrainerError(LRDistError, TypeError):
    """An unsupported Trainer: neither Lightning's nor transformers', or one that does not use the rates."""


class UnsupportedStrategyError(LRDistError, ValueError):
    """A strategy of Lightning or accelerate under which parameter groups cannot be split."""


class RankMismatchError(LRDistError, RuntimeError):
    """Processes of one run with different learning rates."""


class UnsupportedCallbackError(LRDistError, ValueError):
    """Incompatible callbacks of a Trainer, such as one that would overwrite the layers' rates."""


class ResumeMismatchError(LRDistError, RuntimeError):
    """A checkpoint that was written under another distribution, or without one."""


# Files ---------------------------------------------------------------------------------------------------


class InvalidYAMLError(LRDistError, ValueError):
    """A YAML file that is malformed or not allowed: duplicate keys, tags, aliases, too large, too deep."""


class UnreadableFileError(LRDistError, OSError):
    """A file that is missing, is a folder, or may not be read."""


class UnwritableFileError(LRDistError, OSError):
    """A file that cannot be written: no such folder, a folder itself, no permission, no space."""


class InvalidPresetError(LRDistError, ValueError):
    """A preset file that does not follow the schema."""


class DuplicatePresetError(LRDistError, ValueError):
    """Two presets with the same name."""


class UnknownPresetError(LRDistError, LookupError):
    """No preset has this name."""


class InvalidTrialsError(LRDistError, ValueError):
    """Trials of a search that cannot be combined: no trials, different groups, or scores that are not numbers."""


class InvalidResultError(LRDistError, ValueError):
    """A result file that is malformed, of another schema version, or of another configuration."""


class ConfigurationError(LRDistError, ValueError):
    """Invalid settings of a command or a Trainer, found before anything is computed."""


class InvalidAlphaError(LRDistError, ValueError):
    """A coefficient of an interpolation between weights that is not from 0 to 1."""


class StartMismatchError(LRDistError, ValueError):
    """A start (`--start`) whose head, labels or tokenizer do not fit the first task or the model."""


class ModelMismatchError(LRDistError, ValueError):
    """Two sets of weights that are not of the same architecture."""


class OutputInUseError(LRDistError, RuntimeError):
    """Another process writes to the same output folder."""


# Tasks ---------------------------------------------------------------------------------------------------


class UnknownTaskError(LRDistError, LookupError):
    """No task has this name."""


class TaskDataError(LRDistError, ValueError):
    """A task's data that cannot be used: wrong columns, empty texts, one class only, unseen labels."""


class ModelLoadError(LRDistError, ValueError):
    """A model that cannot be loaded by the given name or path."""


class MissingLibraryError(ModelLoadError, ImportError):
    """A library that a model needs and that is not installed; the message names it."""


class MissingWeightsError(ModelLoadError):
    """A model with weights missing from its file, which would be initialised at random."""


class DivergedError(LRDistError, ArithmeticError):
    """A training loss that became NaN or infinite."""


class InvalidMasksError(LRDistError, ValueError):
    """Masks or orders that give no estimate: too few for a standard error, or larger than the text."""


class RetentionTextError(LRDistError, ValueError):
    """A text that cannot be scored: empty, too short, not UTF-8, or made of unknown tokens only."""


class NoMaskedLMHeadError(LRDistError, ValueError):
    """A model without weights that predict masked tokens; the message says how to fit a head."""


class MaskedLMHeadError(LRDistError, ValueError):
    """A fitted masked-LM head that is damaged, or belongs to other weights or another vocabulary."""


class TokenizerMismatchError(LRDistError, ValueError):
    """Two models that are compared on one text and cut it into different tokens."""


class ScoringError(LRDistError, ValueError):
    """An old task that cannot be scored: no batches or labels, other shapes than the metric's, an undefined score."""


# Influence -----------------------------------------------------------------------------------------------


class InfluenceError(LRDistError, ValueError):
    """An influence that cannot be computed: no examples, an empty text, an invalid setting, no convergence."""


class SingularCurvatureError(InfluenceError, ArithmeticError):
    """A Hessian, or its approximation, that cannot be inverted without (more) damping."""


class UnsupportedModelError(InfluenceError, TypeError):
    """A model without layers that influence can be computed for."""


# Knowledge ------------------------------------------------------------------------------------------------


class KnowledgeError(LRDistError, ValueError):
    """Knowledge that cannot be used: a malformed row, nothing to make prototypes from, classes that do not fit."""


class HypernymCycleError(KnowledgeError):
    """A word that is its own hypernym (or part) through a chain of facts, which the message shows."""


class ContradictionError(KnowledgeError):
    """Facts that exclude each other: synonyms that are antonyms, a word of both polarities."""


class UnknownRelationError(KnowledgeError, LookupError):
    """A fact with a relation that is not known and has no template."""


class TemplateError(KnowledgeError):
    """A template that lacks a slot, has an unknown one, or gives the same text two labels."""


class EquationError(KnowledgeError, ArithmeticError):
    """An equation that cannot be read, or has no finite real value somewhere in its ranges."""


class TeacherError(LRDistError, ValueError):
    """A teacher that cannot be used: fewer than two labels, labels without names, other outputs than labels."""


class DropoutOffError(LRDistError, ValueError):
    """Monte-Carlo passes that cannot differ: a model without dropout, or fewer than two passes."""


class NonFiniteScoresError(LRDistError, ArithmeticError):
    """Scores of a teacher that are NaN or infinite."""


class EmptyTextError(LRDistError, ValueError):
    """Texts of which a tokenizer leaves nothing, or no texts at all."""


# Warnings ------------------------------------------------------------------------------------------------


class RatesOffPlanWarning(UserWarning):
    """A group's rate differs from its rate in the distribution times the schedule's factor.

    Attributes:
        group: the name of the group.
        wanted: the expected rate: that of the distribution times the other groups' factor.
        found: the actual rate.
        step: the next step of the optimizer, counted from 0.
    """

    def __init__(
        self, message: str, *, group: str = "", wanted: float = 0.0, found: float = 0.0, step: int = 0
    ) -> None:
        super().__init__(message)
        self.group, self.wanted, self.found, self.step = group, wanted, found, step


class FlatRatesWarning(RatesOffPlanWarning):
    """All layers have the same rate during a run, although the distribution has different ones."""


class OwnRatiosWarning(UserWarning):
    """Groups of one layer with different rates: an absolute distribution sets one, the others keep their ratio."""


class UnreadScaleWarning(UserWarning):
    """Factors in parameter groups (timm's `lr_scale`) that have no effect."""


class UncoveredParametersWarning(UserWarning):
    """Trainable parameters that are in no group of an optimizer, or groups with parameters no longer in the model."""


class LostStepsWarning(UserWarning):
    """Weights in bfloat16 or float16 that do not change, because steps at their layer's rate are rounded away."""


class PresetMethodsWarning(UserWarning):
    """A preset was used for its rates only, although methods against forgetting belong to it."""


class RateRangeWarning(UserWarning):
    """Learning rates outside what the optimizer can use: above 0.1 (10 for SGD) or below 1e-8."""


class StuckLayersWarning(UserWarning):
    """Layers that cannot move: a step is rounded away, or the rate is under 1e-3 of the fastest layer's."""


class NothingKeptWarning(UserWarning):
    """A rule that no measurement of a fit fulfilled, so that the weights of the last step stay."""


class LatePullWarning(UserWarning):
    """A pull that should fade in the course of a fit holds until its end."""


class UnusedLayersWarning(UserWarning):
    """Layers in a model's file that are not in its config.json."""


class InexactResumeWarning(UserWarning):
    """A checkpoint, or a version of Lightning, from which a run cannot be resumed exactly."""


class SlowPrecisionWarning(UserWarning):
    """A precision that was asked for and is slower than fp32 on this machine."""


class MixedHardwareWarning(UserWarning):
    """Runs of one comparison or study that were computed on different hardware or in different precisions.

    A comparison that is continued on another machine, or a study whose workers chose different precisions.
    """


class KeptStageWarning(UserWarning):
    """A trained stage that could not be kept for other runs, or a kept one that cannot be used; it is trained again."""


class UnusableScoresWarning(UserWarning):
    """A file of kept scores that cannot be used; its texts are scored again."""


class UndertrainedStudentWarning(UserWarning):
    """A student that tells its teachers' texts apart, and has learned next to nothing of their labels."""


class UnfilledBufferWarning(UserWarning):
    """A rehearsal buffer with room for more examples of a task than its data holds."""


class TornRecordWarning(UserWarning):
    """A piece of a record in a journal, left by a killed writer or a full disk; it is skipped."""


# Searching ------------------------------------------------------------------------------------------------


class StorageError(LRDistError, ConnectionError):
    """A study's storage that cannot be opened, read or written."""


class StudyMismatchError(LRDistError, ValueError):
    """A study of this name has another search space, other data or other settings."""


class UnknownStudyError(LRDistError, LookupError):
    """No study of this name in the storage."""


class TrialError(LRDistError, RuntimeError):
    """A trial failed for a reason other than its distribution."""
