"""The object built of shapes.c, with debug information in any form the compiler can write it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

GCC = "aarch64-linux-gnu-gcc"
OBJCOPY = "aarch64-linux-gnu-objcopy"
SOURCE = Path(__file__).parent / "shapes.c"
FORMS = {
    "DWARF 4": ("-gdwarf-4",),
    "DWARF 5": ("-gdwarf-5",),
    "DWARF 4 strict": ("-gdwarf-4", "-gstrict-dwarf"),
    "DWARF 3": ("-gdwarf-3", "-gstrict-dwarf"),
    "compressed": ("-gdwarf-5", "-gz=zlib"),
    "compressed the old way": ("-gdwarf-4", "-gz=zlib-gnu"),
}


def compile_shapes(folder: Path, *flags: str) -> Path:
    """A linked ELF file (so that DWARF needs no relocation), at the address of a kernel."""
    assert shutil.which(GCC), f"install {GCC}"
    target = folder / "shapes"
    link = (
        "-nostdlib",
        "-static",
        "-Wl,-Ttext=0xffff800080000000",
        "-Wl,-e,kvm_vm_release",
        "-Wl,--defsym=_text=0xffff800080000000",
    )
    subprocess.run(
        [GCC, "-O1", "-fno-stack-protector", *flags, *link, "-o", str(target), str(SOURCE)],
        check=True,
        capture_output=True,
    )
    return target
