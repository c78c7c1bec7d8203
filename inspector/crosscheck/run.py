"""`inspector crosscheck`: a source in, a verdict out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from inspector.crosscheck import reproducer
from inspector.crosscheck.apply import Step, apply_series
from inspector.crosscheck.build import compiler
from inspector.crosscheck.changed import touched
from inspector.crosscheck.covered import coverage
from inspector.crosscheck.interleave.part import interleave, replayed_meeting
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.patch import read_patches
from inspector.crosscheck.recognise_source import recognise_source
from inspector.crosscheck.reproducer import INTERLEAVINGS, MODEL, SANITIZERS
from inspector.crosscheck.sequential import (
    PROTOCOL,
    Budget,
    Matter,
    Run,
    baseline_and_patched,
    model_and_kernel,
    replayed,
    sanitizers,
)
from inspector.crosscheck.source import Source, open_baseline, open_package, open_source
from inspector.crosscheck.tree import HEADER, Tree
from inspector.crosscheck.verdict import Part, Verdict
from inspector.findings import BadInput, ExitCode, Untestable
from inspector.generations import KernelCode

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    ``source`` is a path, or ``package`` a Debian package's name; ``patches`` are files, put on a copy, and with
    ``series`` each is judged by itself; ``cache`` is where sources are unpacked and libraries kept.  A difference is
    written to ``reproducer``; ``replay`` is one to run in place of all else.  ``cpus`` operations at a time are
    interleaved (0: none), with at most so many ``preemptions``.  ``sanitize``: the same budget once more, each access
    checked.  With ``coverage`` lines are counted; changed ones that did not run are no clean bill unless
    ``uncovered_ok``.
    """

    source: Path | None
    cache: Path
    budget: Budget
    package: str | None = None
    patches: Sequence[Path] = ()
    series: bool = False
    baseline: str | None = None
    reproducer: Path = Path("crosscheck-repro.txt")
    replay: Path | None = None
    cpus: int = 2
    preemptions: int = 2
    sanitize: bool = False
    coverage: bool = True
    uncovered_ok: bool = False


