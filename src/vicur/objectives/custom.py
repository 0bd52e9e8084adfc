"""Users' own objectives: `objective.custom: {path: file.py:Class, ...}` in a recipe.

`examples/own_objective.py` is an example, with the commands that train with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from vicur.data.views import View
from vicur.objectives.objective import Needs, ScoredTokens, Weighed, WeightedObjective, check_weight
from vicur.scoring.term import Block, Term
from vicur.settings.schema import Layer, schema_of
from vicur.settings.section import SettingsError
from vicur.user_code import error_in, load_name

WHAT = "objective"
SECTION = "objective.custom"
Result = TypeVar("Result")


@dataclass(frozen=True)
class CustomObjective:
    """Wraps a user's objective: checks its results, and names the user's line in errors.

    Attributes:
        path: path of the objective's class, as written in the recipe.
        inner: the user's objective.
    """

    path: str
    inner: WeightedObjective

    @property
    def weight(self) -> float:
        """Its coefficient in a mixture."""
        return self.inner.weight

    def needs(self, step: int) -> Needs:
        """The needs of the user's objective.

        Raises:
            ValueError: the method raises any exception, or returns something else.
        """
        needs = self._checked(lambda: self.inner.needs(step), "needs", Needs)
        for name, look in [*needs.log_probs.items(), *needs.distributions.items()]:
            # Views are compared and looked up: the same view of a model is run once.
            if look.view not in (None, "student") and not (
                isinstance(look.view, View) and isinstance(look.view, Hashable)
            ):
                raise ValueError(
                    f"The view of the look {name} of the {WHAT} {self.path!r} is not a view: a view is a "
                    "frozen dataclass with name, keeps_tokens, applies and show."
                )
        return needs

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """The weights of the user's objective.

        Raises:
            ValueError: the method raises any exception, or returns something else.
        """
        weighed = self._checked(lambda: self.inner.weigh(scored), "weigh", Weighed)
        for term in weighed.terms:
            self._check_length(f"the weights of the term {term.name}", term.weights, len(scored))
        for name, values in weighed.tokens.items():
            self._check_length(f"the numbers {name}", values, len(scored))
        return replace(weighed, terms=[self._guarded(term) for term in weighed.terms])

    def _checked(self, call: Callable[[], object], method: str, expected: type[Result]) -> Result:
        try:
            result = call()
        except Exception as error:  # the user's code may raise anything
            raise ValueError(self._raised(error)) from error
        if not isinstance(result, expected):
            raise ValueError(
                f"The {WHAT} {self.path!r} returned a {type(result).__name__} from {method}, "
                f"not a {expected.__name__}."
            )
        return result

    def _check_length(self, what: str, values: Tensor | None, count: int) -> None:
        if values is not None and values.shape != (count,):
            raise ValueError(
                f"The {WHAT} {self.path!r} returned {what} of shape {tuple(values.shape)}; the update has "
                f"{count} response tokens, so shape ({count},) was expected."
            )

    def _guarded(self, term: Term) -> Term:
        def function(block: Block, **inputs: Tensor) -> Tensor:
            try:
                return term.function(block, **inputs)
            except Exception as error:  # the user's code may raise anything
                raise ValueError(self._raised(error)) from error

        return replace(term, function=function)

    def _raised(self, error: Exception) -> str:
        return f"The {WHAT} {self.path!r} raised {error_in(type(self.inner), error)}."


def load_objective(settings: Mapping[str, Any]) -> CustomObjective:
    """Load a user's objective and give it its settings.

    Args:
        settings: `path`, which is `package.module:Class` or `path/to/file.py:Class`, and settings of that
            class.

    Raises:
        ValueError: there is no such class, it is not an objective, a setting does not exist (the message
            names the nearest), or a value is invalid.
    """
    path = settings.get("path")
    if not isinstance(path, str):
        raise ValueError(f"{SECTION} needs a path, e.g. {SECTION}.path=my_objective.py:MyObjective.")
    component = load_name(path, WHAT)
    if not (isinstance(component, type) and is_dataclass(component)):
        raise ValueError(f"The {WHAT} {path!r} is not a dataclass; its fields are its settings.")
    schema = schema_of(component)
    members = {*dir(component), *schema.kinds}
    lacking = [name for name in ("needs", "weigh", "weight") if name not in members]
    if lacking:
        raise ValueError(
            f"The {WHAT} {path!r} has no {', no '.join(lacking)}: an objective has the methods needs(step) "
            "and weigh(scored), and a setting weight: float = 1.0."
        )
    values = schema.flatten({key: value for key, value in settings.items() if key != "path"})
    try:
        objective: Any = schema.load([Layer("", values)])
    except SettingsError as error:
        raise SettingsError(f"in {SECTION}, {error}") from error
    check_weight("custom", objective.weight)
    return CustomObjective(path, objective)
