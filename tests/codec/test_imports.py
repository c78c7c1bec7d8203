"""The codec runs where there is nothing but the standard library: the interpreter inside gdb."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | {"inspector"}:
            raise ImportError("not in the standard library: " + name)
sys.meta_path.insert(0, Refuse())
import inspector.codec, inspector.codec.tlbi, inspector.tables
from inspector.codec import Geometry, Format, Regime
table = {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x48000003}
read = lambda pa, size: table.get(pa, 0).to_bytes(size, "little")
geometry = Geometry.for_ipa(36)
found = inspector.tables.translate(read, 0x1000, geometry, Format(Regime.STAGE2), 0x123)
assert found.pa == 0x48000123, found
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("inspector.")}
print(sorted(rooms))
"""


def test_codec_and_translate_need_the_standard_library_only() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['codec', 'tables']"