def default_cache() -> Path:
    """``$INSPECTOR_HARNESS_BUILD``, else ``$XDG_CACHE_HOME/kvm-stage2-inspector/crosscheck`` (``~/.cache``)."""
    if given := os.environ.get("INSPECTOR_HARNESS_BUILD"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvm-stage2-inspector" / "crosscheck"


def run(request: Request, tell: Tell) -> Verdict:
    """Everything that was asked for, one part after the other; ``tell`` is told how it goes.

    Cut short by Ctrl-C, or by another signal that the caller made an exception of that kind, it returns what there is.
    """
    work = _Work(request, tell)
    try:
        work.do()
    except BaseException as error:
        if isinstance(error, (Exception, SystemExit, GeneratorExit)):
            raise
        return work.verdict(interrupted=True)
    return work.verdict()


@dataclass(frozen=True)
class _Subject:
    """A kernel that is judged; ``label`` tells it from others of a series, ``about`` says what it is.

    ``before`` is what patches were put on.
    """

    kernel: Kernel
    code: KernelCode
    label: str
    about: str
    before: Tree | None = None


@dataclass
class _Work:
    request: Request
    tell: Tell
    about: list[str] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    running: tuple[Run, str] | None = None
    written: int = 0

    def do(self) -> None:
        request = self.request
        script = reproducer.read(request.replay) if request.replay is not None else None
        self.tell("reading the source")
        source = self._source()
        subjects = self._subjects(source)
        baseline = self._baseline(source)
        compiler()
        for subject in subjects:
            matters = self._matters(subject, baseline)
            if script is not None:
                if script.part == INTERLEAVINGS:
                    known = _is_known(subject.code)
                    self._add(
                        replayed_meeting(subject.kernel, script, request.preemptions, known, self.tell), subject.label
                    )
                    continue
                if script.part == SANITIZERS:
                    matters.append(sanitizers(subject.kernel))
                chosen = [matter for matter in matters if matter.part == script.part]
                if not chosen:
                    raise BadInput("the reproducer is of two kernels' code: name the other one with --baseline")
                self._add(replayed(chosen[0], script), subject.label)
                continue
            if request.sanitize:
                matters.append(sanitizers(subject.kernel))
            for matter in matters:
                self._compare(matter, subject.label)
            if request.cpus:
                self._interleave(subject)
            # What is wrong already needs no count of what else ran, and may not even end.
            if request.coverage and not any(part.code is ExitCode.FINDINGS for part in self.parts):
                self._cover(subject, baseline)

    def _source(self) -> Source:
        request = self.request
        if request.package is not None:
            return open_package(request.package, request.cache, self.tell)
        if request.source is None:
            raise BadInput("nothing to check: name a kernel tree, or a source package with --source")
        return open_source(request.source, request.cache)

    def _subjects(self, source: Source) -> list[_Subject]:
        patches = [patch for file in self.request.patches for patch in read_patches(file)]
        steps = list(apply_series(source.tree, patches))
        self.about.append(f"{source.name}: {source.description}")
        if not steps:
            return [self._subject(source.tree, source.name, "")]
        for number, step in enumerate(steps, 1):
            fuzzy = ", with less context than it has" if step.fuzzy else ""
            self.about.append(f"patch {number} of {len(steps)}: {step.name}{fuzzy}")
        if not self.request.series:
            self._nothing_here(source.tree, steps, "")
            return [replace(self._subject(steps[-1].tree, source.name, ""), before=source.tree)]
        subjects, before = [], source.tree
        for number, step in enumerate(steps, 1):
            label = f"patch {number}"
            self._nothing_here(before, [step], label)
            subject = self._subject(step.tree, f"{source.name} with patch {number}", label)
            subjects.append(replace(subject, before=before))
            before = step.tree
        return subjects

    def _nothing_here(self, before: Tree, steps: Sequence[Step], label: str) -> None:
        """Patches that leave alone all that is compiled here are not judged by what was there before."""
        if touched(before, steps[-1].tree):
            return
        elsewhere = list(dict.fromkeys(path for step in steps for path in (*step.here, *step.elsewhere)))
        named = f" (it is about {', '.join(elsewhere[:3])}{' …' if len(elsewhere) > 3 else ''})" if elsewhere else ""
        summary = f"nothing that is compiled here is changed{named}: boot such a kernel and validate it"
        self._add(Part("patch", ExitCode.UNTESTABLE, summary), label)

    def _subject(self, tree: Tree, name: str, label: str) -> _Subject:
        code = recognise_source(tree)
        kernel = self._kernel(tree, name, code.label)
        text = f"model{f' for {label}' if label else ''}: {code.text}"
        if text not in self.about:
            self.about.append(text)
        return _Subject(kernel, code, label, text)

    def _kernel(self, tree: Tree, name: str, generation: str) -> Kernel:
        kernel = Kernel(name, tree, generation, self.request.cache)
        self.kernels.append(kernel)
        return kernel

    def _baseline(self, source: Source) -> Source | None:
        if self.request.baseline is None:
            return None
        found = open_baseline(self.request.baseline, self.request.source, self.request.cache, self.tell)
        self.about.append(f"baseline {found.name}: {found.description}")
        return found

    def _matters(self, subject: _Subject, baseline: Source | None) -> list[Matter]:
        known = _is_known(subject.code)
        doubt = ""
        if not known:
            doubt = f"the model knows no such kernel, and was taken for the nearest, {subject.code.label}"
        if baseline is None:
            return [model_and_kernel(subject.kernel, doubt)]
        code = recognise_source(baseline.tree)
        kernel = self._kernel(baseline.tree, baseline.name, code.label)
        both = baseline_and_patched(kernel, subject.kernel)
        return [model_and_kernel(subject.kernel), both] if known else [both]

    def _compare(self, matter: Matter, label: str) -> None:
        run = Run(matter, self.request.budget)
        self.running = run, label
        try:
            run.go(self.tell)
        except Untestable as error:
            self.running = None
            if not self.parts and not self.request.series:
                raise
            self._add(Part(matter.part, ExitCode.UNTESTABLE, str(error)), label)
            return
        self.running = None
        self._add_all(run.parts(), label)

    def _cover(self, subject: _Subject, baseline: Source | None) -> None:
        before = subject.before or (baseline.tree if baseline is not None else None)
        request = self.request
        try:
            part = coverage(
                subject.kernel,
                before,
                request.budget.granules,
                request.budget.seed,
                uncovered_ok=request.uncovered_ok,
                tell=self.tell,
            )
        except Untestable as error:
            part = Part("coverage", ExitCode.UNTESTABLE, str(error))
        self._add(part, subject.label)

    def _interleave(self, subject: _Subject) -> None:
        """Tables of 4K pages on a CPU with FWB: the rest only where it was asked for alone, as it takes longer."""
        asked = self.request.budget.granules
        part = interleave(
            subject.kernel,
            granules=("4k",) if "4k" in asked else asked,
            bound=self.request.preemptions,
            count=self.request.cpus,
            machines=1 if "4k" in asked else 2,
            seconds=self.request.budget.seconds,
            model=_is_known(subject.code),
            jobs=self.request.budget.jobs,
            scheduler=self.request.budget.scheduler,
            tell=self.tell,
        )
        self._add(part, subject.label)

    def _add_all(self, parts: Sequence[Part], label: str) -> None:
        for part in parts:
            self._add(part, label)

    def _add(self, part: Part, label: str) -> None:
        """One more part, and its reproducer."""
        if part.script and self.request.replay is None:
            self.written += 1
            file = self.request.reproducer
            if self.written > 1:
                file = file.with_name(f"{file.stem}-{self.written}{file.suffix}")
            about = [*self.about, f"{part.name}: {part.summary}"]
            # What breaks a rule is run again as it was found: under both.
            runs = MODEL if part.name == PROTOCOL else part.name
            reproducer.write(file, reproducer.text_of(runs, about, part.script))
            part = replace(part, lines=[*part.lines, "", f"Reproducer: {file}"])
        self.parts.append(replace(part, name=f"{label}: {part.name}") if label else part)

    def verdict(self, interrupted: bool = False) -> Verdict:
        """All that there is; when it was cut short, what was running as far as it came."""
        if self.running is not None:
            run, label = self.running
            self._add_all(run.parts(), label)
        return Verdict([*self.about, *self._built()], self.parts, interrupted)

    def _built(self) -> list[str]:
        if not self.kernels:
            return []
        variants = {name for kernel in self.kernels for name in kernel.built}
        variants = variants.union(*(part.built for part in self.parts)) or set(self.request.budget.granules)
        tree = self.kernels[0].tree
        return [f"calls: {', '.join(calls(tree))}", f"built: {', '.join(sorted(variants))}; {compiler()}"]


def _is_known(code: KernelCode) -> bool:
    """The model knows such a kernel, rather than one that is near to it."""
    return code.as_read or not code.assumed


def calls(tree: Tree) -> list[str]:
    """The stage-2 operations that a tree declares, without their ``kvm_pgtable_stage2_``."""
    code = re.sub(r"/\*.*?\*/", " ", tree.text[HEADER], flags=re.DOTALL)
    found = re.findall(r"\bkvm_pgtable_stage2_(\w+)\(", code)
    return list(dict.fromkeys(name for name in found if not name.endswith("pte_prot") and name != "pgd_size"))
