"""Makes the input files of cases: each function gets a folder and returns the path of the file that it made there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

CAPTURES = Path(__file__).parents[2] / "fixtures" / "captures"


def _script(folder: Path, *lines: str) -> Path:
    path = folder / "script.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def script_underscores(folder: Path) -> Path:
    return _script(folder, "init", "map 0x_ 0x1000 pa=0 prot=RW")


def script_negative(folder: Path) -> Path:
    return _script(folder, "init", "poke 0 level=1 entry=-1")


def script_bits(folder: Path) -> Path:
    return _script(folder, "machine ipa=99999999999999999999999", "init")


def capture_with_a_number_of_5000_digits(folder: Path) -> Path:
    path = folder / "digits.s2cap"
    with zipfile.ZipFile(CAPTURES / "6.1-cortex-a57.s2cap") as good, zipfile.ZipFile(path, "w") as made:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith(".json"):
                header = json.loads(data)
                header["capture"]["host"]["kaslr_slide"] = "@"
                data = json.dumps(header).replace('"@"', "9" * 5000).encode()
            made.writestr(name, data)
    return path
