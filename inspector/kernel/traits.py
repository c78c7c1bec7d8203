"""The traits of a kernel build, looked for in its symbols and types (`inspector.generations.traits`)."""

from __future__ import annotations

from inspector.generations import TRAITS, Probe, Trait
from inspector.symbols.api import Symbols


def traits(symbols: Symbols) -> dict[str, bool]:
    """Name of the trait to whether this build has it."""
    return {name: has_trait(symbols, trait) for name, trait in TRAITS.items()}


def has_trait(symbols: Symbols, trait: Trait) -> bool:
    """True when this build has ``trait``; without type information no kernel has any."""
    if trait.probe is Probe.STRUCT:
        return symbols.struct(trait.type) is not None
    if trait.probe is Probe.MEMBER:
        return symbols.has_member(trait.type, trait.name)
    if trait.probe is Probe.SIGNED:
        return symbols.has_member(trait.type, trait.name) and symbols.member(trait.type, trait.name).type.signed
    return symbols.enumerator(trait.type, trait.name) is not None
