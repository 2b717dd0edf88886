"""`headcodes doctor`: what is installed and kept here, what is damaged or left over, and how to mend it."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


def doctor() -> None:
    """Show versions, devices and the cache; name what is damaged or left over, and how to mend it (status 1)."""
    from headcodes.files import cache_dir
    from headcodes.provenance import versions

    print("versions:", ", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"machine:  {platform.platform()}, {os.cpu_count()} processors")
    print("devices: ", "; ".join(_devices()))
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("HEADCODES_"))
    print("settings:", ", ".join(settings) or "none")
    cache = cache_dir()
    print(f"cache:    {cache}{'' if cache.is_dir() else ', not there yet'}")
    for folder in sorted(path for path in cache.glob("*/") if path.is_dir()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        print(f"  {folder.name:<12} {sum(path.stat().st_size for path in files) / 1e6:9.1f} MB in {len(files)} files")
    wrong = [*_unwritable(cache), *_left_over(cache), *_damaged(cache)]
    for fault, mend in wrong:
        print(f"fault:    {fault}\n  mend it by: {mend}")
    print("headcodes: nothing is wrong" if not wrong else f"headcodes: faults: {len(wrong)}", file=sys.stderr)
    if wrong:
        sys.exit(1)


def _devices() -> Iterator[str]:
    import torch

    from headcodes import _core

    yield f"cpu ({torch.backends.cpu.get_cpu_capability()}; core {_core.isas()[-1]}; {torch.get_num_threads()} threads)"
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield f"cuda:{index} {torch.cuda.get_device_name(index)} ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)"


def _unwritable(cache: Path) -> Iterator[tuple[str, str]]:
    from headcodes.errors import HeadcodesError
    from headcodes.files import check_writable

    try:
        check_writable(cache / "activations" / "any")
    except HeadcodesError as error:
        yield f"nothing can be kept: {error.got}", "set HEADCODES_CACHE to a folder that can be written"


def _left_over(cache: Path) -> Iterator[tuple[str, str]]:
    from headcodes.files import leftovers

    for place in (cache, *(path for path in cache.glob("*/") if path.is_dir())):
        for path in leftovers(place):
            yield f"half-written by a process that is gone: {path}", "headcodes cache clear"


def _damaged(cache: Path) -> Iterator[tuple[str, str]]:
    from headcodes.store.kept import folder_damage, kept_note, kept_tensors, of_earlier

    tensors = sorted(cache.glob("activations/*.safetensors")) + sorted(cache.glob("truths/*/*.safetensors"))
    notes = sorted(cache.glob("activations/*.json")) + sorted(cache.glob("checksums/*.json"))
    earlier = [path for path in (*tensors, *notes) if of_earlier(path)]
    again = "nothing: it is made anew when it is wanted next"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in tensors:
            kept_tensors(path)
        for path in notes:
            kept_note(path)
        for folder in sorted(path for path in cache.glob("models/*/") if not path.name.startswith(".")):
            damage = folder_damage(folder)
            if not (folder / "config.json").is_file():
                yield f"a converted model without its configuration: {folder}", f"remove {folder}"
            elif damage is not None:
                yield f"a damaged converted model: {folder} ({damage})", again
    for warning in caught:
        yield str(warning.message).replace(", made anew", ""), again
    if earlier:
        size = sum(path.stat().st_size for path in earlier) / 1e6
        many = f"{len(earlier)} files ({size:.1f} MB) of an earlier version, such as {earlier[0]}"
        yield f"kept and never used again: {many}", "headcodes cache clear"
