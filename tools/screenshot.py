"""Take the picture of a page for docs/images, light and dark: `python tools/screenshot.py PAGE.html NAME`.

Writes docs/images/NAME-light.png and NAME-dark.png, in few colours so that they are small. Needs Chromium and
Pillow; the latter comes with the extra `plots`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minbert.errors import InputError

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
THEMES = {"dark": 0, "light": 1}  # as Chromium counts them
COLOURS = 256
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="HTML file")
    parser.add_argument("name", help="what the pictures are called")
    parser.add_argument("--size", default="1000x1300", help="pixels (default: 1000x1300)")
    given = parser.parse_args()
    try:
        for theme in THEMES:
            target = IMAGES / f"{given.name}-{theme}.png"
            photograph(given.page, theme, given.size, target)
            print(target)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def photograph(page: Path, theme: str, size: str, target: Path) -> None:
    """Save what a browser shows of a page. Raises InputError if there is no browser or no Pillow."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise InputError(f"none of {', '.join(BROWSERS)} is installed")
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise InputError('Pillow is not installed: pip install -e ".[plots]"') from None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shot = Path(folder) / "shot.png"
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += [f"--blink-settings=preferredColorScheme={THEMES[theme]}", f"--screenshot={shot}"]
        words += [f"--window-size={size.replace('x', ',')}", f"--user-data-dir={folder}"]
        found = subprocess.run([*words, page.resolve().as_uri()], capture_output=True, text=True)
        if found.returncode or not shot.exists():
            raise InputError(f"{page}: {browser} took no picture ({found.stderr.strip()[-200:]})")
        Image.open(shot).convert("RGB").quantize(COLOURS, kmeans=1).save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
