"""The script grammar: one operation a line, the same for the model, the harness and people.

::

    # a comment
    machine generation=6.12 granule=4k ipa=40 fwb=1        # first: what to build; again: start anew
    init
    map 0x80000000 2M pa=0x48000000 prot=RWX
    map 0x80000000 4K pa=0x49000000 prot=RW mem=device cache=2 flags=shared+fault
    unmap 0x80000000 4K

A line is an operation's name, its positional numbers (input address, size), then ``key=value`` words.  Numbers are
decimal or ``0x``; ``K``, ``M``, ``G``, ``T`` may follow (binary multiples).  ``OPERATIONS`` is the list of
operations with their words; ``WORDS`` says what each word means and what it is when left out.

Any operation may carry faults: ``fail_alloc=n`` (its n-th allocation gives NULL), ``lose_cas=n race=MODE:VALUE`` (just
before its n-th cmpxchg another CPU sets or clears the bits VALUE in the entry, or stores it: ``set``, ``clear``,
``value``; default ``set:0x400``, the access flag).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from inspector.findings import BadInput
from inspector.model.attributes import AF
from inspector.model.prot import SW_MASK, Prot
from inspector.model.state import HANDLE_FAULT, IGNORE_EAGAIN, SHARED, SKIP_BBM_TLBI, SKIP_CMO, U64
from inspector.numbers import parse_number

PLENTY: Final = 1 << 20
"""A memory cache that does not run out."""

LAST: Final = -1
"""``page=last``: the table that the last create_unlinked returned."""


class ScriptError(BadInput):
    """A script that cannot be run; the message names the line."""


@dataclass(slots=True)
class Operation:
    """One operation; fields that an operation does not use keep their defaults.

    ``prot`` is a :class:`~inspector.model.prot.Prot` with software bits; ``cache`` the pages in the memory cache,
    ``None`` for no cache; ``value`` an owner, an annotation's payload, an entry, or a table's address.
    """

    name: str
    addr: int = 0
    size: int = 0
    pa: int = 0
    prot: int = 0
    cache: int | None = PLENTY
    flags: int = 0
    level: int = 0
    kind: int = 0
    value: int = 0
    change: int = 0
    switch: int = 0
    fail_alloc: int = 0
    lose_cas: int = 0
    race_mode: str = "set"
    race_value: int = AF


OPERATIONS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # name: (positional numbers, words)
    "init": ((), ()),
    "map": (("addr", "size"), ("pa", "prot", "mem", "sw", "cache", "flags")),
    "unmap": (("addr", "size"), ()),
    "set_owner": (("addr", "size"), ("owner", "cache")),
    "annotate": (("addr", "size"), ("type", "payload", "cache")),
    "wrprotect": (("addr", "size"), ()),
    "relax_perms": (("addr",), ("prot", "sw", "flags")),
    "mkyoung": (("addr",), ("flags",)),
    "mkold": (("addr",), ()),
    "is_young": (("addr",), ()),
    "test_clear_young": (("addr", "size"), ("mkold",)),
    "flush": (("addr", "size"), ()),
    "split": (("addr", "size"), ("cache",)),
    "create_unlinked": ((), ("pa", "level", "prot", "mem", "sw", "cache", "force")),
    "free_unlinked": ((), ("page", "level")),
    "get_leaf": (("addr",), ()),
    "destroy": ((), ()),
    "destroy_range": (("addr", "size"), ()),
    "destroy_pgd": ((), ()),
    "grace_period": ((), ()),
    "poke": (("addr",), ("level", "entry", "refs")),
    "reference": (("addr",), ("level", "refs")),
    "hyp_init": ((), ()),
    "hyp_map": (("addr", "size"), ("pa", "prot", "mem", "sw")),
    "hyp_unmap": (("addr", "size"), ()),
    "hyp_destroy": ((), ()),
}

WORDS: Final[dict[str, tuple[str, str, str]]] = {
    # word: (field, form, meaning)
    "pa": ("pa", "hex", "physical address"),
    "prot": ("prot", "prot", "permissions: letters of RWX, Xp and Xu for one execute bit alone, - for none"),
    "mem": ("prot", "mem", "memory type: normal, device, nc, device+nc (default normal)"),
    "sw": ("prot", "sw", "software bits [58:55], 0 to 15 (default 0)"),
    "cache": ("cache", "cache", "pages in the memory cache, none for no cache (default plenty)"),
    "flags": ("flags", "flags", "walk flags: shared, fault, ignore_eagain, skip_bbm, skip_cmo, joined by +"),
    "owner": ("value", "dec", "owner id"),
    "type": ("kind", "dec", "enum kvm_invalid_pte_type"),
    "payload": ("value", "hex", "annotation, bits [59:1]"),
    "mkold": ("switch", "dec", "1 clears the access flag"),
    "force": ("switch", "dec", "1 builds down to pages"),
    "level": ("level", "dec", "level of the entry"),
    "page": ("value", "page", "a table's address, or last: what create_unlinked returned"),
    "entry": ("value", "hex", "the new entry"),
    "refs": ("change", "dec", "references added to the entry's table"),
    "fail_alloc": ("fail_alloc", "dec", "which allocation gives NULL"),
    "lose_cas": ("lose_cas", "dec", "at which cmpxchg another CPU is faster"),
    "race": ("race_mode", "race", "what that CPU does: set:VALUE, clear:VALUE, value:VALUE"),
}

_BOUNDS: Final = {
    # word: what it may be; all others are 64-bit
    "level": (-1, 3),
    "refs": (-(1 << 16), 1 << 16),
    "owner": (0, 255),
    "type": (0, 15),
    "mkold": (0, 1),
    "force": (0, 1),
    "fail_alloc": (0, 1 << 20),
    "lose_cas": (0, 1 << 20),
}

FAULT_WORDS: Final = ("fail_alloc", "lose_cas", "race")

_FLAGS: Final = (
    ("shared", SHARED),
    ("fault", HANDLE_FAULT),
    ("ignore_eagain", IGNORE_EAGAIN),
    ("skip_bbm", SKIP_BBM_TLBI),
    ("skip_cmo", SKIP_CMO),
)
_MEMORY: Final = {
    "normal": 0,
    "device": int(Prot.DEVICE),
    "nc": int(Prot.NORMAL_NC),
    "device+nc": Prot.DEVICE | Prot.NORMAL_NC,
}
_EXECUTE: Final = {"": Prot.NONE, "X": Prot.X, "Xp": Prot.PX, "Xu": Prot.UX}
_ALL_MEMORY: Final = int(Prot.DEVICE | Prot.NORMAL_NC)
_DEFAULTS: Final = {field.name: field.default for field in fields(Operation)}


def bounded(what: str, value: int, low: int, high: int) -> int:
    """``value``.  Raises ``ValueError`` when it is not one of ``low`` to ``high``."""
    if not low <= value <= high:
        raise ValueError(f"{what} is not one of {low} to {high}")
    return value


def _read_prot(text: str) -> int:
    rest = "" if text == "-" else text
    prot = 0
    for letter in "RW":
        if rest.startswith(letter):
            prot |= Prot[letter]
            rest = rest[1:]
    if rest not in _EXECUTE:
        raise ValueError("permissions are letters of RWX in that order, X may be Xp or Xu, - is none")
    return prot | _EXECUTE[rest]


def _write_prot(prot: int) -> str:
    execute = next(text for text, bits in _EXECUTE.items() if bits == prot & Prot.X)
    return (("R" if prot & Prot.R else "") + ("W" if prot & Prot.W else "") + execute) or "-"


def _read_flags(text: str) -> int:
    known = dict(_FLAGS)
    flags = 0
    for word in text.split("+"):
        if word not in known:
            raise ValueError(f"{word} is not a walk flag")
        flags |= known[word]
    return flags


def _write_flags(flags: int) -> str:
    return "+".join(word for word, bit in _FLAGS if flags & bit)


def _assign(operation: Operation, word: str, text: str) -> None:
    field, form, _ = WORDS[word]
    if form == "prot":
        operation.prot |= _read_prot(text)
    elif form == "mem":
        if text not in _MEMORY:
            raise ValueError("the memory type is normal, device, nc or device+nc")
        operation.prot |= _MEMORY[text]
    elif form == "sw":
        operation.prot |= bounded(word, parse_number(text, word), 0, 15) << 55
    elif form == "cache":
        operation.cache = (
            None
            if text == "none"
            else PLENTY
            if text == "plenty"
            else bounded(word, parse_number(text, word), 0, PLENTY)
        )
    elif form == "flags":
        operation.flags = _read_flags(text)
    elif form == "page":
        operation.value = LAST if text == "last" else parse_number(text, word)
    elif form == "race":
        mode, _, value = text.partition(":")
        if mode not in ("set", "clear", "value"):
            raise ValueError("race is set:VALUE, clear:VALUE or value:VALUE")
        operation.race_mode, operation.race_value = mode, parse_number(value, word)
    else:
        low, high = _BOUNDS.get(word, (0, U64))
        setattr(operation, field, bounded(word, parse_number(text, word, signed=low < 0), low, high))


def parse_operation(line: str) -> Operation:
    """The operation of a line.  Raises :class:`ScriptError`."""
    words = line.split()
    name = words[0] if words else ""
    if name not in OPERATIONS:
        raise ScriptError(f"{name!r} is not an operation: use one of {', '.join(OPERATIONS)}")
    positional, keywords = OPERATIONS[name]
    operation = Operation(name)
    given = words[1:]
    if len(given) < len(positional) or any("=" in word for word in given[: len(positional)]):
        raise ScriptError(f"{name} needs {' and '.join(positional)} first")
    try:
        for field, text in zip(positional, given, strict=False):
            setattr(operation, field, parse_number(text, field))
        for word in given[len(positional) :]:
            key, _, text = word.partition("=")
            if key not in keywords and key not in FAULT_WORDS:
                raise ValueError(f"it takes {', '.join((*keywords, *FAULT_WORDS))}, not {word}")
            _assign(operation, key, text)
    except (ValueError, BadInput) as error:
        raise ScriptError(f"{name}: {error}") from None
    return operation


def _word_text(operation: Operation, word: str) -> str | None:
    """``key=value`` for a word, ``None`` when it is at its default."""
    field, form, _ = WORDS[word]
    value: Any = getattr(operation, field)
    if form == "prot":
        return f"prot={_write_prot(value)}"
    if form == "mem":
        bits = value & _ALL_MEMORY
        return None if not bits else "mem=" + next(text for text, known in _MEMORY.items() if known == bits)
    if form == "sw":
        return f"sw={value >> 55}" if value & SW_MASK else None
    if form == "race":
        if not operation.lose_cas:
            return None
        return f"race={operation.race_mode}:{operation.race_value:#x}"
    if value == _DEFAULTS[field] and form != "page":
        return None
    if form == "cache":
        return "cache=none" if value is None else f"cache={value}"
    if form == "flags":
        return f"flags={_write_flags(value)}"
    if form == "page":
        return "page=last" if value == LAST else f"page={value:#x}"
    return f"{word}={value:#x}" if form == "hex" else f"{word}={value}"


def format_operation(operation: Operation) -> str:
    """The line of an operation; :func:`parse_operation` is the inverse."""
    positional, keywords = OPERATIONS[operation.name]
    parts = [operation.name, *(f"{getattr(operation, field):#x}" for field in positional)]
    parts += filter(None, (_word_text(operation, word) for word in (*keywords, *FAULT_WORDS)))
    return " ".join(parts)
