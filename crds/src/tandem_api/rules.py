# SPDX-License-Identifier: Apache-2.0
"""Rules that compare fields, written once in CEL.

The CRD carries them as ``x-kubernetes-validations``, so the API server refuses what breaks them, and ``tandem
validate`` evaluates the very same expressions. A model lists its rules in the class variable ``RULES``.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule on the object that lists it.

    ``cel`` sees the object as ``self`` (and ``oldSelf``, then the rule only judges updates). ``message`` says how to
    mend it; ``field`` is the path below the object that the problem is reported at.
    """

    cel: str
    message: str
    field: str = ""

    @property
    def judges_updates(self) -> bool:
        return "oldSelf" in self.cel


FIXED = "is fixed once the job exists; create a new RLJob to change it"


def exactly_one_of(*fields: str) -> Rule:
    """Exactly one of these optional fields is set (a union)."""
    count = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)
    choice = f"exactly one of {', '.join(fields)}" if len(fields) > 1 else fields[0]
    return Rule(f"{count} == 1", f"set {choice}")


def unique_names(field: str) -> Rule:
    """The items of a list have different names."""
    return Rule(
        f"self.{field}.all(a, self.{field}.exists_one(b, b.name == a.name))",
        f"two {field} have the same name; give each its own",
        field,
    )


def immutable(*fields: str, optional: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """These fields keep the value that the job was created with."""
    always = tuple(Rule(f"self.{field} == oldSelf.{field}", f"{field} {FIXED}", field) for field in fields)
    absent = tuple(
        Rule(
            f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            f"{field} {FIXED}",
            field,
        )
        for field in optional
    )
    return always + absent
