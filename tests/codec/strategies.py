"""Hypothesis strategies: geometries, formats, and words that look like descriptors as often as not."""

from __future__ import annotations

from hypothesis import strategies as st

from inspector.codec import Format, Geometry, InvalidForm, Regime

GRANULES = (12, 14, 16)


@st.composite
def stage2_geometries(draw: st.DrawFn) -> Geometry:
    """Every shape that KVM can choose, for all granules, with and without LPA2."""
    granule = draw(st.sampled_from(GRANULES))
    lpa2 = draw(st.booleans()) if granule != 16 else False
    largest = 52 if lpa2 or granule == 16 else 48
    ia_bits = draw(st.integers(32, largest))
    pa_bits = draw(st.sampled_from((40, 44, 48, 52) if largest == 52 else (40, 44, 48)))
    return Geometry.for_ipa(ia_bits, granule, pa_bits, lpa2)


@st.composite
def stage1_geometries(draw: st.DrawFn) -> Geometry:
    """Every shape of a Linux kernel's own tables, level -1 included."""
    granule, va_bits, lpa2 = draw(
        st.sampled_from(
            [
                *((12, 39, False), (12, 48, False), (12, 52, True)),
                *((14, 36, False), (14, 47, False), (14, 48, False), (14, 52, True)),
                *((16, 42, False), (16, 48, False), (16, 52, False)),
            ]
        )
    )
    pa_bits = draw(st.sampled_from((48, 52))) if lpa2 or granule == 16 else 48
    return Geometry.for_stage1(va_bits, granule, pa_bits, lpa2)


def geometries() -> st.SearchStrategy[Geometry]:
    """Any of them."""
    return st.one_of(stage2_geometries(), stage1_geometries())


def formats() -> st.SearchStrategy[Format]:
    """Every format there is."""
    return st.builds(
        Format,
        regime=st.sampled_from(Regime),
        fwb=st.booleans(),
        xnx=st.booleans(),
        invalid=st.sampled_from(InvalidForm),
        hvhe=st.booleans(),
        shadow=st.booleans(),
        protected=st.booleans(),
        linux_612=st.booleans(),
    )


def words() -> st.SearchStrategy[int]:
    """64-bit values: any, sparse ones, invalid ones of every form."""
    any_word = st.integers(0, (1 << 64) - 1)
    sparse = st.lists(st.integers(0, 63), max_size=6).map(lambda at: sum(1 << bit for bit in set(at)))
    typed = st.builds(
        lambda kind, owner, rest: kind << 60 | rest << 4 | owner << 1,
        st.integers(0, 15),
        st.integers(0, 7),
        st.integers(0, (1 << 56) - 1),
    )
    return st.one_of(any_word, sparse, any_word.map(lambda word: word & ~1), typed)


LEVELS = st.integers(-1, 3)
